import pytest
import torch

from ressa.calibration.samples import mixture, samples
from ressa.data.records import read_records
from ressa.errors import RessaError
from ressa.model.load import load


@pytest.fixture(scope="module")
def loaded(llava_folder):
    return load(llava_folder)


def drawn(loaded, source, n, **options):
    model, processor = loaded
    return samples(source, processor, model.config, n, **options)


def rows(batches):
    """Every drawn sample without its padding, in a fixed order."""
    found = [
        (ids[mask.bool()].tolist(), label[label != -100].tolist(), float(pixels.sum()))
        for batch in batches
        for ids, mask, label, pixels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], batch["pixel_values"], strict=True
        )
    ]
    return sorted(found)


def test_n_samples_come_in_batches_with_their_answers(loaded, tiny_data):
    batches = drawn(loaded, tiny_data, 10, batch_size=4)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    assert all((batch["labels"] != -100).any(1).all() for batch in batches)


def test_the_same_seed_draws_the_same_samples_and_another_seed_others(loaded, tiny_data):
    first, again, other = (drawn(loaded, tiny_data, 6, seed=seed) for seed in (0, 0, 1))
    assert rows(first) == rows(again)
    assert rows(first) != rows(other)


def test_the_batch_size_changes_padding_only(loaded, tiny_data):
    assert rows(drawn(loaded, tiny_data, 9, batch_size=1)) == rows(drawn(loaded, tiny_data, 9, batch_size=4))


def test_the_subset_is_drawn_from_the_whole_split_not_its_head(loaded, tiny_data):
    head = rows(drawn(loaded, read_records(tiny_data)[:4], 4))
    assert rows(drawn(loaded, tiny_data, 4)) != head


def test_samples_are_sorted_by_length_so_that_little_is_padding(loaded, tiny_data):
    batches = drawn(loaded, tiny_data, 12, batch_size=6)  # half the questions are short, half are long
    widths = [batch["attention_mask"].shape[1] for batch in batches]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    assert (batches[0]["attention_mask"] == 0).float().mean() < 0.2


def test_a_small_dataset_gives_what_it_has(loaded, tiny_data):
    assert len(rows(drawn(loaded, tiny_data, 128, split="validation"))) == 4


def test_a_list_of_records_is_a_source_too(loaded, tiny_data):
    assert rows(drawn(loaded, read_records(tiny_data), 5)) == rows(drawn(loaded, tiny_data, 5))


def test_drawing_leaves_the_global_random_state_alone(loaded, tiny_data):
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    drawn(loaded, tiny_data, 5)
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 4, "batch_size": 0}])
def test_less_than_one_sample_or_batch_is_refused(loaded, tiny_data, wrong):
    with pytest.raises(RessaError, match="at least 1"):
        drawn(loaded, tiny_data, **wrong)


def test_a_mixture_has_its_share_of_every_split(tiny_data):
    three = mixture(tiny_data, "train:3+captions", 4, 0)
    assert [record.caption is None for record in three] == [True, True, True, False]
    assert three == mixture(tiny_data, "train:3+captions", 4, 0) != mixture(tiny_data, "train:3+captions", 4, 1)
    equal = mixture(tiny_data, "train:1+captions:1", None, 0)
    assert sum(record.caption is not None for record in equal) * 2 == len(equal) == 8
    together = read_records(tiny_data, "train+captions")
    assert mixture(tiny_data, "train+captions", None, 0) == together


@pytest.mark.parametrize(
    ("split", "n", "why"),
    [("train:0+captions", 2, "above 0"), ("train:x+captions", 2, "above 0"), ("train+captions:9", 10, "has 4 records")],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(tiny_data, split, n, why):
    with pytest.raises(RessaError, match=why):
        mixture(tiny_data, split, n, 0)
