"""The figures of ``statistics.json`` counted anew from rows and corpus, and no personal value anywhere in an artifact."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import Row, contents, corpus, corpus_of, many, record, sentence, source, statistics

from medrag import files, text
from medrag.files import Artifact
from medrag.prepare import Corpus, stages
from medrag.prepare.statistics import LENGTH_BINS


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three sources that share questions and answers; rows that every rule drops; mapped questions and documents; a row that is no row."""
    folder, draw = tmp_path_factory.mktemp("mixed"), random.Random(11)
    asked, said = [sentence(draw, 14) for _ in range(120)], [sentence(draw, 30) for _ in range(120)]
    parts = []
    for number in range(3):
        rows = [record(draw.choice(asked), draw.choice(said), department=draw.choice(("内科", "儿科", ""))) for _ in range(70)]
        rows += [record("短", said[0]), record(asked[0], "短"), record(asked[1], asked[1]), record("？", said[0]), record(asked[2], "！")]
        rows += [record(asked[3] + "，" * number, said[3], id="one"), record(asked[4], said[4 + number], id="one")]
        rows += [{"_id": f"d{number}", "title": f"第{number}篇", "text": sentence(draw, 60)}, {"question": 5}, {"no": "row"}]
        rows += [{"question": f"孕妇{sentence(draw, 10)}", "answer_ids": ["one"] if number else [], "split": ("train", "dev", "test")[number]}]
        rows += [{"question": sentence(draw, 10), "answer_ids": ["nobody"], "split": "test"}]
        parts.append(source(folder / f"part{number}.jsonl", rows))
    return corpus_of(folder, parts, dev_share=0.15, test_share=0.15, negatives=2)


def test_the_funnel_and_the_sources_add_up(mixed: Corpus) -> None:
    found = statistics(mixed.artifact)
    funnel = found["funnel"]
    assert [step["rule"] for step in funnel] == ["read", *stages.RULES]
    assert funnel[0] == {"rule": "read", "dropped": 0, "left": 3 * 77} and sum(part["records"] for part in found["sources"]) == 3 * 77
    for before, after in pairwise(funnel):
        assert after["left"] == before["left"] - after["dropped"] and after["dropped"] == found["dropped"].get(after["rule"], 0)
    assert {rule: count for rule, count in found["dropped"].items() if rule not in ("equal pair", "nearly equal pair")} == {
        "question empty": 3,
        "question too short": 3,
        "answer empty": 3,
        "answer too short": 3,
        "answer repeats the question": 3,
        "id of another record": 3,
    } | ({"question of a held-out split": lost} if (lost := found["dropped"].get("question of a held-out split")) else {})
    for part in found["sources"]:
        assert (part["records"], part["documents"], part["queries"], part["rejects"]) == (77, 1, 2, 2)
    assert found["rows"] == 3 * 80 and found["rejected_rows"] == 3 * 3 == sum(found["rejects"].values())
    assert sum(part["passages"] for part in found["sources"]) == found["passages"] == len(mixed.passages)
    assert sum(part["examples"] for part in found["sources"]) == sum(found["splits"].values())


def test_splits_labels_and_lengths_add_up(mixed: Corpus) -> None:
    found = statistics(mixed.artifact)
    splits = {"train": mixed.train, "dev": mixed.dev, "test": mixed.test}
    assert all(splits.values())
    assert found["splits"] == {split: len(examples) for split, examples in splits.items()}
    assert found["unanswerable"] == {split: sum(not example.positives for example in examples) for split, examples in splits.items()}
    assert found["labels"] == {split: dict(Counter(example.label for example in examples)) for split, examples in splits.items()}
    lengths = sorted(len(passage.text) for passage in mixed.passages)
    assert (found["passage_characters"]["max"], found["passage_characters"]["median"]) == (lengths[-1], lengths[len(lengths) // 2])
    for side in ("question", "answer"):
        assert sum(found["lengths"][side]["counts"]) == sum(found["departments"].values()) == 3 * (77 - 5)
        assert found["lengths"][side]["bins"] == list(LENGTH_BINS)
    assert found["lengths"]["question"]["counts"][2] >= 3 * 70 - 3 * 2, "most have 14 characters"
    assert found["leaks"]["found"] == 0 < found["leaks"]["pairs_checked"]


def test_lengths_by_hand(tmp_path: Path) -> None:
    sizes = [8, 9, 10, 11, 12, 40, 41]
    rows = [record(sentence(random.Random(size), 9), sentence(random.Random(100 + size), size)) for size in sizes]
    found = statistics(corpus(tmp_path, rows).artifact)["lengths"]["answer"]
    assert (found["median"], found["p95"], found["max"]) == (11, 41, 41)
    assert dict(zip(found["bins"], found["counts"], strict=True)) == dict.fromkeys(LENGTH_BINS, 0) | {10: 3, 15: 2, 40: 1, 60: 1}


def test_matrices_by_brute_force(tmp_path: Path) -> None:
    """[s][t]: rows of source s with another row of the same text in t; near ones count as the same, dropped doubles count, too."""
    draw = random.Random(12)
    asked, said = [sentence(draw, 40) for _ in range(12)], [sentence(draw, 40) for _ in range(12)]
    asked += [question[:-1] + "吗" for question in asked[:4]]
    near = {text.key(question): text.key(question)[:30] for question in asked}
    kept = [[(draw.choice(asked), draw.choice(said)) for _ in range(size)] for size in (14, 9, 5)]
    parts = [source(tmp_path / f"part{number}.jsonl", [record(*pair) for pair in rows]) for number, rows in enumerate(kept)]
    found = statistics(corpus_of(tmp_path, parts).artifact)["duplicates"]
    for side, form in (("questions", lambda pair: near[text.key(pair[0])]), ("answers", lambda pair: pair[1])):
        expected = np.zeros((3, 3), int)
        for one, rows in enumerate(kept):
            for place, pair in enumerate(rows):
                for other, others in enumerate(kept):
                    expected[one, other] += any(form(pair) == form(each) for at, each in enumerate(others) if (one, place) != (other, at))
        assert found[f"{side}_matrix"] == expected.tolist() and expected.any()
    everything = [pair for rows in kept for pair in rows]
    assert found["exact_questions"] == len(everything) - len({question for question, _ in everything})
    assert found["exact_questions"] + found["near_questions"] == len(everything) - len({near[text.key(question)] for question, _ in everything})
    assert (found["exact_answers"], found["near_answers"]) == (len(everything) - len({answer for _, answer in everything}), 0)


# -- personal data

IDENTITY = "11010519491231002X"
"""the example of GB 11643-1999, with its right checksum"""
CANARIES = {"phone": "13912345678", "id_number": IDENTITY, "email": "wang.xiaoming@example.com", "patient_name": "赵建国"}
FORMS = {
    "phone": ("电话13912345678", "电话139\u200b1234\u200b5678", "电话139<b>1234</b>5678", "电话１３９１２３４５６７８", "电话139&#49;2345678"),
    "id_number": (f"身份证{IDENTITY}", f"身份证110105<br/>{IDENTITY[6:]}", f"身份证{IDENTITY[:6]}\u200d{IDENTITY[6:]}"),
    "email": ("邮箱wang.xiaoming@example.com", "邮箱wang.xiaoming&#64;example.com", "邮箱wang.xiaoming<i>@</i>example.com"),
    "patient_name": ("患者姓名：赵建国，", "患者姓名：赵<b>建国</b>，"),
}
"""as they are, and in forms that cleaning turns into those"""


def _plain(everything: str) -> str:
    """Without tags, controls and signs: in which a value that was only disguised shows."""
    return text.key(text.clean(everything))


def _nothing_personal(artifact: Artifact) -> None:
    for name, content in contents(artifact.path).items():
        written = content.decode("utf-8")
        if name.endswith((".json", ".jsonl")):
            rows = [json.loads(written)] if name.endswith(".json") else [json.loads(line) for line in written.splitlines()]
            written = "\n".join(_texts(rows))
        for kind, value in CANARIES.items():
            assert value not in written, (name, kind)
            assert not any(text.key(value) in _plain(line) for line in written.splitlines()), (name, kind, "in disguise")


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [part for item in value.items() for each in item for part in _texts(each)]
    return [part for each in value for part in _texts(each)] if isinstance(value, list) else [str(value)]


def _rows(value: str) -> list[Row]:
    """The value in everything that is kept, dropped, rejected or shown as a sample."""
    draw = random.Random(value)
    other = [sentence(draw, 30) for _ in range(10)]
    return [
        record(f"{other[0]}{value}怎么办呢", f"{other[1]}。"),
        record(f"{other[2]}怎么办", f"{other[3]}。{value}，{other[4]}。"),
        record(f"{other[2]}怎么办", f"{other[3]}。{value}，{other[4]}。"),  # an equal pair
        record(f"{other[5]}{value}", f"{other[5]}{value}"),  # the answer repeats the question
        record("短", f"{value}，{other[6]}"),
        record(f"{other[7]}{value}怎么办", "短"),
        record(f"{other[8]}怎么办", f"<p>{other[8]}，。，{value}</p>，加微信：{value}，点击咨询。"),
        record(f"{other[9]}怎么办", f"{other[0]}，欢迎拨打{value}咨询。"),
        record(f"{other[9]}要不要紧", other[1], department=f"内科{value}"),
        {"_id": "", "title": f"{other[7]}{value}", "text": f"{other[6]}{value}。{other[5]}"},
        {"question": f"{other[4]}{value}", "answer_ids": [], "split": "test", "answers": [f"{value}，{other[4]}"]},
        {"question": f"{other[3]}{value}", "answer_ids": ["nobody"], "split": "test"},
        {"question": f"{other[2]}{value}", "answer": 5},
        {"question": f"{other[1]}{value}", "answer": "在家休息", "split": value},
    ]


@pytest.mark.parametrize("kind", CANARIES)
def test_no_personal_value_in_an_artifact(tmp_path: Path, kind: str) -> None:
    rows = [row for form in FORMS[kind] for row in _rows(form)]
    path = tmp_path / "rows.jsonl"
    part = source(path, rows)
    with open(path, "ab") as stream:
        stream.write(f'{{"question": "{FORMS[kind][0]}", broken\n'.encode())
    found = corpus_of(tmp_path, [part], test_share=0.3)
    counts = statistics(found.artifact)
    assert counts["privacy"][kind] >= 2 * len(FORMS[kind])
    assert counts["edited_samples"] and counts["dropped_samples"] and counts["rejects"]
    assert len(list(files.read_jsonl(found.artifact.path / "rejects.jsonl"))) > len(FORMS[kind])
    _nothing_personal(found.artifact)


def test_switched_off_it_stays(tmp_path: Path) -> None:
    """So that the tests above can fail; what is shown of edited rows is without it in any case."""
    found = corpus(tmp_path, [*many(3), *_rows(FORMS["id_number"][0])[:2]], privacy=False)
    assert any(IDENTITY in example.question for example in found.train)
    assert any(IDENTITY in passage.text for passage in found.passages)
    assert statistics(found.artifact)["privacy"] == {}
