"""What `inspect --plan` tells of pruning is held against the largest resident set of a process that prunes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

import pico
from ressa import plan

SAMPLES, TOKENS = 4, 32
PRUNES = """
import json, sys, ressa
told = ressa.prune(*sys.argv[1:3], data=sys.argv[3], method=sys.argv[4], samples=int(sys.argv[5]), threads=1)
print("\\n" + json.dumps(told["peak_memory_bytes"]))
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A LLaVA with language blocks of 50 million parameters, in bfloat16."""
    folder = pico.llava(tmp_path_factory.mktemp("heavy") / "model")
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 2048, 5504, 16, 16
    text.head_dim, text.vocab_size, text.num_hidden_layers = 128, 32000, 2
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the largest resident set anew")
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_the_largest_resident_set_is_foretold_within_15_per_cent(method, heavy, tiny_data, tmp_path):
    command = [sys.executable, "-c", PRUNES, heavy, tmp_path / "out", tiny_data, method, SAMPLES]
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    told = plan(heavy, samples=SAMPLES, tokens=TOKENS)
    foretold = told["process"] + told["steps"][f"prune: {method}"]["bytes"]
    assert json.loads(ran.stdout.splitlines()[-1]) == pytest.approx(foretold, rel=0.15)
