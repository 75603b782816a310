"""The library of kernels: exact there and back, products near plain arithmetic, no crash whatever is stored."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ressa.errors import RessaError
from ressa.packed import native
from ressa.packed.format import LARGEST, Packed, pack, unpack

KERNELS = Path(native.__file__).parent / "kernels"
SETS = list(native.names()) or [pytest.param("", marks=pytest.mark.skip("no kernels were built"))]
PATTERNS = ("dense", "50%", "2:4", "1:4", "2:8", "4:16", "8:16")
SHAPES = [(1, 16), (20, 48), (33, 576)]


@pytest.fixture(params=SETS)
def kernels(request, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, request.param)
    return request.param


def pruned(shape, pattern, dtype=torch.bfloat16):
    """Which weights are kept is random; at 50 % the first row has none and the second all."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(shape, generator=generator).to(dtype)
    weight_OI[weight_OI == 0] = 1
    if pattern == "50%":
        mask = torch.rand(shape, generator=generator) < 0.5
        mask[:1], mask[1:2] = False, True
        return weight_OI * mask
    if pattern == "dense":
        return weight_OI
    kept, of = map(int, pattern.split(":"))
    return weight_OI * (torch.rand(shape[0] * shape[1] // of, of, generator=generator).argsort(1) < kept).view(shape)


def same(one: Packed, other: Packed) -> bool:
    pairs = zip((one.values, one.bitmask, one.scale), (other.values, other.bitmask, other.scale), strict=True)
    return one.shape == other.shape and all(a is b is None or a.equal(b) for a, b in pairs)


def multiplied(prepared, x, bias, rows):
    return native.matvec(prepared, x, bias, rows).double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", native.KINDS)
def test_a_prepared_weight_is_given_back_to_the_bit_and_multiplies_as_it_does(kernels, kind, pattern, shape):
    packed = pack(pruned(shape, pattern), kind)
    prepared = native.prepare(packed)
    assert same(native.restore(prepared), packed)
    assert prepared.data_ptr() % 64 == 0
    for dtype in native.DTYPES:
        assert native.unpack(prepared, torch.full(shape, torch.nan, dtype=dtype)).equal(
            unpack(packed, torch.empty(shape, dtype=dtype))
        )
        weight_OI = unpack(packed, torch.empty(shape)).double()
        for tokens in (1, 2, 5, 8):
            x, bias = torch.randn(tokens, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
            wanted = x.double() @ weight_OI.T + bias.double()
            sizes = x.abs().double() @ weight_OI.abs().T + bias.double().abs()  # of what is added up
            rounded = 1e-5 if dtype == torch.float32 else 2**-8
            if kind in LARGEST:  # activations are rounded to 8 bits by a scale for each block
                sizes = x.abs().amax().double() * weight_OI.abs().sum(1) + bias.double().abs()
                rounded += 1 / 250
            assert ((multiplied(prepared, x, bias, shape[0]) - wanted).abs() <= rounded * sizes + 1e-30).all()


@pytest.mark.parametrize(("columns", "kept", "of"), [(158, 2, 4), (130, 2, 4), (628, 4, 16), (1000, 4, 16)])
@pytest.mark.parametrize("kind", native.KINDS)
def test_a_last_group_that_is_cut_short_may_hold_more_than_its_share(kernels, kind, columns, kept, of):
    """As many are kept as if every group were full: what the last one holds more another has less."""
    weight_OI = torch.randn(4, columns).bfloat16()
    whole = columns // of * of
    weight_OI[:, :whole].unflatten(1, (-1, of))[..., kept:] = 0
    surplus = (columns - whole) - (columns - whole) * kept // of
    weight_OI[:, [of * (n // kept) + n % kept for n in range(surplus)]] = 0
    assert int((weight_OI != 0).sum()) == weight_OI.numel() * kept // of
    packed = pack(weight_OI, kind)
    if (prepared := native.prepare(packed)) is None:
        pytest.skip(f"{kernels} has no kernel for it")
    assert same(native.restore(prepared), packed)
    for dtype in native.DTYPES:
        dense_OI = native.unpack(prepared, torch.full((4, columns), torch.nan, dtype=dtype))
        assert dense_OI.equal(unpack(packed, torch.empty(4, columns, dtype=dtype)))


def test_two_threads_compute_the_same_bits_as_one(kernels):
    if sys.platform == "linux":
        assert all(native._threads())  # those of torch: without them both were computed by one
    threads, packed = torch.get_num_threads(), pack(pruned((400, 512), "50%"))
    prepared, x = native.prepare(packed), torch.randn(3, 512)
    try:
        torch.set_num_threads(1)
        one = native.matvec(prepared, x, None, 400)
        torch.set_num_threads(2)
        assert native.matvec(prepared, x, None, 400).equal(one)
        assert native.unpack(prepared, torch.empty(400, 512)).equal(unpack(packed, torch.empty(400, 512)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("pattern", ["dense", "50%", "2:4", "4:16", "8:16"])
@pytest.mark.parametrize("kind", native.KINDS)
def test_in_memory_are_at_most_3_percent_more_than_is_stored(kernels, kind, pattern):
    if kernels == "scalar":
        pytest.skip("for tests alone")
    packed = pack(pruned((320, 960), pattern), kind)
    assert native.prepare(packed).nbytes <= 1.03 * packed.bytes


@pytest.mark.parametrize("shape", [(1, 3), (37, 130), (100, 100), (500, 1030)])
@pytest.mark.parametrize("pattern", ["dense", "50%", "2:4", "4:16", "8:16"])
@pytest.mark.parametrize("kind", native.KINDS)
def test_padding_of_odd_shapes_is_bounded(kernels, kind, pattern, shape):
    rows, columns = shape
    packed = pack(pruned((rows, -(-columns // 16) * 16), pattern)[:, :columns].contiguous(), kind)
    assert native.prepare(packed).nbytes <= 1.15 * packed.bytes + 5 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_pages_of_a_mapped_file_are_given_back_and_can_be_read_again(tmp_path):
    save_file({"values": torch.ones(1 << 21, dtype=torch.uint8)}, tmp_path / "file.safetensors")
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        values = file.get_tensor("values")
    assert values.sum() == 1 << 21
    before = resident(tmp_path / "file.safetensors")
    native.forget(values)
    assert resident(tmp_path / "file.safetensors") <= before - 2000
    assert values.sum() == 1 << 21


def resident(path: Path) -> int:
    """KiB of a mapped file that are in memory."""
    parts = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(int(part.split("Rss:")[1].split()[0]) for part in parts)


def test_what_is_kept_and_zero_stays_kept(kernels):
    weight_OI = pruned((16, 64), "2:4")
    weight_OI[:, :4] *= 1e-30
    packed = pack(weight_OI, "int8")
    assert (packed.values == 0).sum() >= 16 * 2
    assert same(native.restore(native.prepare(packed)), packed)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", native.KINDS)
def test_activations_that_are_no_numbers_give_no_numbers(kernels, kind, bad):
    prepared = native.prepare(pack(pruned((16, 64), "dense"), kind))
    assert not native.matvec(prepared, torch.full((1, 64), bad), None, 16).isfinite().any()


def test_a_variable_chooses_the_kernels(monkeypatch):
    packed = pack(pruned((16, 64), "50%"))
    monkeypatch.setenv(native.VARIABLE, "none")
    assert native.prepare(packed) is None
    assert not native.wanted()
    monkeypatch.setenv(native.VARIABLE, "avx1024")
    with pytest.raises(RessaError, match="unknown set of kernels in RESSA_KERNELS 'avx1024'"):
        native.prepare(packed)
    monkeypatch.delenv(native.VARIABLE)
    assert native.chosen() != "scalar"


def test_without_a_library_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    assert native.prepare(pack(pruned((16, 64), "50%"))) is None
    assert "C++ compiler" in native.why_none()
    with pytest.raises(RessaError, match="load its folder again"):
        native.restore(torch.zeros(1024, dtype=torch.uint8))


def test_what_is_no_prepared_weight_is_refused(kernels):
    prepared = native.prepare(pack(pruned((16, 64), "50%")))
    for other in (prepared[:-1], prepared[:64], torch.zeros_like(prepared)):
        with pytest.raises(RessaError, match="no prepared weight"):
            native.matvec(other, torch.ones(1, 64), None, 16)
    with pytest.raises(RessaError, match="1 to 8 tokens"):
        native.matvec(prepared, torch.ones(9, 64), None, 16)


def test_every_source_is_built_with_the_package():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for path in (*KERNELS.glob("*.cpp"), *KERNELS.glob("*.h")):
        assert f'"src/ressa/packed/kernels/{path.name}"' in text
