"""Raw rows become passages and examples: merged, split without leaks, mapped, with true negatives, and the same each time."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medrag import files, prepare, text
from medrag.files import Artifact
from medrag.prepare import Config, Corpus
from medrag.sources import Source, recognise
from medrag.types import Example

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
SHIPPED = ("consultation", "maternal", "questions", "unanswerable")
Row = dict[str, object]


def _config(**changes: Any) -> Config:
    return replace(Config(dictionary="", negatives=0, dev_share=0.0, test_share=0.0), **changes)


def _source(path: Path, rows: list[Row]) -> Source:
    files.write_jsonl(path, rows)
    return recognise(str(path))


def _prepare(folder: Path, rows: list[Row], **changes: Any) -> Artifact:
    return prepare.prepare([_source(folder / "rows.jsonl", rows)], _config(**changes), folder / "store", progress=False)


def _corpus(folder: Path, rows: list[Row], **changes: Any) -> Corpus:
    return prepare.read(_prepare(folder, rows, **changes))


def _record(question: str, answer: str, **more: object) -> Row:
    return {"question": question, "answer": answer, **more}


def _statistics(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "statistics.json").read_text("utf-8"))
    return found


def _many(count: int) -> list[Row]:
    return [_record(f"第{number}种病应该怎么办", f"第{number}种病要多休息，按时吃药。") for number in range(count)]


def test_duplicates_merge(tmp_path: Path) -> None:
    corpus = _corpus(
        tmp_path,
        [
            _record("头痛怎么办呢？", "多休息，多喝水，少看手机。"),
            _record("头痛 怎么办呢", "多休息、多喝水、少看手机！"),  # the same pair in another form
            _record("头痛怎么办呢?", "去医院拍片检查一下再说。"),  # a second answer
            _record("头很痛怎么缓解", "<b>多休息</b>，多喝水，少看手机。"),  # a second question
        ],
    )
    assert [passage.text for passage in corpus.passages] == ["多休息，多喝水，少看手机。", "去医院拍片检查一下再说。"]
    first, second = (passage.id for passage in corpus.passages)
    assert [(example.question, example.positives) for example in corpus.train] == [("头痛怎么办呢？", (first, second)), ("头很痛怎么缓解", (first,))]
    assert corpus.train[0].answers == ("多休息，多喝水，少看手机。", "去医院拍片检查一下再说。")
    assert _statistics(corpus.artifact)["dropped"] == {"duplicate pair": 1}
    assert list(corpus.texts())[-1] == "头很痛怎么缓解"


def test_rows_that_are_too_short_or_repeat_the_question_are_counted(tmp_path: Path) -> None:
    rows = [
        _record("头痛？", "多休息，多喝水，少看手机。"),
        _record("头痛怎么办呢？", "多休息。"),
        _record("头痛怎么办呢要不要紧", "头痛怎么办呢，要不要紧？"),
        _record("头痛怎么办呢？", "多休息，多喝水，少看手机。"),
    ]
    statistics = _statistics(_prepare(tmp_path, rows))
    assert statistics["dropped"] == {"question too short": 1, "answer too short": 1, "answer repeats the question": 1}
    assert (statistics["rows"], statistics["passages"], statistics["records_by_source"]) == (4, 1, {"rows": 1})


def test_the_shortest_that_is_kept(tmp_path: Path) -> None:
    rows = [_record("头痛，咋办？", "多休息，多喝热水！。")]
    assert len(_corpus(tmp_path, rows, question_characters_min=4, answer_characters_min=7).train) == 1
    for changes in ({"question_characters_min": 5}, {"answer_characters_min": 8}):
        with pytest.raises(ValueError, match="no usable record"):
            _corpus(tmp_path, rows, **({"question_characters_min": 4, "answer_characters_min": 7} | changes))


def test_the_same_answer_stands_in_one_split(tmp_path: Path) -> None:
    """Also where questions are joined only through others: 0 - 1 - 2 share answers pairwise."""
    rows = []
    for group in range(60):
        for question in range(3):
            for answer in (question, question + 1):
                rows.append(_record(f"第{group}种病的第{question}个问题", f"第{group}种病的第{answer}个回答，要多休息。"))
    corpus = _corpus(tmp_path, rows, dev_share=0.2, test_share=0.2)
    splits = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}
    group_of = {example.question: split for split, examples in splits.items() for example in examples}
    assert len(group_of) == 180
    for group in range(60):
        assert len({group_of[f"第{group}种病的第{question}个问题"] for question in range(3)}) == 1
    owners = Counter(name for examples in splits.values() for name in {name for example in examples for name in example.positives})
    assert len(owners) == 240 and set(owners.values()) == {1}
    assert all(splits.values())


def test_shares_and_seed(tmp_path: Path) -> None:
    first = _corpus(tmp_path, _many(1000), dev_share=0.1, test_share=0.2)
    assert len(first.train) + len(first.dev) + len(first.test) == 1000
    assert 60 <= len(first.dev) <= 140 and 150 <= len(first.test) <= 250
    second = _corpus(tmp_path, _many(1000), dev_share=0.1, test_share=0.2, seed=1)
    assert {example.id for example in first.test} != {example.id for example in second.test}
    assert {example.id for example in _corpus(tmp_path, _many(500), test_share=0.2, dev_share=0.1).test} < {example.id for example in first.test}


def test_mapped_questions(tmp_path: Path) -> None:
    records = [
        _record("头痛怎么办呢？", "多休息，多喝水，少看手机。", id="r1"),
        _record("头疼应该怎么办？", "多休息，多喝水，少看手机。", id="r2"),  # the same answer: r2 is r1's passage
        _record("宝宝发烧怎么办？", "多喝水，按时量体温，去医院。", id="r3", source="maternal-x"),
    ]
    queries: list[Row] = [
        {"id": "q1", "question": "<b>脑壳疼</b>咋整", "answer_ids": ["r2", "r3", "r1"], "split": "test"},
        {"id": "q2", "question": "小孩烧起来了", "answer_ids": ["r3"], "split": "dev"},
        {"id": "q3", "question": "股票怎么买", "answer_ids": [], "split": "test"},
        {"id": "q4", "question": "不存在的记录", "answer_ids": ["r1", "r9"], "split": "test"},
        {"question": "没有编号的问题", "answer_ids": []},
    ]
    sources = [_source(tmp_path / "questions.jsonl", queries), _source(tmp_path / "records.jsonl", records)]
    artifact = prepare.prepare(sources, _config(), tmp_path / "store", progress=False)
    corpus = prepare.read(artifact)
    assert [passage.id for passage in corpus.passages] == ["r1", "r3"]
    first, unanswerable, unnamed = corpus.test
    assert first == Example(
        "q1", "脑壳疼 咋整", ("多休息，多喝水，少看手机。", "多喝水，按时量体温，去医院。"), ("r1", "r3"), (), "consultation", "records"
    )
    assert (unanswerable.id, unanswerable.positives, unanswerable.answers, unanswerable.source) == ("q3", (), (), "unanswerable")
    assert unnamed.id.startswith("e") and len(unnamed.id) == 16
    assert [(example.id, example.positives, example.label) for example in corpus.dev] == [("q2", ("r3",), "maternal")]
    assert len(corpus.train) == 3
    (reject,) = files.read_jsonl(artifact.path / "rejects.jsonl")
    before = (tmp_path / "questions.jsonl").read_bytes().split(b"\n")[:3]
    assert (reject["file"], reject["line"], reject["byte"]) == (str(tmp_path / "questions.jsonl"), 4, len(b"\n".join(before)) + 1)
    assert "'q4'" in reject["reason"] and "['r9']" in reject["reason"]
    statistics = _statistics(artifact)
    assert statistics["rejected_rows"] == 1 and statistics["unanswerable"] == {"train": 0, "dev": 0, "test": 2}


def test_a_leak_is_refused(tmp_path: Path) -> None:
    records = _source(tmp_path / "records.jsonl", [_record("头痛怎么办呢？", "多休息，多喝水，少看手机。", id="r1")])
    leak = _source(tmp_path / "leak.jsonl", [{"id": "q1", "question": "头痛 怎么办呢", "answer_ids": ["r1"]}])
    with pytest.raises(ValueError, match="leak: question 'q1' stands in train and in test"):
        prepare.prepare([records, leak], _config(), tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("second", ["去医院拍片检查一下再说。", "要按时吃药，不要停药。"])
def test_one_id_for_two_answers_is_refused(tmp_path: Path, second: str) -> None:
    rows = [
        _record("头痛怎么办呢？", "多休息，多喝水，少看手机。", id="r1"),
        _record("血压高怎么办呢", "要按时吃药，不要停药。", id="r2"),
        _record("胸口痛怎么办呢", second, id="r1"),
    ]
    with pytest.raises(ValueError, match="two records have the id 'r1' but different answers"):
        _prepare(tmp_path, rows)


def test_rejected_rows_are_kept_with_their_place(tmp_path: Path) -> None:
    good = json.dumps(_record("头痛怎么办呢？", "多休息，多喝水，少看手机。"), ensure_ascii=False).encode() + b"\n"
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good + b"{broken\n" + good)
    artifact = prepare.prepare([recognise(str(path))], _config(), tmp_path / "store", progress=False)
    (reject,) = files.read_jsonl(artifact.path / "rejects.jsonl")
    assert (reject["file"], reject["line"], reject["byte"]) == (str(path), 2, len(good))
    assert _statistics(artifact)["rejected_rows"] == 1


def test_labels_titles_and_sources(tmp_path: Path) -> None:
    rows = [
        _record("孕期可以喝咖啡吗？", "可以少喝，每天不超过一小杯。", source="某医院"),
        _record("血压高能停药吗？", "不能自己停药，停药血压会回升。"),
        _record("咖啡能喝多少呢？", "每天不要超过四百毫克咖啡因。", source="maternal-extra"),
    ]
    corpus = _corpus(tmp_path, rows, titles=True)
    assert [example.label for example in corpus.train] == ["maternal", "consultation", "maternal"]
    assert [passage.source for passage in corpus.passages] == ["某医院", "rows", "maternal-extra"]
    assert [passage.title for passage in corpus.passages] == [row["question"] for row in rows]
    assert [passage.title for passage in _corpus(tmp_path, rows).passages] == [""] * 3


def test_hard_negatives_are_near_and_never_right(tmp_path: Path) -> None:
    rows = [_record(f"头痛第{number}问怎么办", f"头痛要多休息，第{number}条建议。") for number in range(8)]
    rows += [_record("头痛第1问怎么办", "头痛要多休息，第2条建议。"), _record("咖啡可以天天喝吗", "每天不超过一小杯就行。")]
    corpus = _corpus(tmp_path, rows, negatives=3, negatives_depth=50, dictionary=str(ROOT / "corpora" / "medical_words.txt"))
    assert corpus.dictionary.read_text("utf-8").startswith("发烧\n")
    coffee = next(passage.id for passage in corpus.passages if "小杯" in passage.text)
    headaches = [example for example in corpus.train if "头痛" in example.question]
    assert len(headaches) == 8
    for example in headaches:
        assert len(example.negatives) == len(set(example.negatives)) == 3
        assert not set(example.negatives) & {*example.positives, coffee}


def test_the_same_inputs_give_the_same_artifact(tmp_path: Path) -> None:
    first = _prepare(tmp_path, _many(5))
    stamp = (first.path / "passages.jsonl").stat().st_mtime_ns
    again = _prepare(tmp_path, _many(5))
    assert again == first and (again.path / "passages.jsonl").stat().st_mtime_ns == stamp
    other = _prepare(tmp_path, _many(5), seed=1)
    assert other.path != first.path and files.current(tmp_path / "store", "corpus") == other
    more = _prepare(tmp_path, _many(6))
    assert more.path not in (first.path, other.path)
    assert _prepare(tmp_path, _many(5)) == first
    assert files.current(tmp_path / "store", "corpus") == first, "what was asked for last is current"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert _prepare(elsewhere, _many(5)).hash == first.hash, "the hash depends on contents, not on places"


def test_another_name_or_dictionary_is_another_artifact(tmp_path: Path) -> None:
    """A record without a source takes its file's name, and with it perhaps its label."""
    first = _prepare(tmp_path, _many(5))
    renamed = prepare.prepare([_source(tmp_path / "maternal.jsonl", _many(5))], _config(), tmp_path / "store", progress=False)
    assert {example.label for example in prepare.read(renamed).train} == {"maternal"}
    words = tmp_path / "words.txt"
    words.write_text("头痛\n", "utf-8")
    with_words = _prepare(tmp_path, _many(5), dictionary=str(words))
    words.write_text("头痛\n头晕\n", "utf-8")
    assert len({first.path, renamed.path, with_words.path, _prepare(tmp_path, _many(5), dictionary=str(words)).path}) == 4


def test_what_cannot_be_prepared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no source was named"):
        prepare.prepare([], _config(), tmp_path / "store", progress=False)
    with pytest.raises(ValueError, match=r"prepare\.test_share=0\.5; allowed: 0 to 0\.5"):
        _prepare(tmp_path, _many(5), test_share=0.5)
    with pytest.raises(ValueError, match=r"prepare\.dev_share=-0\.1"):
        _prepare(tmp_path, _many(5), dev_share=-0.1)
    with pytest.raises(ValueError, match=r"no usable record in .*rows\.jsonl .*'answer too short': 1"):
        _prepare(tmp_path, [_record("头痛怎么办呢？", "多休息。")])
    assert not (tmp_path / "store").exists()


def _adds_up(corpus: Corpus) -> None:
    """Every figure of the statistics, counted anew."""
    statistics = _statistics(corpus.artifact)
    splits = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}
    dropped = Counter(statistics["dropped"])
    assert statistics["rows"] == sum(statistics["records_by_source"].values()) + dropped.total() - dropped["duplicate pair"]
    assert statistics["splits"] == {split: len(examples) for split, examples in splits.items()}
    assert statistics["unanswerable"] == {split: sum(not example.positives for example in examples) for split, examples in splits.items()}
    assert statistics["labels"] == {split: dict(Counter(example.label for example in examples)) for split, examples in splits.items()}
    assert statistics["passages"] == len(corpus.passages) == len({passage.id for passage in corpus.passages})
    lengths = sorted(len(passage.text) for passage in corpus.passages)
    assert statistics["passage_characters"]["max"] == lengths[-1]
    assert lengths[0] <= statistics["passage_characters"]["median"] <= statistics["passage_characters"]["p95"] <= lengths[-1]
    assert statistics["rejected_rows"] == sum(1 for _ in files.read_jsonl(corpus.artifact.path / "rejects.jsonl"))
    passages = {passage.id: passage for passage in corpus.passages}
    keys: dict[str, str] = {}
    for split, examples in splits.items():
        for example in examples:
            assert {text.key(answer) for answer in example.answers} == {text.key(passages[name].text) for name in example.positives}
            assert not set(example.positives) & set(example.negatives)
            assert keys.setdefault(text.key(example.question), split) == split


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    sources = [recognise(str(ROOT / "corpora" / f"{name}.jsonl")) for name in SHIPPED]
    config = Config(dictionary=str(ROOT / "corpora" / "medical_words.txt"), dev_share=0.0, test_share=0.0)
    return prepare.read(prepare.prepare(sources, config, tmp_path_factory.mktemp("shipped"), progress=False))


def test_the_shipped_corpora_prepare_cleanly(shipped: Corpus) -> None:
    statistics = _statistics(shipped.artifact)
    assert (statistics["rejected_rows"], statistics["dropped"]) == (0, {})
    assert statistics["records_by_source"] == {"medrag-consultation": 600, "medrag-maternal": 600}
    assert len(shipped.passages) == 1200
    assert statistics["splits"] == {"train": 1200, "dev": 88 + 42, "test": 168 + 42}
    assert statistics["unanswerable"] == {"train": 0, "dev": 42, "test": 42}
    assert all(60 <= len(passage.text) <= 250 for passage in shipped.passages)
    assert all(example.negatives for example in shipped.train)
    assert not any(passage.title for passage in shipped.passages)
    _adds_up(shipped)
    assert not any("\ufffd" in passage.text for passage in shipped.passages)


def test_the_shipped_corpora_say_what_they_are() -> None:
    for name in SHIPPED[:2]:
        for row in files.read_jsonl(ROOT / "corpora" / f"{name}.jsonl"):
            assert row["source"] == f"medrag-{name}" and row["department"] and row["id"].startswith(name)
    for row in files.read_jsonl(ROOT / "corpora" / "questions.jsonl"):
        assert row["answer_ids"] and row["split"] in ("dev", "test")
    reasons = Counter(row["reason"] for row in files.read_jsonl(ROOT / "corpora" / "unanswerable.jsonl"))
    assert reasons == {"off_topic": 28, "not_covered": 28, "personal": 28}
    readme = (ROOT / "corpora" / "README.md").read_text("utf-8")
    assert "CC BY 4.0" in readme and "Not medical advice" in readme and "language models" in readme
    for path in (ROOT / "corpora").iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in readme, f"{path.name} is not described"


def test_real_data(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"the real data is not at {DATA}")
    conversations = recognise(str(DATA / "medicalgpt" / "medical_sft_1K_format.jsonl"))
    pairs = recognise(str(DATA / "toyhom" / "internal_medicine_pairs.txt"))
    table = tmp_path / "part.csv"
    with open(DATA / "toyhom" / "internal_medicine_sample.csv", "rb") as stream:
        table.write_bytes(b"".join(stream.readline() for _ in range(400)))
    sources = [conversations, pairs, recognise(str(table))]
    assert [(source.kind, source.encoding) for source in sources] == [
        ("jsonl", "utf-8-sig"),
        ("toyhom_text", "gb18030"),
        ("toyhom_csv", "gb18030"),
    ]
    corpus = prepare.read(prepare.prepare(sources, _config(dev_share=0.1, test_share=0.1), tmp_path / "store", progress=False))
    statistics = _statistics(corpus.artifact)
    assert statistics["rows"] >= 945 + 3840 + 300
    assert statistics["dropped"]["duplicate pair"] > 200, "the table overlaps the pairs"
    assert statistics["rejected_rows"] <= 5
    _adds_up(corpus)
