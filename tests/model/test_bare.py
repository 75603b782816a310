"""Text-only families that keep or read their weights in their own way: heard, placed, or refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BartConfig, BartForCausalLM, BartForConditionalGeneration

import pico
import ressa
from families.shrink import pico_config
from ressa.calibration.bare import BareReads
from ressa.errors import RessaError

OWN = {
    "mamba": {"time_step_rank": 4, "state_size": 4, "intermediate_size": 128},
    "jamba": {
        "num_hidden_layers": 2,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
    },
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 4, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32},
}


def built(model_type, folder):
    config = pico_config(model_type, **OWN.get(model_type, {}))
    config.vocab_size = len(pico.tokenizer())
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).eval().save_pretrained(folder)
    pico.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path):
    lines = [json.dumps({"question": f"Is it {i}?", "answer": "a blue square"[: 3 + i]}) for i in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_weights_that_are_multiplied_without_a_call_are_heard_from_either_side():
    torch.manual_seed(0)
    linears = {name: nn.Linear(3, 4, bias=False) for name in ("left", "right", "functional", "idle")}
    x_BTI = torch.randn(2, 5, 3)
    with torch.no_grad(), BareReads(linears) as watch:
        linears["left"].weight @ x_BTI.mT
        torch.matmul(x_BTI, linears["right"].weight.T)
        nn.functional.linear(x_BTI, linears["functional"].weight)
        x_BTI @ torch.randn(3, 4)
    assert watch.reads.keys() == {"left", "right", "functional"}
    assert all(torch.equal(found[0], x_BTI) for found in watch.reads.values())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model_type", ["mamba", "jamba", "modernbert-decoder", "longcat_flash"])
def test_a_family_is_pruned_for_its_inputs_everywhere(model_type, tmp_path, text):
    folder = built(model_type, tmp_path / "model")
    told = ressa.prune(folder, tmp_path / "out", data=text, method="sparsegpt", sparsity=0.5)
    assert all(entry["sparsity"] == pytest.approx(0.5, abs=0.05) for entry in told["matrices"].values())
    if model_type in ("mamba", "jamba"):
        assert any(name.endswith("dt_proj") for name in told["matrices"])


def test_what_dt_proj_reads_is_what_its_product_gets(tmp_path, text):
    """Wanda on Mamba's `dt_proj` keeps the weights that count most by the inputs of the very product."""
    folder = built("mamba", tmp_path / "model")
    ressa.prune(folder, tmp_path / "out", data=text, method="wanda", sparsity=0.5, propagate="dense", batch_size=1)
    dense, pruned = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (folder, tmp_path / "out"))
    tokenizer, squares_I = pico.tokenizer(), 0
    mixer = dense.backbone.layers[0].mixer
    mixer.x_proj.register_forward_hook(lambda module, args, y: seen.append(y[..., : mixer.time_step_rank]))
    for line in text.joinpath("train.jsonl").read_text().splitlines():
        seen: list = []
        told = json.loads(line)
        answer = tokenizer(f" {told['answer']}", add_special_tokens=False)["input_ids"]
        ids = [*tokenizer(told["question"])["input_ids"], *answer, tokenizer.eos_token_id]
        with torch.no_grad():
            dense(torch.tensor([ids]))
        squares_I = squares_I + seen[0].square().sum((0, 1))
    score_OI = mixer.dt_proj.weight.abs() * squares_I.sqrt()
    kept_OI = pruned.backbone.layers[0].mixer.dt_proj.weight != 0
    best_OI = torch.zeros_like(kept_OI).scatter_(1, score_OI.topk(2, dim=1).indices, True)
    assert (kept_OI == best_OI).float().mean() > 0.98


def test_experts_that_are_handed_sorted_tokens_are_refused_by_name(tmp_path):
    with pytest.raises(RessaError, match="JetMoeParallelExperts keeps experts in a way that ressa does not know"):
        ressa.inspect(built("jetmoe", tmp_path))


def bart(**changes):
    sides = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sides |= {f"{side}_ffn_dim": 16 for side in ("encoder", "decoder")}
    return BartConfig(d_model=8, vocab_size=len(pico.tokenizer()), max_position_embeddings=64, **sides, **changes)


def test_an_encoder_decoder_of_text_is_no_causal_model(tmp_path):
    BartForConditionalGeneration(bart()).save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RessaError, match=r"an encoder-decoder of text alone \(bart\)"):
        ressa.inspect(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_layer_that_no_record_can_reach_is_told_so_and_magnitude_still_prunes_it(tmp_path, text):
    """BART as a causal model has cross-attention, and nothing to look across at."""
    BartForCausalLM(bart(is_decoder=True, is_encoder_decoder=False)).save_pretrained(tmp_path / "model")
    pico.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(RessaError, match=r"encoder_attn.*though its block runs.*or prune by magnitude"):
        ressa.prune(tmp_path / "model", tmp_path / "out", data=text, method="wanda", sparsity=0.5)
    ressa.prune(tmp_path / "model", tmp_path / "out", method="magnitude", sparsity=0.5)
