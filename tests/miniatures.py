"""Miniatures of the benchmarks: a few records in each one's official file format, about emoji scenes.

`scenes(root)` draws the pictures; each builder writes the files of one task into a folder and returns it. The records
look like the publishers' own, also where ressa does not read a field.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets

from ressa.data.emoji import write


@dataclass(frozen=True)
class Scene:
    """A picture, questions about it with their right answers, and a caption."""

    picture: Path
    questions: list[tuple[str, str]]
    caption: str


def scenes(root: Path, count: int = 4) -> list[Scene]:
    write(root, train=1, validation=1, test=count, questions=3)
    found: dict[str, Scene] = {}
    captions = [json.loads(line) for line in (root / "test_captions.jsonl").read_text().splitlines()]
    told = {raw["image"]: raw["caption"] for raw in captions}
    for line in (root / "test.jsonl").read_text().splitlines():
        raw = json.loads(line)
        scene = found.setdefault(raw["image"], Scene(root / raw["image"], [], told[raw["image"]]))
        scene.questions.append((raw["question"], raw["answer"]))
    return list(found.values())[:count]


def dump(path: Path, told: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told), encoding="utf-8")


def copy(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(scene.picture, path)


def _vqa_pair(root: Path, scenes: list[Scene], questions: str, annotations: str, kinds: list[tuple[str, str]]) -> None:
    asked, told = [], []
    for number, scene in enumerate(scenes):
        copy(scene, root / "val2014" / f"COCO_val2014_{number:012d}.jpg")
        for part, (question, answer) in enumerate(scene.questions):
            answer_type, question_type = kinds[part % len(kinds)]
            answers = [answer] * 6 + ["something else"] * 4
            listed = [
                {"answer": text, "answer_confidence": "yes", "answer_id": i + 1} for i, text in enumerate(answers)
            ]
            key = {"image_id": number, "question_id": number * 1000 + part}
            asked.append(key | {"question": question})
            kind = {"question_type": question_type, "answer_type": answer_type}
            told.append(key | kind | {"multiple_choice_answer": answer, "answers": listed})
    head = {"info": {"version": "2.0"}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    dump(root / questions, head | {"task_type": "Open-Ended", "questions": asked})
    names = {"question_types": {"one": "Vehicles and Transportation", "four": "Plants and Animals"}}
    dump(root / annotations, head | names | {"annotations": told})


def vqav2(root: Path, scenes: list[Scene]) -> Path:
    kinds = [("other", "what is"), ("yes/no", "is there a"), ("number", "how many")]
    names = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
    _vqa_pair(root, scenes, *names, kinds)
    return root


def okvqa(root: Path, scenes: list[Scene]) -> Path:
    names = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
    _vqa_pair(root, scenes, *names, [("other", "one"), ("other", "four")])
    return root


def gqa(root: Path, scenes: list[Scene]) -> Path:
    questions = {}
    for number, scene in enumerate(scenes):
        copy(scene, root / "images" / f"n{number}.jpg")
        for part, (question, answer) in enumerate(scene.questions):
            types = {"detailed": "existC", "semantic": "obj", "structural": ["query", "verify", "choose"][part]}
            questions[f"2013{number}{part}"] = {
                "semantic": [{"operation": "select", "dependencies": [], "argument": "thing (1)"}],
                "entailed": [],
                "equivalent": [],
                "question": question,
                "imageId": f"n{number}",
                "isBalanced": True,
                "groups": {"global": "", "local": "1"},
                "answer": answer,
                "fullAnswer": f"It is {answer}.",
                "types": types,
            }
    dump(root / "testdev_balanced_questions.json", questions)
    return root


def textvqa(root: Path, scenes: list[Scene]) -> Path:
    data = []
    for number, scene in enumerate(scenes):
        copy(scene, root / "train_images" / f"{number:016x}.jpg")
        question, answer = scene.questions[0]
        data.append(
            {
                "question": question,
                "image_id": f"{number:016x}",
                "image_classes": ["Toy"],
                "answers": [answer] * 9 + ["answering does not require reading text in the image"],
                "question_tokens": question.lower().split(),
                "question_id": 34602 + number,
                "set_name": "val",
            }
        )
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    dump(root / "TextVQA_0.5.1_val.json", head | {"data": data})
    return root


def nocaps(root: Path, scenes: list[Scene]) -> Path:
    images, annotations = [], []
    for number, scene in enumerate(scenes):
        name = f"{number:016x}.jpg"
        copy(scene, root / "val" / name)
        domain = ["in-domain", "near-domain", "out-domain"][number % 3]
        sizes = {"width": 96, "height": 96, "license": 0, "date_captured": "2018-11-06 11:04:33"}
        images.append({"id": number, "open_images_id": name[:-4], "file_name": name, "domain": domain} | sizes)
        for part, caption in enumerate((scene.caption, f"a picture of {scene.caption}")):
            annotations.append({"image_id": number, "id": number * 10 + part, "caption": caption})
    dump(
        root / "nocaps_val_4500_captions.json",
        {"licenses": [], "info": {}, "images": images, "annotations": annotations},
    )
    return root


def _karpathy(root: Path, scenes: list[Scene], name: str, folder: str, filepath: bool) -> Path:
    images = []
    for number, scene in enumerate(scenes):
        file = f"{'COCO_val2014_' if filepath else ''}{number:012d}.jpg"
        copy(scene, root / folder / file)
        texts = [scene.caption, f"a drawing: {scene.caption}."]
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": number * 10 + i}
            for i, text in enumerate(texts)
        ]
        image = {"sentids": [s["sentid"] for s in sentences], "imgid": number, "sentences": sentences}
        image |= {"split": "test" if number else "train", "filename": file}
        images.append(image | ({"filepath": folder, "cocoid": number} if filepath else {}))
    dump(root / f"dataset_{name}.json", {"images": images, "dataset": name})
    return root


def coco(root: Path, scenes: list[Scene]) -> Path:
    return _karpathy(root, scenes, "coco", "val2014", True)


def flickr30k(root: Path, scenes: list[Scene]) -> Path:
    return _karpathy(root, scenes, "flickr30k", "flickr30k-images", False)


def flickr30k_tokens(root: Path, scenes: list[Scene]) -> Path:
    lines = []
    for number, scene in enumerate(scenes):
        copy(scene, root / "flickr30k-images" / f"{number}.jpg")
        lines += [f"{number}.jpg#{i}\t{scene.caption} ." for i in range(5)]
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "test.txt").write_text("1\n2\n", encoding="utf-8")
    return root


def pope(root: Path, scenes: list[Scene]) -> Path:
    for drawn in ("random", "popular", "adversarial"):
        lines, number = [], 0
        for index, scene in enumerate(scenes):
            name = f"COCO_val2014_{index:012d}.jpg"
            copy(scene, root / "val2014" / name)
            for question, answer in scene.questions:
                if answer in ("yes", "no"):
                    number += 1
                    lines.append({"question_id": number, "image": name, "text": question, "label": answer})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"coco_pope_{drawn}.json").write_text(text, encoding="utf-8")
    return root


def scienceqa(root: Path, scenes: list[Scene]) -> Path:
    problems = {}
    for number, scene in enumerate(scenes, 1):
        if number > 1:  # the first has no picture
            copy(scene, root / "test" / str(number) / "image.png")
        question, answer = scene.questions[0]
        choices = ["a cloud of steam", answer] if number % 2 else [answer, "a cloud of steam", "nothing"]
        problems[str(number)] = {
            "question": question,
            "choices": choices,
            "answer": choices.index(answer),
            "hint": "Look closely." if number == 2 else "",
            "image": "image.png" if number > 1 else None,
            "task": "closed choice",
            "grade": f"grade{number}",
            "subject": "natural science",
            "topic": "biology",
            "category": "Animals",
            "skill": "Name it",
            "lecture": "",
            "solution": "",
            "split": "test",
        }
    dump(root / "problems.json", problems)
    dump(root / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})
    return root


def mmbench(root: Path, scenes: list[Scene]) -> Path:
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]
    lines = ["\t".join([*head, "comment", "split"])]
    for number, scene in enumerate(scenes):
        question, answer = scene.questions[0]
        picture = base64.b64encode(scene.picture.read_bytes()).decode()
        for turn in range(2):
            options = ["steam", answer] if turn else [answer, "steam"]
            row = [str(turn * 1_000_000 + number), question, "", *options, "", ""]
            row += ["B" if turn else "A", "object_localization", str(number) if turn else picture, "drawn"]
            lines.append("\t".join([*row, "finegrained_perception", "", "dev"]))
    root.mkdir(parents=True, exist_ok=True)
    (root / "mmbench_dev_20230712.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def mmmu(root: Path, scenes: list[Scene]) -> Path:
    features = {f"image_{i}": datasets.Image() for i in range(1, 8)}
    texts = ("id", "question", "options", "explanation", "img_type", "answer", "topic_difficulty", "question_type")
    features |= {name: datasets.Value("string") for name in (*texts, "subfield")}
    for subject in ("Art_Theory", "Biology"):
        rows = []
        for number, scene in enumerate(scenes):
            question, answer = scene.questions[number % 2]
            row = dict.fromkeys(features) | {"id": f"validation_{subject}_{number}", "subfield": subject}
            row |= {"question": f"<image 1> {question}", "explanation": "", "img_type": "['Drawings']"}
            row |= {"options": str([answer, "steam"]), "answer": "A", "question_type": "multiple-choice"}
            row |= {"topic_difficulty": "Easy", "image_1": str(scene.picture)}
            if number == 1:
                row |= {"options": "[]", "answer": answer, "question_type": "open"}
            if number == 2:
                row |= {"image_2": str(scene.picture)}
            rows.append(row)
        table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        (root / subject).mkdir(parents=True)
        table.to_parquet(root / subject / "validation-00000-of-00001.parquet")
    return root


def folder(root: Path, scenes: list[Scene]) -> Path:
    lines = []
    for number, scene in enumerate(scenes):
        copy(scene, root / "images" / f"{number}.png")
        for question, answer in scene.questions:
            lines.append({"image": f"images/{number}.png", "question": question, "answer": answer})
    (root / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


BUILDERS: dict[str, Callable[[Path, list[Scene]], Path]] = {
    "folder": folder,
    "vqav2": vqav2,
    "okvqa": okvqa,
    "gqa": gqa,
    "textvqa": textvqa,
    "nocaps": nocaps,
    "coco": coco,
    "flickr30k": flickr30k,
    "flickr30k-retrieval": flickr30k,
    "pope": pope,
    "scienceqa": scienceqa,
    "mmbench": mmbench,
    "mmmu": mmmu,
}
