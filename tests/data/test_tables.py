import datasets
import pytest
from PIL import Image

from ressa.data.records import read_records
from ressa.errors import RessaError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "images" / "a.png")
    return tmp_path


def table(folder):
    image = str(folder / "images" / "a.png")
    columns = {"image": [image, image], "question": ["What colour?", "Red?"], "answer": ["red", "yes"]}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def test_a_dataset_in_memory_is_read_as_it_stands(folder):
    records = read_records(table(folder).select([1, 0]))
    assert [r.target for r in records] == ["yes", "red"]
    assert records[0].open_image().size == (6, 4)


def test_a_dataset_saved_by_datasets_is_read_by_split(folder, tmp_path_factory):
    saved = tmp_path_factory.mktemp("saved") / "set"
    datasets.DatasetDict({"train": table(folder), "test": table(folder).select([1])}).save_to_disk(str(saved))
    (folder / "images" / "a.png").unlink()  # the saved folder holds the pictures itself
    records = read_records(saved, "test")
    assert [r.question for r in records] == ["Red?"]
    assert records[0].open_image().size == (6, 4)
    with pytest.raises(RessaError, match="did you mean 'test'"):
        read_records(saved, "tset")


def test_a_dataset_of_chat_messages_with_a_list_of_pictures_is_read(folder):
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What colour?"}]
    answer = [{"type": "text", "text": "red"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    features = datasets.Features(
        {
            "messages": datasets.List(
                {
                    "role": datasets.Value("string"),
                    "content": datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")}),
                }
            ),
            "images": datasets.List(datasets.Image()),
        }
    )
    rows = {"messages": [messages], "images": [[str(folder / "images" / "a.png")]]}
    record = read_records(datasets.Dataset.from_dict(rows, features=features))[0]
    assert (record.question, record.target, record.open_image().size) == ("What colour?", "red", (6, 4))


def test_a_dataset_whose_picture_file_is_gone_is_refused_when_reading(folder):
    rows = table(folder)
    (folder / "images" / "a.png").unlink()
    with pytest.raises(RessaError, match=r"dataset:0: image .*does not exist"):
        read_records(rows)


def test_what_is_no_dataset_is_refused(folder):
    with pytest.raises(RessaError, match=r"expected a folder, a \.jsonl file or a datasets\.Dataset, not int"):
        read_records(3)
