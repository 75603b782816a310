"""Each set held to the plain kernels, weight by weight (`kernels_check.cpp`): under sanitizers, NEON emulated."""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ressa.packed

SOURCES = sorted((Path(ressa.packed.__file__).parent / "kernels").glob("*.cpp"))
CHECK, DRIVER = (Path(__file__).with_name(f"kernels_{name}.cpp") for name in ("check", "driver"))
SANITIZERS = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CANNOT_RUN = 77


def built(compiler: str, folder: Path, programs: tuple[Path, ...], *flags: str) -> list[Path]:
    """These programs with all sets that the compiler builds; the files are compiled once, two at a time."""
    common = [compiler, "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", *flags]
    common.append(f"-I{SOURCES[0].parent}")
    outputs = {source: folder / f"{source.stem}.o" for source in (*SOURCES, *programs)}

    def compiled(source: Path) -> int:
        return subprocess.run([*common, "-c", source, "-o", outputs[source]]).returncode

    with ThreadPoolExecutor(2) as both:
        assert list(both.map(compiled, outputs)) == [0] * len(outputs)
    kernels = [outputs[source] for source in SOURCES]
    for program in programs:
        linked = [*common, *kernels, outputs[program], "-o", folder / program.stem]
        done = subprocess.run(linked, capture_output=True, text=True)
        if "cannot find -lasan" in done.stderr or "libasan" in done.stderr:
            pytest.skip("this g++ has no sanitizers")
        assert done.returncode == 0, done.stderr
    return [folder / program.stem for program in programs]


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> list[Path]:
    compiler = shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        pytest.skip("no g++ on Linux to build the kernels with sanitizers")
    return built(compiler, tmp_path_factory.mktemp("check"), (CHECK, DRIVER), *SANITIZERS)


@pytest.fixture(scope="module")
def program(programs) -> Path:
    return programs[0]


@pytest.fixture(scope="module")
def driver(programs) -> Path:
    return programs[1]


@pytest.mark.parametrize("name", ["avx512", "avx2"])
def test_a_set_restores_unpacks_and_multiplies_as_the_plain_one_under_the_sanitizers(name, program):
    ran = subprocess.run([program, name], capture_output=True, text=True, check=False)
    if ran.returncode == CANNOT_RUN:
        pytest.skip(f"this processor has no {name}")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]


def test_neon_restores_unpacks_and_multiplies_as_the_plain_set_in_the_emulator(tmp_path):
    tools = [shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")]
    if None in tools:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user")
    (program,) = built(tools[0], tmp_path, (CHECK,), "-O2", "-static")
    ran = subprocess.run([tools[1], program, "neon"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(driver, count):
    """How many of so many crafted weights."""
    words = run(driver, "fuzz", count).split()
    assert words[1:] == ["of", str(count), "refused"]
    return int(words[0])


def test_all_sets_agree_with_plain_arithmetic_under_the_sanitizers(driver):
    assert "scalar" in run(driver, "check")


def test_crafted_weights_are_refused_or_harmless(driver):
    assert 0 < refused(driver, 2000) < 2000


@pytest.mark.slow
def test_a_hundred_thousand_crafted_weights_are_refused_or_harmless(driver):
    assert 0 < refused(driver, 100_000) < 100_000
