"""Each script in `examples/` goes through on a small model of its family: pruned, repaired, asked."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import ProcessorMixin
from transformers.models.smolvlm import processing_smolvlm

import pico
import pico_examples
from ressa.data.prompts import encode
from ressa.data.records import read_records
from ressa.model.folder import read_manifest
from ressa.model.load import load

EXAMPLES = Path(__file__).parents[1] / "examples"
BUILDERS = {
    "llava_1_5": pico.llava,
    "blip2": pico.blip2_t5,
    "instructblip": pico.instructblip_llama,
    **pico_examples.BUILDERS,
}


@pytest.fixture(autouse=True)
def _pictures_only(monkeypatch):
    """Without torchvision transformers makes no video processors; the processors of these tests go without them.

    SmolVLM's also wants num2words, for the length of videos.
    """
    attributes = ProcessorMixin.get_attributes.__func__
    still = classmethod(lambda cls: [name for name in attributes(cls) if name != "video_processor"])
    monkeypatch.setattr(ProcessorMixin, "get_attributes", still)
    init = processing_smolvlm.SmolVLMProcessor.__init__
    monkeypatch.setattr(init, "__defaults__", (None, *init.__defaults__))  # its video processor has no default
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    frames = SimpleNamespace(num_frames=1, fps=1)  # which its chat template is given, and does not look at
    monkeypatch.setattr(processing_smolvlm.SmolVLMProcessor, "video_processor", frames, raising=False)


@pytest.mark.parametrize("family", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_prunes_repairs_and_asks_a_model_of_its_family(family, tmp_path, tiny_data, monkeypatch, capsys):
    model, out = BUILDERS[family](tmp_path / "model"), tmp_path / "out"
    words = [model, "--data", tiny_data, "--out", out, "--samples", 4, "--steps", 2, "--limit", 2]
    monkeypatch.setattr("sys.argv", ["example", *map(str, words)])
    runpy.run_path(str(EXAMPLES / f"{family}.py"), run_name="__main__")
    told = [line for line in capsys.readouterr().out.splitlines() if "exact match" in line]
    assert [line.partition(":")[0] for line in told][1:] == [str(out / "pruned"), str(out / "repaired")]
    before, after = (read_manifest(out / name) for name in ("pruned", "repaired"))
    zeros = [{name: entry["zeros"] for name, entry in told["matrices"].items()} for told in (before, after)]
    assert zeros[0] == zeros[1]
    assert sum(zeros[0].values())


def test_paligemma_reads_its_prompt_both_ways_and_its_answer_from_left_to_right(tmp_path, tiny_data):
    model, processor = load(pico_examples.paligemma2(tmp_path / "model"))
    processor.chat_template = "<image>answer en {{ messages[0]['content'][-1]['text'] }}"
    records = read_records(tiny_data, "train")[:2]  # of different lengths
    batch = encode(processor, records, model.config, answers=True)
    assert torch.equal(batch["token_type_ids"] == 1, batch["labels"] != -100)
    for row, record in enumerate(records):
        alone = encode(processor, [record], model.config, answers=True)
        length = alone["input_ids"].shape[1]
        for key in ("input_ids", "token_type_ids", "labels"):
            assert torch.equal(batch[key][row, :length], alone[key][0])
        assert not batch["attention_mask"][row, length:].any()
        assert torch.equal(batch["pixel_values"][row], alone["pixel_values"][0])


def test_every_example_has_a_model_to_run_on():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == BUILDERS.keys()
