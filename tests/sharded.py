"""Two processes (torchrun) with SparseLoRA under FSDP2: gradients and weights of one process with both batches."""

from __future__ import annotations

import peft
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from ressa.repairing.sparse_lora import SparseLoraConfig

LINEARS = ["q_proj", "gate_proj", "down_proj"]
TOLERANCE = 1e-5  # of the largest gradient: float32 sums in another order


def adapted() -> peft.PeftModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(linear in name for linear in LINEARS):
                weight[:, ::2] = 0
        model = peft.get_peft_model(model, SparseLoraConfig(rank=4, alpha=8, target_modules=LINEARS))
        for name, weight in model.named_parameters():
            if "sparselora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    return model


def main() -> None:
    dist.init_process_group("gloo")
    ids_BT = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(1))
    whole, sharded = adapted(), adapted()
    for layer in sharded.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    steps = []
    for model, own_BT in ((whole, ids_BT), (sharded, ids_BT.chunk(2)[dist.get_rank()])):
        steps.append(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2))
        model(input_ids=own_BT, labels=own_BT).loss.backward()
    trained = [(p, q) for p, q in zip(whole.parameters(), sharded.parameters(), strict=True) if p.requires_grad]
    for p, q in trained:
        torch.testing.assert_close(q.grad.full_tensor(), p.grad, rtol=0, atol=TOLERANCE * p.grad.abs().max().item())
    for step in steps:
        step.step()
    for p, q in trained:
        torch.testing.assert_close(q.full_tensor(), p, rtol=0, atol=1e-6)
    dist.destroy_process_group()
    print(f"compared {len(trained)}")


if __name__ == "__main__":
    main()
