"""A process of `ressa.repair` (accelerate launch, gloo) whose student is sharded by FSDP2, as accelerate does on GPUs.

On CPUs accelerate itself offers DDP alone: sharding is put in its place here, block by block. Arguments: pruned, out,
teacher, data, settings as JSON.
"""

from __future__ import annotations

import json
import sys

import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ressa
from ressa.repairing.trainer import Adaptation, sharded

create = Adaptation.create_optimizer


def create_optimizer(self, *args, **kwargs):
    """The optimiser of a model that is sharded first."""
    if not sharded(self.model):
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for module in [m for m in self.model.modules() if type(m).__name__ in self.model._no_split_modules]:
            fully_shard(module, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        own = sum(p.to_local().numel() for p in self.model.parameters())
        print(f"holds {own / sum(p.numel() for p in self.model.parameters()):.2f}", flush=True)
    return create(self, *args, **kwargs)


if __name__ == "__main__":
    Adaptation.create_optimizer = create_optimizer
    Accelerator.prepare_model = lambda self, model, *args, **kwargs: model
    pruned, out, teacher, data, settings = sys.argv[1:]
    ressa.repair(pruned, out, teacher=teacher, data=data, **json.loads(settings))
