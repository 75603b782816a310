"""Where and in what is computed: one table of choices, weights that are cast once, progress in a log file."""

from __future__ import annotations

import platform
import subprocess
import sys
import warnings

import pytest
import torch

import forked
import ressa
import second_device
from ressa import machine
from ressa.cli.lines import Lines
from ressa.errors import RessaError, RessaWarning
from ressa.machine import Found, Machine, cpu_has_bf16, decide
from ressa.model.folder import patterns_of, read_manifest, zeros
from ressa.model.load import load, load_to_ask
from ressa.model.precision import cast_back, dtypes_of
from ressa.repairing.stages import Where

pytestmark = pytest.mark.formats

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
OLD_CPU = Found({}, frozenset())
NEW_CPU = Found({}, frozenset({"cpu"}))
OLD_GPU = Found({"cuda": 2}, frozenset())  # before Ampere
NEW_GPU = Found({"cuda": 2}, frozenset({"cuda"}))
INTEL = Found({"xpu": 1}, frozenset({"xpu", "cpu"}))
MAC = Found({"mps": 1}, frozenset({"mps"}))


@pytest.mark.parametrize(
    ("there", "stored", "asked", "chosen"),
    [
        (OLD_CPU, F32, ("auto", "auto"), ("cpu", F32)),
        (OLD_CPU, BF16, ("auto", "auto"), ("cpu", F32)),
        (OLD_CPU, F16, ("auto", "auto"), ("cpu", F32)),
        (OLD_CPU, BF16, ("auto", "bfloat16"), ("cpu", BF16)),
        (NEW_CPU, F32, ("auto", "auto"), ("cpu", F32)),
        (NEW_CPU, BF16, ("auto", "auto"), ("cpu", BF16)),
        (NEW_CPU, F16, ("auto", "auto"), ("cpu", F32)),
        (NEW_CPU, BF16, ("cpu", "float32"), ("cpu", F32)),
        (NEW_CPU, F32, ("auto", "bfloat16"), ("cpu", BF16)),
        (OLD_GPU, BF16, ("auto", "auto"), ("cuda", F32)),
        (OLD_GPU, F16, ("auto", "auto"), ("cuda", F16)),
        (OLD_GPU, BF16, ("cpu", "auto"), ("cpu", F32)),
        (NEW_GPU, BF16, ("auto", "auto"), ("cuda", BF16)),
        (NEW_GPU, F32, ("auto", "auto"), ("cuda", F32)),
        (NEW_GPU, BF16, ("cuda:1", "auto"), ("cuda:1", BF16)),
        (NEW_GPU, BF16, ("cuda:1", "float16"), ("cuda:1", F16)),
        (NEW_GPU, BF16, ("cpu", "auto"), ("cpu", F32)),
        (INTEL, BF16, ("auto", "auto"), ("xpu", BF16)),
        (INTEL, BF16, ("cpu", "auto"), ("cpu", BF16)),
        (MAC, F16, ("auto", "auto"), ("mps", F16)),
        (MAC, BF16, ("mps", "auto"), ("mps", BF16)),
    ],
)
def test_the_policy_is_a_table(there, stored, asked, chosen):
    assert decide(*asked, stored, there) == chosen


@pytest.mark.parametrize("device", ["cuda", "cuda:2", "tpu", "cuda:-1", "cuda:x", "meta", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    there = NEW_GPU if device != "cuda" else NEW_CPU
    with pytest.raises(RessaError, match=r"is not on this machine, which has cpu(, cuda:0, cuda:1)?$"):
        decide(device, "auto", F32, there)


def test_an_unknown_dtype_is_refused_with_the_nearest():
    with pytest.raises(RessaError, match="did you mean 'bfloat16'"):
        decide("auto", "bfloat", F32, NEW_CPU)


@pytest.mark.parametrize(
    ("onednn", "avx512_bf16", "amx", "architecture", "capability", "native"),
    [
        (True, True, True, "x86_64", "AVX512", True),  # Sapphire Rapids
        (True, True, False, "AMD64", "AVX512", True),  # Zen 4, Windows
        (True, False, False, "x86_64", "AVX512", False),  # Skylake: oneDNN does it by float32
        (False, False, False, "x86_64", "AVX2", False),  # Zen 3
        (False, True, True, "x86_64", "AVX512", False),  # ONEDNN_MAX_CPU_ISA=AVX2
        (True, True, True, "x86_64", "DEFAULT", False),  # ATEN_CPU_CAPABILITY=default
        (True, False, False, "aarch64", "SVE256", True),  # Graviton 3
        (False, False, False, "arm64", "DEFAULT", False),  # Apple
    ],
)
def test_a_cpu_has_bfloat16_where_its_instructions_and_onednn_say_so(
    onednn, avx512_bf16, amx, architecture, capability, native
):
    assert cpu_has_bf16(onednn, avx512_bf16, amx, architecture, capability) == native


@pytest.mark.parametrize(
    "hidden", [{"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, {"ATEN_CPU_CAPABILITY": "default"}]
)
def test_the_variables_that_hide_instructions_make_this_machine_one_without_bfloat16(hidden):
    if platform.machine().lower() in ("aarch64", "arm64"):
        pytest.skip("these variables are those of x86-64")
    code = "from ressa.machine import found; print('cpu' in found().native_bf16)"
    done = subprocess.run([sys.executable, "-c", code], env=hidden, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("stored", "compute", "working", "autocast"),
    [(BF16, F32, F32, None), (BF16, BF16, BF16, None), (F32, BF16, F32, BF16), (F16, BF16, F32, BF16)],
)
def test_weights_are_never_narrower_than_what_is_stored(stored, compute, working, autocast):
    chosen = Machine(torch.device("cpu"), compute, stored)
    assert (chosen.working, chosen.autocast) == (working, autocast)


def test_a_slow_dtype_that_is_asked_for_is_a_warning_with_the_ratio_and_auto_none(monkeypatch):
    monkeypatch.setattr(machine, "found", lambda: OLD_CPU)
    monkeypatch.setattr(machine, "slower", lambda dtype: 58.3)
    with pytest.warns(RessaWarning, match="dtype bfloat16: this processor multiplies it 58 times slower"):
        machine.machine("auto", "bfloat16", BF16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in ("auto", "float32"):
            assert machine.machine("auto", dtype, BF16).compute == F32


def test_the_ratio_is_measured_on_one_thread_and_leaves_the_threads_as_they_were(monkeypatch):
    threads, product = [], torch.nn.functional.linear

    def counted(*tensors):
        threads.append(torch.get_num_threads())
        return product(*tensors)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    torch.set_num_threads(2)
    try:
        assert machine.slower.__wrapped__(torch.float64) > 0
        assert (set(threads), torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bf16_folder(models_root, llava_folder):
    folder = models_root / "llava-bf16"
    model, processor = load(llava_folder)
    model.to(BF16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["magnitude", "admm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_keeps_the_folders_dtype_whatever_is_computed_in(
    dtype, method, bf16_folder, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(machine, "slower", lambda dtype: 1.0)
    told = ressa.prune(
        bf16_folder, tmp_path / "out", data=tiny_data, method=method, sparsity="2:4", samples=4, dtype=dtype
    )
    assert (told["machine"]["compute"], told["machine"]["stored"]) == (dtype, "bfloat16")
    assert told["machine"]["processor"]
    model, _ = load(tmp_path / "out")
    assert dtypes_of(model) == dtypes_of(load(bf16_folder)[0])
    on_disk = zeros(tmp_path / "out")
    assert {on_disk[name].sparsity for name in told["matrices"]} == {0.5}


def test_a_float32_folder_pruned_in_bfloat16_products_keeps_its_other_weights_to_the_bit(
    llava_folder, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(machine, "slower", lambda dtype: 1.0)
    weights = {}
    for dtype in ("float32", "bfloat16"):
        ressa.prune(
            llava_folder, tmp_path / dtype, data=tiny_data, method="admm", sparsity="2:4", samples=4, dtype=dtype
        )
        weights[dtype] = load(tmp_path / dtype)[0].state_dict()
    dense, pruned = load(llava_folder)[0].state_dict(), patterns_of(read_manifest(tmp_path / "bfloat16"))
    left = [name for name in dense if name.removesuffix(".weight") not in pruned]
    assert all(torch.equal(dense[name], weights["bfloat16"][name]) for name in left)
    assert any(not torch.equal(weights["float32"][name], weights["bfloat16"][name]) for name in dense)


def test_models_that_are_asked_come_in_the_dtype_of_the_products(bf16_folder, llava_folder, monkeypatch):
    monkeypatch.setattr(machine, "slower", lambda dtype: 1.0)
    for folder, dtype, stored in ((bf16_folder, "float32", BF16), (llava_folder, "bfloat16", F32)):
        model, _, chosen = load_to_ask(folder, "cpu", dtype)
        assert (model.dtype, chosen.compute, chosen.stored) == (machine.DTYPES[dtype], machine.DTYPES[dtype], stored)


def test_a_weight_too_small_for_its_dtype_stays_a_weight():
    net = torch.nn.Sequential(torch.nn.Linear(4, 1, bias=False))
    net[0].weight.data = torch.tensor([[1e-30, 0.0, 1.0, 0.0]])
    cast_back(net, {"0.weight": F16}, ["0"])
    assert net[0].weight.dtype == F16
    assert (net[0].weight != 0).tolist() == [[True, False, True, False]]


def test_repair_takes_float16_for_bfloat16_where_that_is_native_else_for_float32(llava_folder, monkeypatch):
    model = load(llava_folder)[0].half()
    for there, device, compute in ((OLD_CPU, "cpu", F32), (NEW_CPU, "cpu", F32), (NEW_GPU, "cuda", BF16)):
        for module in (machine, sys.modules["ressa.repairing.stages"]):
            monkeypatch.setattr(module, "found", lambda there=there: there)
        model.config.dtype = F16
        assert Where(device, "auto").machine(model).compute == compute


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [("cuda:1", "auto", "CUDA_VISIBLE_DEVICES=1"), ("auto", "float16", "take bfloat16 or float32")],
)
def test_what_repair_cannot_train_on_or_in_is_refused(device, dtype, message, llava_folder, tiny_data, tmp_path):
    with pytest.raises(RessaError, match=message):
        ressa.repair(llava_folder, tmp_path, teacher=llava_folder, data=tiny_data, device=device, dtype=dtype)
    with pytest.raises(RessaError, match="contradict"):
        ressa.repair(llava_folder, tmp_path, teacher=llava_folder, data=tiny_data, dtype="float32", bf16=True)


def test_blocks_are_pruned_on_a_second_device_as_on_the_first(llava_folder, tiny_data, tmp_path):
    child = forked.Forked(tmp_path / "said.txt", second_device.main, llava_folder, tiny_data, tmp_path)
    assert child.wait() == 0, child.text()


# ---- threads and progress --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"OMP_WAIT_POLICY": "active"}, "None"), ({"GOMP_SPINCOUNT": "9"}, "9")]
)
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(given, spins):
    code = "import ressa, os, sys; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins


def test_a_log_file_gets_at_most_a_line_every_ten_seconds(capsys):
    now = 0.0
    bar = Lines(clock=lambda: now)
    prune, repair = bar("pruning"), bar("repair")
    for second in range(26):
        now = second
        prune(second, 100, f"block {second}")
        repair(second, None, "repair, loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pruning: 10 of 100 (10%), 0:01:30 left, block 10",
        "pruning: 20 of 100 (20%), 0:01:20 left, block 20",
    ]


def test_time_left_counts_only_what_this_run_did(capsys):
    now = 0.0
    update = Lines(clock=lambda: now)("repair")
    update(80, 100, "repair")
    now = 10.0
    update(90, 100, "repair, loss 0.25")
    assert capsys.readouterr().err == "repair: 90 of 100 (90%), 0:00:10 left, loss 0.25\n"


def test_a_warning_of_ours_is_one_line_on_the_command_line(bf16_folder, tiny_data, monkeypatch, capsys):
    from ressa import cli

    monkeypatch.setattr(machine, "found", lambda: OLD_CPU)
    monkeypatch.setattr(machine, "slower", lambda dtype: 58.3)
    words = ["evaluate", str(bf16_folder), "--data", str(tiny_data), "--limit", "1", "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["ressa", *words])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
    err = capsys.readouterr().err
    assert err.startswith("ressa: warning: dtype bfloat16: this processor multiplies it 58 times slower")
    assert len(err.splitlines()) == 1
