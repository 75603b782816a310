"""What is said of a measurement: where a model pays, where not, and where nobody can tell."""

from __future__ import annotations

import copy

from PIL import Image
from rich.console import Console

from ressa.reporting.bench import lines, plot, table


def spread(value, by=0.01):
    return {"median": value, "min": value * (1 - by), "max": value * (1 + by)}


def model(**other):
    return {
        "disk_bytes": 4 << 30,
        "parameter_bytes": 4 << 30,
        "peak_bytes": spread(5 << 30),
        "load_seconds": spread(2.0),
        "prefill_seconds": spread(3.0),
        "prompt_tokens": 99,
        "tokens_per_second": {"1": spread(3.0), "8": spread(20.0)},
        "bound": 1.0,
    } | other


def result(**other):
    return {
        "models": {"dense": model(), "packed": model(**other)},
        "against": "dense",
        "machine": {"processor": "a processor", "device": "cpu", "compute": "bfloat16", "threads": 2},
    }


def test_what_pays_what_does_not_and_what_the_repetitions_cannot_tell_apart_is_said():
    rates = {"1": spread(9.0), "8": spread(10.0)}
    found = result(
        disk_bytes=1 << 30, prefill_seconds=spread(6.0), tokens_per_second=rates, load_seconds=spread(4.0, by=0.9)
    )
    (line,) = lines(found)
    assert line.startswith("packed, beside dense: pays in bytes on disk (4.00 x), decode at batch 1 (3.00 x);")
    assert "no clear difference in bytes in RAM (1.00 x), peak memory (1.00 x), loading (0.50 x);" in line
    assert line.endswith("does not pay in prefill (0.50 x), decode at batch 8 (0.50 x)")


def test_without_a_dense_model_nothing_is_judged():
    assert not list(lines(result() | {"against": None}))


def test_the_table_has_a_row_a_model_and_how_many_times_as_fast_it_is():
    rates = {"1": spread(9.0), "8": spread(10.0)}
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table(result(tokens_per_second=rates, bound=2.5)))
    told = captured.get()
    for text in ("a processor, cpu, bfloat16, 2 threads", "packed", "3.00 x", "0.50 x", "2.50 x", "4 GiB"):
        assert text in told


def test_the_plot_is_a_picture_whatever_a_model_is_called(tmp_path):
    found = result()
    found["models"]["$odd_{name\x1b"] = copy.deepcopy(found["models"]["packed"])
    with Image.open(plot(found, tmp_path / "bench.png")) as picture:
        assert picture.width > picture.height > 100
