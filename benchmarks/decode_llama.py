"""llama.cpp on random weights of a Llama shape: `python decode_llama.py FILE KIND CONFIG THREADS TOKENS`.

For a Python of its own with `llama-cpp-python` and `gguf`; benchmarks/decode.py calls it. Writes FILE if it is not
there: all matrices of KIND (Q8_0 or Q4_0), the last one in Q8_0; blocks of random integers with one small scale, for
the time does not depend on them. Prompt: 100 tokens; then TOKENS more, each the likeliest. Prints JSON: tokens per
second from the logits of the first to those of the last, as `ressa bench` counts.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

PROMPT = 100
BLOCKS = {"Q8_0": 32, "Q4_0": 16}  # bytes of 32 weights, behind a float16 scale


def matrix(rng: Any, rows: int, columns: int, kind: str) -> Any:
    """(rows, bytes): random blocks."""
    blocks = rng.integers(0, 256, (rows, columns // 32, 2 + BLOCKS[kind]), dtype=np.uint8)
    scale = np.array([0.02 / (127 if kind == "Q8_0" else 8)], np.float16).view(np.uint8)
    blocks[:, :, :2] = scale
    return blocks.reshape(rows, -1)


def write(file: Path, kind: str, shape: dict[str, Any]) -> None:
    writer = GGUFWriter(str(file), "llama")
    hidden, inner, blocks, words = (
        shape[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    writer.add_block_count(blocks)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(float(shape["rope_theta"]))
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("none")
    rng, kinds = np.random.default_rng(0), GGMLQuantizationType

    def add(name: str, rows: int, columns: int, kind: str = kind) -> None:
        writer.add_tensor(f"{name}.weight", matrix(rng, rows, columns, kind), raw_dtype=kinds[kind])

    add("token_embd", words, hidden)
    add("output", words, hidden, "Q8_0")
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for block in range(blocks):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{block}.{name}", hidden, hidden)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{block}.{name}", inner, hidden)
        add(f"blk.{block}.ffn_down", hidden, inner)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decode(file: Path, words: int, threads: int, tokens: int) -> dict[str, Any]:
    llama_cpp.llama_backend_init()
    started = time.perf_counter()
    how = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), how)
    how = llama_cpp.llama_context_default_params()
    how.n_ctx, how.n_threads, how.n_threads_batch = 512, threads, threads
    context = llama_cpp.llama_init_from_model(model, how)
    told = {"load_seconds": time.perf_counter() - started, "file_bytes": file.stat().st_size}

    def run(ids: list[int]) -> int:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama_decode failed")
        pointer = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(pointer, (words,)).argmax())

    prompt = np.random.default_rng(1).integers(0, words, PROMPT).tolist()
    run(prompt[:2])  # warm
    started = time.perf_counter()
    token = run(prompt)
    first = time.perf_counter()
    for _ in range(tokens - 1):
        token = run([token])
    told |= {"prefill_seconds": first - started, "tokens_per_second": (tokens - 1) / (time.perf_counter() - first)}
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    system = llama_cpp.llama_print_system_info().decode()
    return told | {"peak_bytes": 1024 * int(peak[1]), "version": llama_cpp.__version__, "system": system}


if __name__ == "__main__":
    path, kind, config, threads, tokens = sys.argv[1:]
    shape, quiet = json.loads(config), llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    if not Path(path).exists():
        write(Path(path), kind, shape)
    print(json.dumps(decode(Path(path), shape["vocab_size"], int(threads), int(tokens))))
