"""One model, measured once, in the process that `python -m ressa.benching.measure JOB` is, so that its peak is its own.

Generation is transformers' `generate`, greedy. A logits processor looks at the clock at every token: prefill is the
time from the call to the first token's logits, a decoded token is a share of the time from there to the last one's.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LogitsProcessor, LogitsProcessorList

from ressa.benching.prompt import prompt
from ressa.benching.settings import Bench
from ressa.data.prompts import encode, to_device, tokenizer_of
from ressa.errors import RessaError, RessaWarning, one_line
from ressa.machine import Machine, check_machine, decide, found, peak_memory
from ressa.model.load import load
from ressa.packed.linear import PackedLinear
from ressa.settings import Runtime


def measure(model: str, data: str | None, settings: Bench, runtime: Runtime) -> dict[str, Any]:
    """What one load, one warm-up and one timed generation at each batch size came to.

    Computed in the dtype that `runtime` names; `auto` is bfloat16 where the device multiplies it natively, else
    float32, whatever is stored: the fastest here.

    Returns:
        {"load_seconds", "prefill_seconds", "tokens_per_second": {batch size: of all rows together}, "prompt_tokens",
         "parameter_bytes": of all parameters and buffers in memory, "read_bytes": of those that decoding one token
         reads, "dense_bytes": as many if no layer were packed, "peak_bytes", "machine"}

    Raises:
        RessaError: the model cannot be loaded, or its processor or `generate` fails on the prompt.
    """
    check_machine(runtime.device, runtime.dtype, runtime.threads)
    where, dtype = decide(runtime.device, runtime.dtype, torch.bfloat16, found())
    started = time.perf_counter()
    net, processor = load(model, dtype=dtype, device=where)
    told: dict[str, Any] = {"load_seconds": time.perf_counter() - started}
    record = prompt(data, settings.split)
    one, more = ([record] * count for count in (1, settings.batch_size))
    batch = to_device(encode(processor, one, net.config, answers=False), net)
    pad = tokenizer_of(processor).pad_token_id
    told |= {"prompt_tokens": batch["input_ids"].shape[1]} | _bytes(net, _decoding(net, batch, pad), dtype)
    told["prefill_seconds"], seconds = timed(net, batch, settings.tokens, pad)
    told["tokens_per_second"] = {"1": 1 / seconds}
    if settings.batch_size > 1:
        batch = to_device(encode(processor, more, net.config, answers=False), net)
        told["tokens_per_second"][str(len(more))] = len(more) / timed(net, batch, settings.tokens, pad)[1]
    chosen = Machine(torch.device(where), dtype, dtype).describe()
    return told | {"peak_bytes": peak_memory(), "machine": {k: v for k, v in chosen.items() if k != "stored"}}


class Clock(LogitsProcessor):
    """The time at which each token's logits were there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores.flatten()[0].item()  # an accelerator is waited for
        self.times.append(time.perf_counter())
        return scores


def timed(net: Any, batch: dict[str, Tensor], tokens: int, pad: int | None, clock: Clock | None = None) -> Any:
    """(seconds of the prompt, seconds of each further token of all rows). Raises RessaError if it ends too early."""
    clock = clock or Clock()
    how = {"do_sample": False, "num_beams": 1, "min_new_tokens": tokens, "max_new_tokens": tokens}
    with torch.inference_mode():
        started = time.perf_counter()
        net.generate(**batch, **how, pad_token_id=pad, logits_processor=LogitsProcessorList([clock]))
    if len(clock.times) < tokens:
        raise RessaError(f"its generate ended after {len(clock.times)} of {tokens} tokens: ask for fewer (--tokens)")
    return clock.times[0] - started, (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)


def _decoding(net: Any, batch: dict[str, Tensor], pad: int | None) -> set[nn.Module]:
    """The modules that a decoded token goes through, found in the warm-up: vision is not among them."""
    called: set[nn.Module] = set()

    class Forgetful(Clock):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            if not self.times:  # what the prompt went through
                called.clear()
            return super().__call__(input_ids, scores)

    hook = register_module_forward_pre_hook(lambda module, _: called.add(module))
    try:
        timed(net, batch, 2, pad, Forgetful())
    finally:
        hook.remove()
    return called


def _bytes(net: nn.Module, decoding: set[nn.Module], dtype: torch.dtype) -> dict[str, int]:
    """Of tensors in memory; tied ones count once."""
    held = {(tensor.data_ptr(), tensor.nbytes) for tensor in (*net.parameters(), *net.buffers())}
    read = dense = 0
    for module in decoding:
        if isinstance(module, nn.Embedding):  # a row of it
            continue
        own = sum(tensor.nbytes for tensor in (*module.parameters(False), *module.buffers(False)))
        read += own
        dense += own
        if isinstance(module, PackedLinear):
            bias = sum(tensor.nbytes for tensor in module.parameters(False))
            dense += module.out_features * module.in_features * dtype.itemsize + bias - own
    return {"parameter_bytes": sum(size for _, size in held), "read_bytes": read, "dense_bytes": dense}


@contextmanager
def _collected() -> Iterator[list[str]]:
    """The texts of RessaWarnings within."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught if issubclass(w.category, RessaWarning)]


def main(job: str) -> int:
    """Measures what `job` names, as JSON, and prints what came of it, as JSON, on the last line."""
    asked = json.loads(job)
    with _collected() as said:
        try:
            told = measure(asked["model"], asked["data"], Bench(**asked["settings"]), Runtime(**asked["runtime"]))
        except RessaError as error:
            told = {"error": str(error)}
        except (RuntimeError, TypeError, ValueError, MemoryError) as error:  # of the model, on what it is given
            told = {"error": f"cannot be measured: {type(error).__name__}: {one_line(error)}"}
    print(json.dumps(told | {"warnings": said}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
