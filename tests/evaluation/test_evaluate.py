import json
import math
import sys

import pytest
import torch

from ressa import evaluate
from ressa.answering import generate as generating
from ressa.answering.generate import Generation, answers, fingerprint
from ressa.data.prompts import encode
from ressa.data.records import Record, read_records
from ressa.errors import RessaError
from ressa.model.load import load

FAMILIES = ["llava", "blip2_opt", "blip2_t5", "instructblip_t5", "instructblip_llama", "causal_lm"]


@pytest.fixture(params=FAMILIES)
def loaded(request):
    return load(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture
def llava(llava_folder):
    return load(llava_folder)


@pytest.fixture
def records(tiny_data):
    return read_records(tiny_data, "test")


@pytest.fixture
def calls(monkeypatch):
    """The records that the model is really asked, batch by batch."""
    asked, real = [], generating.generate

    def spy(model, processor, records, how):
        asked.append([record.id for record in records])
        return real(model, processor, records, how)

    monkeypatch.setattr(generating, "generate", spy)
    return asked


@torch.inference_mode()
def greedy(model, processor, record, steps):
    """The plainest greedy decoding: the whole sequence through forward for each token."""
    batch = encode(processor, [record], model.config, answers=False)
    encoder_decoder = getattr(model.config.get_text_config(), "is_encoder_decoder", False)
    said = [0] if encoder_decoder else []  # T5 starts with its pad token
    for _ in range(steps):
        now = torch.tensor([said], dtype=torch.long)
        if encoder_decoder:
            logits = model(**batch, decoder_input_ids=now).logits
        else:
            ids = torch.cat([batch["input_ids"], now], 1)
            logits = model(**batch | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] == 2:
            break
    tokenizer = getattr(processor, "tokenizer", processor)
    return tokenizer.decode(said, skip_special_tokens=True).strip()


def test_batched_answers_are_those_of_plain_greedy_decoding_one_by_one(loaded, records):
    model, processor = loaded
    batched = answers(model, processor, records[:4], None, batch_size=4, how=Generation(5))
    assert batched == {r.id: greedy(model, processor, r, 5) for r in records[:4]}


def test_answers_come_in_the_order_of_the_records_whatever_the_batches(llava, records):
    said = answers(*llava, records, None, batch_size=3, how=Generation(4))
    assert list(said) == [r.id for r in records]
    assert said == answers(*llava, records, None, batch_size=1, how=Generation(4))


def test_progress_is_told_up_to_the_end(llava, records):
    told = []
    answers(*llava, records, None, batch_size=3, how=Generation(2), progress=lambda *step: told.append(step))
    assert told == [(0, 8, "answering"), (3, 8, "answering"), (6, 8, "answering"), (8, 8, "answering")]


def test_what_asks_nothing_cannot_be_answered(llava, causal_lm_folder, tiny_data):
    with pytest.raises(RessaError, match="'t' asks nothing"):
        answers(*llava, [Record("t", None, ("one two",))])
    with pytest.raises(RessaError, match="asks nothing"):  # a caption of a picture that the model cannot see
        answers(*load(causal_lm_folder), read_records(tiny_data, "captions"))


def test_a_second_run_asks_nothing_again(llava, records, calls, tmp_path):
    first = answers(*llava, records, tmp_path / "deep" / "cache.jsonl", 3, Generation(4))
    done = len(calls)
    assert answers(*llava, records, tmp_path / "deep" / "cache.jsonl", 3, Generation(4)) == first
    assert len(calls) == done == 3


def test_a_killed_run_goes_on_where_it_was(llava, records, calls, tmp_path, monkeypatch):
    cache, spy = tmp_path / "cache.jsonl", generating.generate

    def killed(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return spy(*args)

    monkeypatch.setattr(generating, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        answers(*llava, records, cache, 3, Generation(4))
    monkeypatch.setattr(generating, "generate", spy)
    said = answers(*llava, records, cache, 3, Generation(4))
    assert sorted([i for batch in calls for i in batch]) == sorted(r.id for r in records)  # each was asked once
    assert said == answers(*llava, records, None, 3, Generation(4))


@pytest.mark.parametrize("kept", [5, -1, -2, -20])
def test_a_line_cut_off_by_a_kill_is_asked_again_and_spoils_no_other(llava, records, calls, tmp_path, kept):
    cache = tmp_path / "cache.jsonl"
    first = answers(*llava, records, cache, 8, Generation(4))
    whole = cache.read_bytes()
    cache.write_bytes(whole[:kept])
    del calls[:]
    assert answers(*llava, records, cache, 8, Generation(4)) == first
    asked = [i for batch in calls for i in batch]
    assert len(asked) == {5: 8, -1: 0, -2: 1, -20: 1}[kept]
    del calls[:]
    assert answers(*llava, records, cache, 8, Generation(4)) == first
    assert calls == []


def test_a_stale_cache_is_never_used(llava, tiny_data, tmp_path, calls, monkeypatch):
    model, processor = llava
    cache = tmp_path / "cache.jsonl"

    def asked_anew(records, n=4):
        del calls[:]
        answers(model, processor, records, cache, 8, Generation(n))
        return len(calls) > 0

    records = read_records(tiny_data, "test")[:2]
    assert asked_anew(records)
    assert not asked_anew(records)
    assert asked_anew(records, n=5)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert asked_anew(records)
    model.generation_config.repetition_penalty = 1.5
    assert asked_anew(records)
    processor.chat_template = processor.chat_template.replace("ASSISTANT", "A")
    assert asked_anew(records)
    processor.image_processor.do_normalize = False
    assert asked_anew(records)
    moved = tmp_path / "data"
    (moved / "images").mkdir(parents=True)
    for record in records:
        record.open_image().transpose(0).save(moved / "images" / record.image.path.name)
    (moved / "test.jsonl").write_text("\n".join((tiny_data / "test.jsonl").read_text().splitlines()[:2]))
    assert asked_anew(read_records(moved, "test"))
    assert not asked_anew(read_records(moved, "test"))


def test_a_copied_model_folder_has_the_same_fingerprint(llava_folder, tmp_path):
    import shutil

    shutil.copytree(llava_folder, tmp_path / "copy")
    assert fingerprint(*load(llava_folder)) == fingerprint(*load(tmp_path / "copy"))
    half = load(llava_folder, dtype=torch.bfloat16)
    assert fingerprint(*half) != fingerprint(*load(llava_folder))


def test_using_the_tokenizer_does_not_change_the_fingerprint(llava, records):
    before = fingerprint(*llava)
    llava[1].tokenizer(["a", "a b c"], padding=True, truncation=True)
    answers(*llava, records[:2], None, 2, Generation(2))
    assert fingerprint(*llava) == before


def test_evaluating_leaves_a_model_in_training_mode_as_it_was_but_without_dropout(llava, records):
    model, processor = llava
    want = answers(model, processor, records[:3], None, 3, Generation(4))
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert answers(model, processor, records[:3], None, 3, Generation(4)) == want
    assert model.training


def test_scores_per_kind_make_up_the_whole(llava_folder, llava, tiny_data, records):
    perturbed = llava[0]
    with torch.no_grad():
        for parameter in perturbed.parameters():
            parameter.mul_(1.1)
    scores = evaluate(llava_folder, data=tiny_data, against=(perturbed, llava[1]), max_new_tokens=3)
    assert list(scores["answers"]) == [r.id for r in records]
    assert scores["n"] == 8
    assert {kind: part["n"] for kind, part in scores["by_kind"].items()} == {"colour": 4, "shape": 4}
    for name in ("exact_match", "vqa_accuracy"):
        mean = sum(part[name] * part["n"] for part in scores["by_kind"].values()) / 8
        assert scores[name] == pytest.approx(mean)
    assert min(part["kl"] for part in scores["by_kind"].values()) <= scores["kl"]
    assert scores["kl"] <= max(part["kl"] for part in scores["by_kind"].values())
    assert scores["prompt"] == "USER: <image>\nIs the red thing a square or a circle? ASSISTANT: "
    assert scores["settings"]["do_sample"] is False


def test_right_answers_score_one_and_wrong_ones_nothing(llava, tiny_data, records, monkeypatch):
    right = {r.id: f" {r.target.upper()}. " if r.kind == "shape" else "purple" for r in records}
    monkeypatch.setattr(generating, "generate", lambda m, p, batch, n: [right[r.id] for r in batch])
    scores = evaluate(llava, data=tiny_data)
    assert scores["by_kind"]["shape"] == {"n": 4, "exact_match": 1, "vqa_accuracy": 1, "kl": None}
    assert scores["by_kind"]["colour"] == {"n": 4, "exact_match": 0, "vqa_accuracy": 0, "kl": None}
    assert scores["exact_match"] == 0.5


def test_captions_are_scored_as_their_own_kind(llava, tiny_data):
    scores = evaluate(llava, data=tiny_data, split="captions", max_new_tokens=2)
    assert list(scores["by_kind"]) == ["caption"]


def test_scores_and_answers_are_written_beside_each_other(llava, tiny_data, tmp_path):
    scores = evaluate(llava, data=tiny_data, out=tmp_path / "new" / "out", max_new_tokens=2)
    written = json.loads((tmp_path / "new" / "out" / "scores.json").read_text())
    assert written == {"command": "evaluate"} | {k: v for k, v in scores.items() if k != "answers"}
    rows = [json.loads(line) for line in (tmp_path / "new" / "out" / "answers.jsonl").read_text().splitlines()]
    assert {row["id"]: row["answer"] for row in rows} == scores["answers"]
    assert {"question", "references", "kind", "exact_match", "vqa_accuracy"} <= set(rows[0])
    assert not list((tmp_path / "new" / "out").glob("*.partial"))


def test_grey_pictures_change_what_the_model_sees_and_are_cached_apart(llava, tiny_data, tmp_path, monkeypatch):
    seen, real = [], generating.generate

    def spy(model, processor, records, n):
        seen.extend(record.open_image().getcolors(10_000) for record in records)
        return real(model, processor, records, n)

    monkeypatch.setattr(generating, "generate", spy)
    evaluate(llava, data=tiny_data, out=tmp_path, limit=3)
    del seen[:]
    scores = evaluate(llava, data=tiny_data, out=tmp_path, limit=3, grey=True)
    assert [[colour for _, colour in colours] for colours in seen] == [[(128, 128, 128)]] * 3
    assert scores["grey"] is True


def test_a_limit_scores_the_same_random_subset_each_time(llava, tiny_data):
    first, again = (evaluate(llava, data=tiny_data, limit=3, max_new_tokens=1)["answers"] for _ in range(2))
    assert first == again
    assert len(first) == 3
    assert list(first) != ["test-1", "test-2", "test-3"]


def test_a_text_only_model_is_evaluated_on_the_questions(causal_lm_folder, tiny_data):
    scores = evaluate(causal_lm_folder, data=tiny_data, max_new_tokens=2, against=causal_lm_folder)
    assert scores["kl"] == 0
    assert math.isfinite(scores["exact_match"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"limit": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"split": "tset"}, r"no tset\.jsonl"),
        ({"data": "/nowhere"}, "no such data folder"),
        ({"out": __file__}, "is a file"),
        ({"out": f"{__file__}/below"}, "is a file"),
    ],
)
def test_wrong_uses_are_refused_before_any_weight_is_loaded(tiny_data, tmp_path, monkeypatch, options, named):
    monkeypatch.setattr(sys.modules["ressa.evaluation.verb"], "load_to_ask", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(RessaError, match=named):
        evaluate("some/model", **{"data": tiny_data, "out": tmp_path / "out"} | options)
    assert not (tmp_path / "out").exists()


def test_a_corrupt_picture_ends_the_evaluation_with_its_name_and_no_scores(llava, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    (tmp_path / "test.jsonl").write_text('{"image": "bad.png", "question": "?", "answer": "a"}\n')
    with pytest.raises(RessaError, match=r"test\.jsonl:1: image .*bad\.png"):
        evaluate(llava, data=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
