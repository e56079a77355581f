"""Hard negatives are near, never right, and each question's come from its own block."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from preparing import DATA, WORDS, Row, corpus, corpus_of, many, record, sentence, source, statistics

from medrag import duplicates, files, text
from medrag.prepare import Corpus, stages, write
from medrag.sources import recognise


def _similar(one: str, other: str) -> float:
    return duplicates.jaccard(*(duplicates.character_pairs(text.key(each)) for each in (one, other)))


def _never_right(found: Corpus) -> None:
    """By brute force: no negative says, nearly, what a positive says, or answers what is, nearly, the same question."""
    said = {passage.id: passage.text for passage in found.passages}
    answers = {example.id: example.positives for examples in (found.train, found.dev, found.test) for example in examples}
    asked = {example.id: example.question for examples in (found.train, found.dev, found.test) for example in examples}
    right = {
        example.id: {name for other in asked if _similar(asked[other], example.question) >= 0.8 for name in answers[other]} for example in found.train
    }
    for example in found.train:
        assert len(example.negatives) == len(set(example.negatives)) and set(example.negatives) <= said.keys()
        assert not set(example.negatives) & (right[example.id] | set(example.positives))
        for negative in example.negatives:
            assert all(_similar(said[negative], said[name]) < 0.8 for name in example.positives), (example.id, negative)


def test_hard_negatives_are_near_and_never_right(tmp_path: Path) -> None:
    rows = [record(f"头痛第{number}问怎么办", f"头痛要多休息，第{number}条建议。") for number in range(8)]
    rows += [record("头痛第1问怎么办", "头痛要多休息，第2条建议。"), record("咖啡可以天天喝吗", "每天不超过一小杯就行。")]
    found = corpus(tmp_path, rows, negatives=3, near_similarity=0.0, dictionary=WORDS)
    assert found.dictionary.read_text("utf-8").startswith("发烧\n")
    coffee = next(passage.id for passage in found.passages if "小杯" in passage.text)
    headaches = [example for example in found.train if "头痛" in example.question]
    assert len(headaches) == 8
    for example in headaches:
        assert len(example.negatives) == len(set(example.negatives)) == 3
        assert not set(example.negatives) & {*example.positives, coffee}


@pytest.fixture
def confusing() -> list[Row]:
    """Families of questions nearly alike and of answers nearly alike, all about the same few words."""
    draw = random.Random(9)
    rows = []
    for number in range(40):
        asked, said = sentence(draw, 20) + "头痛发烧怎么办", "头痛发烧要多休息" + sentence(draw, 30)
        rows += [record(asked, said, id=f"r{number}"), record(asked + "呢", "头痛发烧要去医院" + sentence(draw, 30), id=f"s{number}")]
        rows += [record("头痛发烧" + sentence(draw, 20), said + "吧", id=f"t{number}")]
    return rows


def test_no_near_double_of_an_answer_nor_an_answer_to_a_near_double_of_the_question(tmp_path: Path, confusing: list[Row]) -> None:
    found = corpus(tmp_path, confusing, negatives=6)
    assert len(found.train) == len(found.passages) == 120
    _never_right(found)
    assert sum(len(example.negatives) for example in found.train) > 5 * 120
    mined = statistics(found.artifact)["negatives"]
    assert (mined["questions"], mined["from_source"]) == (120, 0)
    assert mined["mean"] == round(sum(len(example.negatives) for example in found.train) / 120, 3)
    assert mined["without"] == sum(not example.negatives for example in found.train)


def test_mapped_questions_for_training_get_no_answer_to_what_they_ask_either(tmp_path: Path, confusing: list[Row]) -> None:
    """Questions declared for train are in no group of records: what they ask is looked for among all that is asked."""
    queries: list[Row] = []
    for number in range(0, 40, 2):
        asked = str(confusing[3 * number]["question"])
        for letter, name in (("吗", f"r{number + 1}"), ("嘛", f"s{(number + 3) % 40}")):
            queries.append({"id": f"{number}{letter}", "question": asked + letter, "answer_ids": [name], "split": "train"})
    found = corpus_of(tmp_path, [source(tmp_path / "records.jsonl", confusing), source(tmp_path / "queries.jsonl", queries)], negatives=6)
    assert len(found.train) == 120 + len(queries)
    _never_right(found)


def test_a_sources_own_negatives_come_first(tmp_path: Path) -> None:
    rows = [{**row, "id": f"r{number}"} for number, row in enumerate(many(12))]
    said = str(rows[7]["answer"])
    query: Row = {
        "id": "q",
        "question": f"{said[:18]}怎么办",
        "answer_ids": ["r0"],
        "negative_ids": ["r3", "r0", "r9", "r5", "no such row"],
        "split": "train",
    }
    parts = [source(tmp_path / "records.jsonl", rows), source(tmp_path / "queries.jsonl", [query])]
    for negatives, expected in ((4, ("r3", "r9", "r5", "r7")), (3, ("r3", "r9", "r5")), (2, ("r3", "r9"))):
        found = corpus_of(tmp_path, parts, negatives=negatives)
        (example,) = (example for example in found.train if example.id == "q")
        assert example.negatives[: len(expected)] == expected and len(example.negatives) <= negatives
        assert statistics(found.artifact)["negatives"]["from_source"] == min(3, negatives)
        assert not list(files.read_jsonl(found.artifact.path / "rejects.jsonl")), "a negative that is not there is no fault of the question"


def test_no_negatives_are_mined_where_none_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "Lexical", None)
    found = corpus(tmp_path, many(20), negatives=0, test_share=0.3, seed=3)
    assert found.test and not any(example.negatives for example in (*found.train, *found.dev, *found.test))
    assert statistics(found.artifact)["negatives"]["mean"] == 0


def test_only_training_examples_have_negatives(tmp_path: Path) -> None:
    rows = [record(f"头痛{sentence(random.Random(number), 9)}", f"头痛{sentence(random.Random(-number), 20)}") for number in range(1, 60)]
    found = corpus(tmp_path, rows, negatives=3, dev_share=0.2, test_share=0.2)
    assert sum(bool(example.negatives) for example in found.train) > 20
    assert found.dev and found.test and not any(example.negatives for example in (*found.dev, *found.test))


def test_each_question_is_mined_in_its_own_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are runs of shards; whatever their size, an example's negatives stand near it in the file."""
    monkeypatch.setattr(stages, "SHARD_ROWS", 10)
    rows = [
        record(f"头痛{sentence(random.Random(number), 9)}", f"头痛{sentence(random.Random(-number), 20)}", id=f"{number:03d}")
        for number in range(1, 101)
    ]
    for pool, blocks in ((20, 5), (50, 2), (1000, 1)):
        found = corpus(tmp_path, rows, negatives=3, negatives_pool=pool)
        size = 100 // blocks
        reached = set()
        for example in found.train:
            here = {(int(name) - 1) // size for name in (example.id, *example.negatives)}
            assert len(here) == 1 and len(example.negatives) == 3
            reached |= here
        assert len(reached) == blocks


def test_real_consultations(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"the real data is not at {DATA}")
    part = tmp_path / "part.txt"
    with open(DATA / "toyhom" / "internal_medicine_pairs.txt", "rb") as stream:
        part.write_bytes(b"".join(stream.readline() for _ in range(1200)))
    settings: dict[str, Any] = {"negatives": 4, "dictionary": WORDS, "test_share": 0.1}
    found = corpus_of(tmp_path, [recognise(str(part))], **settings)
    _never_right(found)
    assert sum(len(example.negatives) == 4 for example in found.train) > 0.9 * len(found.train) > 200
