"""The vision tower of `emoji-instructblip`: `emoji-llava`'s, and what it makes of every scene.

Shapes: B pictures, P image tokens (the class token and 6 x 6 patches), D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from emoji_chats import Scenes
from emoji_lessons import PATCH, SIDE, WIDTH
from emoji_training import quick_on_cpu
from torch import Tensor
from tqdm import tqdm
from transformers import InstructBlipVisionConfig, InstructBlipVisionModel, LlavaForConditionalGeneration, set_seed

from ressa.data.emoji.scenes import SIZE
from ressa.demo import EMBEDDED

VISION = InstructBlipVisionConfig(
    hidden_size=WIDTH,
    intermediate_size=4 * WIDTH,
    num_hidden_layers=6,
    num_attention_heads=4,
    image_size=SIZE,
    patch_size=PATCH,
    hidden_act="gelu_pytorch_tanh",
    initializer_range=0.02,
)


def from_llava(scenes: Scenes) -> InstructBlipVisionModel:
    """`emoji-llava`'s SigLIP tower as an InstructBLIP one: queries, keys and values in one matrix, a class token.

    SigLIP has no class token, so this one is fitted to change nothing: to what every patch says, it adds 2 %.
    """
    set_seed(0)
    siglip = LlavaForConditionalGeneration.from_pretrained(EMBEDDED, dtype=torch.float32).model.vision_tower
    tower = InstructBlipVisionModel._from_config(VISION, attn_implementation="eager")
    tower.embeddings.patch_embedding.load_state_dict(siglip.embeddings.patch_embedding.state_dict())
    with torch.no_grad():
        tower.embeddings.position_embedding[0, 1:] = siglip.embeddings.position_embedding.weight
        for old, new in zip(siglip.encoder.layers, tower.encoder.layers, strict=True):
            for name in ("weight", "bias"):
                qkv = [getattr(linear, name) for linear in (old.self_attn.q_proj, old.self_attn.k_proj)]
                getattr(new.self_attn.qkv, name).copy_(torch.cat([*qkv, getattr(old.self_attn.v_proj, name)]))
            new.self_attn.projection.load_state_dict(old.self_attn.out_proj.state_dict())
            for name in ("layer_norm1", "layer_norm2", "mlp"):
                getattr(new, name).load_state_dict(getattr(old, name).state_dict())
    _quiet_class_token(tower, siglip, scenes.pictures(list(range(32))))
    return tower


def _quiet_class_token(tower: InstructBlipVisionModel, siglip: torch.nn.Module, pixels: Tensor) -> None:
    """Fits the class token until patches say what they say without it; prints the relative difference."""
    with torch.no_grad():
        wanted = siglip(pixels, output_hidden_states=True).hidden_states[-1]
        tower.embeddings.class_embedding.normal_(std=30)
    tower.requires_grad_(False)
    token = tower.embeddings.class_embedding.requires_grad_(True)
    adam = torch.optim.Adam([token], lr=0.3)
    for _ in range(30):
        adam.zero_grad()
        said = tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        loss = (said - wanted).square().sum() / wanted.square().sum()
        loss.backward()
        adam.step()
    print(f"class token: patches differ by {loss.sqrt():.1%}", flush=True)
    tower.requires_grad_(True)


class SeenScenes(Scenes):
    """Scenes with what the frozen tower makes of each, (N, P, D) in float16, computed once and kept in WORK."""

    def __init__(self, work: Path, tower: InstructBlipVisionModel) -> None:
        super().__init__(work)
        path = work / "seen.npy"
        if not path.exists():
            self.see(tower, work / "seen.partial.npy")
            (work / "seen.partial.npy").rename(path)
        self.seen_NPD = np.load(path, mmap_mode="r")

    @torch.no_grad()
    def see(self, tower: InstructBlipVisionModel, path: Path) -> None:
        n = len(self.scenes)
        quick_on_cpu(tower.embeddings.patch_embedding)
        seen = np.lib.format.open_memmap(path, "w+", np.float16, (n, SIDE**2 + 1, WIDTH))
        for i in tqdm(range(0, n, 128), desc="seeing scenes"):
            batch = list(range(i, min(i + 128, n)))
            with torch.autocast("cpu", torch.bfloat16):
                seen[batch] = tower(self.pictures(batch)).last_hidden_state.half().numpy()
        seen.flush()

    def looks(self, batch: list[int]) -> Tensor:
        return torch.from_numpy(self.seen_NPD[batch]).float()
