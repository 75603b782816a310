"""What a step of repair is reckoned to take is held against what it takes: operations, and the bytes of all tensors."""

from __future__ import annotations

import pytest
import torch
from measured import Peak, counting
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, Trainer

import ressa
from ressa import machine
from ressa.costs.repairing import Way, repair_bytes, repair_flop
from ressa.costs.shapes import Workload, shape_of, sizes_of
from ressa.data.emoji import write
from ressa.demo import EMBEDDED
from ressa.model.load import load
from ressa.model.structure import structure
from ressa.repairing.trainer import Adaptation

SIDE, PATCH = 96, 8
AGAIN = {"gradient_checkpointing": True}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a LLaVA whose blocks, not embeddings, are most of what a step holds: dense, pruned, data."""
    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(EMBEDDED)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.max_position_embeddings = 256, 704, 6, 512
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 4, 2, 64
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, vision.num_attention_heads = 192, 768, 4, 4
    vision.image_size, vision.patch_size, config.image_seq_length = SIDE, PATCH, (SIDE // PATCH) ** 2
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder / "dense")
    processor = AutoProcessor.from_pretrained(EMBEDDED)
    processor.image_processor.size, processor.patch_size = {"height": SIDE, "width": SIDE}, PATCH
    processor.save_pretrained(folder / "dense")
    ressa.prune(folder / "dense", folder / "pruned", method="magnitude")
    write(folder / "data", train=16, validation=1, test=1)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float32", "gradient_checkpointing": False},
        pytest.param({"dtype": "bfloat16", "gradient_checkpointing": False}, marks=pytest.mark.slow),
        pytest.param({"dtype": "float32", **AGAIN}, marks=pytest.mark.slow),
        {"dtype": "bfloat16", **AGAIN},
        {"dtype": "bfloat16", **AGAIN, "micro_batch": 2},
        {"dtype": "float32", **AGAIN, "teacher_cache": "said"},
        pytest.param({"dtype": "bfloat16", **AGAIN, "kl_weight": 0.0, "hidden_weight": 0.0}, marks=pytest.mark.slow),
        {"dtype": "bfloat16", **AGAIN, "adapter": "masked-ft"},
    ],
    ids=lambda settings: ", ".join(map(str, settings.values())),
)
def test_the_memory_of_repair_is_foretold(settings, work, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "slower", lambda dtype: 1.0)
    monkeypatch.chdir(tmp_path)
    seen, train = {}, Trainer.train

    def measured(self, *args, **kwargs):
        models = [self.model, getattr(self.teacher, "model", None)]
        stores = [x.untyped_storage() for m in models if m is not None for x in [*m.parameters(), *m.buffers()]]
        before = sum({store.data_ptr(): store.nbytes() for store in stores}.values())
        with Peak() as peak:
            done = train(self, *args, **kwargs)
        seen["bytes"] = before + peak.most
        return done

    monkeypatch.setattr(Trainer, "train", measured)
    settings = {"teacher": work / "dense", "data": work / "data", "batch_size": 8, "steps": 2} | settings
    told = ressa.repair(work / "pruned", tmp_path / "out", **settings)["memory"]
    assert told["reckoned_bytes"] == pytest.approx(seen["bytes"], rel=0.15)


def test_matrices_that_are_trained_themselves_are_wider_than_they_are_stored():
    net, _ = load("demo")
    sizes, asked = sizes_of(net, structure(net), 2), Workload(4, 4, 32, 36, 2)
    for width, wider in ((2, 2000), (4, 0)):
        frozen, trained = (
            repair_bytes(sizes, asked, Way(width), 100, sizes.trained + more)["student"] for more in (0, 1000)
        )
        assert trained - frozen == wider


def test_the_work_of_repair_is_foretold(tmp_path, tiny_data, monkeypatch):
    ressa.prune("demo", tmp_path / "pruned", method="magnitude")
    seen: dict[str, float] = {}
    _count_a_step(monkeypatch, seen)
    asked_for = {"teacher": "demo", "data": tiny_data, "batch_size": 12, "steps": 1, "dtype": "float32"}
    ressa.repair(tmp_path / "pruned", tmp_path / "out", **asked_for)
    net, _ = load("demo")
    blocks = structure(net).blocks(("vision", "language"))
    shapes, head = [shape_of(block) for block in blocks], net.get_output_embeddings().weight.numel()
    asked = Workload(12, 12, int(seen["tokens"]), 36, seen["answers"] / 12)
    assert repair_flop(shapes, asked, rank=16, head=head, teacher=True) == pytest.approx(seen["flop"], rel=0.06)


def _count_a_step(monkeypatch, seen):
    """Puts what one training step takes into `seen`."""
    loss, step = Adaptation.compute_loss, Trainer.training_step

    def listening(self, model, inputs, *args, **kwargs):
        seen["tokens"], seen["answers"] = inputs["labels"].shape[1], int((inputs["labels"] != -100).sum())
        return loss(self, model, inputs, *args, **kwargs)

    def counted(self, *args, **kwargs):
        with counting() as flop:
            found = step(self, *args, **kwargs)
        seen["flop"] = flop.get_total_flops()
        return found

    monkeypatch.setattr(Adaptation, "compute_loss", listening)
    monkeypatch.setattr(Trainer, "training_step", counted)
