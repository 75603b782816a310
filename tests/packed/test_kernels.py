"""Each set held to the plain kernels, weight by weight (`kernels_check.cpp`): under sanitizers, NEON emulated."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import ressa.packed

SOURCES = sorted((Path(ressa.packed.__file__).parent / "kernels").glob("*.cpp"))
CHECK = Path(__file__).with_name("kernels_check.cpp")
SANITIZERS = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CANNOT_RUN = 77


def built(compiler: str, folder: Path, *flags: str) -> Path:
    """The program of `CHECK` with all sets that the compiler builds; its files are compiled side by side."""
    common = [
        compiler,
        "-std=c++17",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        *flags,
        f"-I{SOURCES[0].parent}",
    ]
    outputs = {source: folder / f"{source.stem}.o" for source in (*SOURCES, CHECK)}
    jobs = [subprocess.Popen([*common, "-c", source, "-o", output]) for source, output in outputs.items()]
    assert [job.wait() for job in jobs] == [0] * len(jobs)
    subprocess.run([*common, *outputs.values(), "-o", folder / "check"], check=True)
    return folder / "check"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        pytest.skip("no g++ on Linux to build the kernels with sanitizers")
    return built(compiler, tmp_path_factory.mktemp("check"), *SANITIZERS)


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
    program = built(tools[0], tmp_path, "-O2", "-static")
    ran = subprocess.run([tools[1], program, "neon"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
