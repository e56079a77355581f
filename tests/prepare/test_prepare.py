"""Raw rows become passages and examples: merged, split without leaks, mapped, and the same each time."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from preparing import ALONE, DATA, ROOT, WORDS, Row, config, contents, corpus, corpus_of, made, many, record, sentence, source, statistics

from medrag import files, prepare, text
from medrag.prepare import Config, Corpus, stages
from medrag.sources import recognise
from medrag.types import Example

SHIPPED = ("consultation", "maternal", "questions", "unanswerable")


def _splits(found: Corpus) -> dict[str, list[Example]]:
    return {"train": found.train, "dev": found.dev, "test": found.test}


def _assigned(found: Corpus) -> set[tuple[str, str]]:
    return {(example.question, split) for split, examples in _splits(found).items() for example in examples}


# -- what becomes of rows


def test_duplicates_merge(tmp_path: Path) -> None:
    found = corpus(
        tmp_path,
        [
            record("头痛怎么办呢？", "多休息，多喝水，少看手机。"),
            record("头痛 怎么办呢", "多休息、多喝水、少看手机！"),  # the same pair in another form
            record("头痛怎么办呢?", "去医院拍片检查一下再说。"),  # a second answer
            record("头很痛怎么缓解", "<b>多休息</b>，多喝水，少看手机。"),  # a second question
        ],
    )
    assert [passage.text for passage in found.passages] == ["多休息，多喝水，少看手机。", "去医院拍片检查一下再说。"]
    first, second = (passage.id for passage in found.passages)
    assert [(example.question, example.positives) for example in found.train] == [("头痛怎么办呢？", (first, second)), ("头很痛怎么缓解", (first,))]
    assert found.train[0].answers == ("多休息，多喝水，少看手机。", "去医院拍片检查一下再说。")
    assert statistics(found.artifact)["dropped"] == {"equal pair": 1}
    assert list(found.texts())[-1] == "头很痛怎么缓解"


LONG = ("最近两周一直头痛发烧而且晚上睡不着应该怎么办", "要多休息，多喝热水，少看手机，如果三天以后还不见好，就要去医院请医生看一看。")
NEAR = ("最近两周一直头痛发烧而且晚上睡不着应该怎么治", "要多休息，多喝热水，少看手机，如果三天以后还不见好，就要去医院请医生看一下。")


def test_nearly_equal_pairs_merge_and_nearly_equal_answers_are_one_group_of_passages(tmp_path: Path) -> None:
    rows = [record(*LONG), record(*NEAR), record("血压高能不能停药呢", NEAR[1]), record("宝宝几个月可以吃辅食", "满六个月可以开始吃辅食。")]
    found = corpus(tmp_path, rows)
    assert statistics(found.artifact)["dropped"] == {"nearly equal pair": 1}
    assert [passage.text for passage in found.passages] == [LONG[1], NEAR[1], "满六个月可以开始吃辅食。"]
    first, second, third = (passage.group for passage in found.passages)
    assert first == second != "" and third == "", "what scores are counted once for"
    apart = corpus(tmp_path, rows, near_similarity=0.0)
    assert statistics(apart.artifact)["dropped"] == {} and len(apart.train) == 4
    assert not any(passage.group for passage in apart.passages)
    kept = corpus(tmp_path, [record(*LONG), record(*LONG), record(*NEAR)], duplicate_pairs=False)
    assert statistics(kept.artifact)["dropped"] == {} and len(kept.passages) == len(kept.train) == 2


def test_a_held_out_row_stays_where_an_equal_one_stands_before_it(tmp_path: Path) -> None:
    rows = [record(*LONG), record(*NEAR, split="test"), record(*LONG, split="dev"), *many(5)]
    found = corpus(tmp_path, rows)
    assert [example.question for example in found.test] == [NEAR[0]] and not found.dev
    assert LONG[0] not in {example.question for example in found.train}


def test_rows_that_are_too_short_or_repeat_the_question_are_counted(tmp_path: Path) -> None:
    rows = [
        record("头痛？", "多休息，多喝水，少看手机。"),
        record("头痛怎么办呢？", "多休息。"),
        record("头痛怎么办呢要不要紧", "头痛怎么办呢，要不要紧？"),
        record("？！", "多休息，多喝水，少看手机。"),
        record("头痛怎么办呢？", "……"),
        record("头痛" * 1200, "多休息，多喝水，少看手机。"),
        record("头痛怎么办呢？", "多休息" * 3000),
        record("头痛怎么办呢？", "多休息，多喝水，少看手机。"),
    ]
    found = statistics(made(tmp_path, rows))
    rules = (
        "question too short",
        "answer too short",
        "answer repeats the question",
        "question empty",
        "answer empty",
        "question too long",
        "answer too long",
    )
    assert found["dropped"] == dict.fromkeys(rules, 1)
    assert (found["rows"], found["passages"], found["sources"][0]["records"]) == (8, 1, 8)
    off = {f"{part}_characters_{end}": 0 for part in ("question", "answer") for end in ("min", "max")}
    found = statistics(made(tmp_path, rows, echoes=False, **off))
    assert found["dropped"] == {"question empty": 1, "answer empty": 1}


def test_the_shortest_that_is_kept(tmp_path: Path) -> None:
    rows = [record("头痛，咋办？", "多休息，多喝热水！。")]
    assert len(corpus(tmp_path, rows, question_characters_min=4, answer_characters_min=7).train) == 1
    assert len(corpus(tmp_path, rows, question_characters_max=4, answer_characters_min=7, answer_characters_max=7).train) == 1
    limits = {"question_characters_min": 4, "answer_characters_min": 7}
    for changes in ({"question_characters_min": 5}, {"answer_characters_min": 8}, {"question_characters_max": 3}, {"answer_characters_max": 6}):
        with pytest.raises(ValueError, match="no usable record"):
            corpus(tmp_path, rows, **(limits | changes))


def test_the_same_answer_stands_in_one_split(tmp_path: Path) -> None:
    """Also where questions are joined only through others: 0 - 1 - 2 share answers pairwise."""
    draw = random.Random(7)
    asked = [[sentence(draw, 12) for _ in range(3)] for _ in range(60)]
    said = [[sentence(draw, 24) for _ in range(4)] for _ in range(60)]
    rows = [record(asked[group][place], said[group][answer]) for group in range(60) for place in range(3) for answer in (place, place + 1)]
    found = corpus(tmp_path, rows, dev_share=0.2, test_share=0.2)
    split_of = dict(_assigned(found))
    assert len(split_of) == 180
    assert all(len({split_of[question] for question in group}) == 1 for group in asked)
    owners = Counter(name for examples in _splits(found).values() for name in {name for example in examples for name in example.positives})
    assert len(owners) == 240 and set(owners.values()) == {1}
    assert all(_splits(found).values())
    assert statistics(found.artifact)["duplicates"]["groups"] == 60


def test_mapped_questions(tmp_path: Path) -> None:
    records = [
        record("头痛怎么办呢？", "多休息，多喝水，少看手机。", id="r1"),
        record("头疼应该怎么办？", "多休息，多喝水，少看手机。", id="r2"),  # the same answer: r2 is r1's passage
        record("宝宝发烧怎么办？", "多喝水，按时量体温，去医院。", id="r3", source="maternal-x"),
    ]
    queries: list[Row] = [
        {"id": "q1", "question": "<b>脑壳疼</b>咋整", "answer_ids": ["r2", "r3", "r1"], "split": "test"},
        {"id": "q2", "question": "小孩烧起来了", "answer_ids": ["r3"], "split": "dev"},
        {"id": "q3", "question": "股票怎么买", "answer_ids": [], "split": "test", "reason": "off_topic"},
        {"id": "q4", "question": "不存在的记录", "answer_ids": ["r1", "r9"], "split": "test"},
        {"question": "没有编号的问题", "answer_ids": [], "split": "test"},
    ]
    found = corpus_of(tmp_path, [source(tmp_path / "questions.jsonl", queries), source(tmp_path / "records.jsonl", records)])
    assert [passage.id for passage in found.passages] == ["r1", "r3"]
    first, unanswerable, unnamed = found.test
    assert first == Example(
        "q1", "脑壳疼咋整", ("多休息，多喝水，少看手机。", "多喝水，按时量体温，去医院。"), ("r1", "r3"), (), "consultation", "records"
    )
    assert (unanswerable.id, unanswerable.positives, unanswerable.answers, unanswerable.source) == ("q3", (), (), "unanswerable")
    assert [example.label for example in found.test] == ["consultation", "off_topic", "consultation"]
    assert unnamed.id.startswith("e") and len(unnamed.id) == 17
    assert [(example.id, example.positives, example.label) for example in found.dev] == [("q2", ("r3",), "maternal")]
    assert len(found.train) == 3
    (reject,) = files.read_jsonl(found.artifact.path / "rejects.jsonl")
    before = (tmp_path / "questions.jsonl").read_bytes().split(b"\n")[:3]
    assert (reject["file"], reject["line"], reject["byte"]) == (str(tmp_path / "questions.jsonl"), 4, len(b"\n".join(before)) + 1)
    assert reject["reason"] == "answer_ids that no row of the sources has: ['r9']"
    counts = statistics(found.artifact)
    assert counts["rejected_rows"] == 1 and counts["unanswerable"] == {"train": 0, "dev": 0, "test": 2}


def test_training_does_not_ask_what_is_held_out(tmp_path: Path) -> None:
    """The record loses its example, also where the question is only nearly the same; its passage stays to be found."""
    records = source(tmp_path / "records.jsonl", [record(*LONG, id="r1"), record("血压高能不能停药呢", "不能自己停药，停药血压会回升。", id="r2")])
    for asked in (LONG[0] + "？", NEAR[0]):
        queries = source(tmp_path / "held.jsonl", [{"id": "q1", "question": asked, "answer_ids": ["r1"], "split": "test"}])
        found = corpus_of(tmp_path, [records, queries])
        assert [example.id for example in found.train] == ["r2"] and [example.positives for example in found.test] == [("r1",)]
        assert [passage.id for passage in found.passages] == ["r1", "r2"]
        assert statistics(found.artifact)["dropped"] == {"question of a held-out split": 1}


def test_turns_of_one_dialogue_stand_in_one_split(tmp_path: Path) -> None:
    turns = [{**row, "group": f"talk {number // 4}"} for number, row in enumerate(many(400))]
    path = tmp_path / "turns.jsonl"
    files.write_jsonl(path, turns)
    found = corpus_of(tmp_path, [recognise(f"jsonl,question=question,answer=answer,group=group:{path}")], dev_share=0.2, test_share=0.2)
    split_of = dict(_assigned(found))
    asked = [str(turn["question"]) for turn in turns]
    assert all(len({split_of[question] for question in asked[start : start + 4]}) == 1 for start in range(0, 400, 4))
    assert all(_splits(found).values())


# -- ids


def test_one_id_for_two_answers(tmp_path: Path) -> None:
    """The later row is dropped: nobody could tell which of the two is meant."""
    rows = [
        record("头痛怎么办呢？", "多休息，多喝水，少看手机。", id="r1"),
        record("血压高怎么办呢", "要按时吃药，不要停药。", id="r2"),
        record("胸口痛怎么办呢", "去医院拍片检查一下再说。", id="r1"),
        record("胸口疼要不要紧", "要按时吃药，不要停药。", id="r1"),
    ]
    found = corpus(tmp_path, rows)
    assert [passage.id for passage in found.passages] == ["r1", "r2"] and [example.id for example in found.train] == ["r1", "r2"]
    assert statistics(found.artifact)["dropped"] == {"id of another record": 2}


def test_one_id_in_two_sources(tmp_path: Path) -> None:
    """Passages are named after their source where answers differ; what a mapped question names is first looked for in its own source."""
    here = source(tmp_path / "here.jsonl", [record("头痛怎么办呢？", "多休息，多喝水，少看手机。", id="1"), record(*LONG, id="2")])
    asked: list[Row] = [
        {"id": "q1", "question": "脑壳疼咋整", "answer_ids": ["1"], "split": "train"},
        {"id": "q2", "question": "又痛又烧", "answer_ids": ["2"], "split": "train"},
    ]
    there = source(tmp_path / "there.jsonl", [record("血压高怎么办呢", "要按时吃药，不要停药。", id="1"), record(*LONG, id="2"), *asked])
    others = source(tmp_path / "others.jsonl", [*asked, {"id": "q3", "question": "股票怎么买", "answer_ids": [], "split": "train"}])
    found = corpus_of(tmp_path, [here, there, others])
    assert [passage.id for passage in found.passages] == ["here:1", "2", "there:1"]
    positives = {example.id: example.positives for example in found.train}
    assert positives == {"here:1": ("here:1",), "2": ("2",), "there:1": ("there:1",), "there:q1": ("there:1",), "there:q2": ("2",), "q3": ()}
    (reject,) = files.read_jsonl(found.artifact.path / "rejects.jsonl")
    assert (reject["file"], reject["line"], reject["reason"]) == (
        str(tmp_path / "others.jsonl"),
        1,
        "answer_ids that no row of the sources has: ['1']",
    ), "it could mean either"


def test_ids_of_passages_are_unique_whatever_the_sources_say(tmp_path: Path) -> None:
    """A second document, or a record, of the same id and another text among them."""
    texts = [str(row["answer"]) for row in many(6)]
    rows: list[Row] = [{"_id": "d1", "title": "", "text": said} for said in texts[:3]]
    rows += [record("头痛怎么办呢？", texts[3], id="d1"), record("头痛怎么办呢？", texts[4], id="d2"), {"_id": "d2", "title": "", "text": texts[5]}]
    documents = source(tmp_path / "documents.jsonl", rows)
    found = corpus_of(tmp_path, [documents, source(tmp_path / "more.jsonl", [{"_id": "d1", "title": "", "text": texts[5]}])])
    assert [(passage.id, passage.text) for passage in found.passages] == [("documents:d1", texts[0]), ("d2", texts[4]), ("more:d1", texts[5])]
    assert statistics(found.artifact)["dropped"] == {"id of another record": 1, "id of another document": 3}
    samples = statistics(found.artifact)["dropped_samples"]["id of another document"]
    assert [sample["answer"] for sample in samples] == [texts[1], texts[2], texts[5]]


# -- where it comes from


def test_rejected_rows_are_kept_with_their_place(tmp_path: Path) -> None:
    good = json.dumps(record("头痛怎么办呢？", "多休息，多喝水，少看手机。"), ensure_ascii=False).encode() + b"\n"
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good + b"{broken\n" + good)
    found = corpus_of(tmp_path, [recognise(str(path))])
    (reject,) = files.read_jsonl(found.artifact.path / "rejects.jsonl")
    assert (reject["file"], reject["line"], reject["byte"]) == (str(path), 2, len(good))
    assert statistics(found.artifact)["rejected_rows"] == 1


def test_labels_titles_and_sources(tmp_path: Path) -> None:
    rows: list[Row] = [
        record("孕期可以喝咖啡吗？", "可以少喝，每天不超过一小杯。", source="某医院"),
        record("血压高能停药吗？", "不能自己停药，停药血压会回升。"),
        record("咖啡能喝多少呢？", "每天不要超过四百毫克咖啡因。", source="maternal-extra"),
        {"text": "叶酸是一种水溶性维生素。", "title": "叶酸"},
    ]
    found = corpus(tmp_path, rows, titles=True)
    assert [example.label for example in found.train] == ["maternal", "consultation", "maternal"]
    assert [passage.source for passage in found.passages] == ["某医院", "rows", "maternal-extra", "rows"]
    assert [passage.title for passage in found.passages] == [*(row["question"] for row in rows[:3]), "叶酸"]
    assert [passage.title for passage in corpus(tmp_path, rows).passages] == ["", "", "", "叶酸"]


# -- the same each time


def test_the_same_inputs_give_the_same_artifact(tmp_path: Path) -> None:
    first = made(tmp_path, many(5))
    stamp = (first.path / "passages.jsonl").stat().st_mtime_ns
    again = made(tmp_path, many(5))
    assert again == first and (again.path / "passages.jsonl").stat().st_mtime_ns == stamp
    other = made(tmp_path, many(5), seed=1)
    assert other.path != first.path and files.current(tmp_path / "store", "corpus") == other
    more = made(tmp_path, many(6))
    assert more.path not in (first.path, other.path)
    assert made(tmp_path, many(5)) == first
    assert files.current(tmp_path / "store", "corpus") == first, "what was asked for last is current"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert made(elsewhere, many(5)).hash == first.hash, "the hash depends on contents, not on places"
    assert sorted(path.name for path in (tmp_path / "store" / "corpus").iterdir()) == sorted(
        ["CURRENT", first.path.name, other.path.name, more.path.name]
    ), "nothing else is left"


def test_small_shards_and_large_ones_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = [
        *many(60),
        *many(20),
        *[{**row, "answer": "要多休息，多喝水，少看手机。"} for row in many(20, 1)],
        {"_id": "d", "title": "", "text": "叶酸是一种维生素。"},
    ]
    rows += [{"question": "叶酸是什么呢", "answer_ids": ["d"], "split": "test"}]
    settings: dict[str, Any] = {"negatives": 3, "dev_share": 0.2, "test_share": 0.2}
    one = made(tmp_path, rows, **settings)
    monkeypatch.setattr(stages, "SHARD_ROWS", 7)
    other = prepare.prepare([source(tmp_path / "rows.jsonl", rows)], config(**settings), tmp_path / "other", False, ALONE)
    assert contents(other.path) == contents(one.path)


def test_the_order_of_sources_changes_no_split(tmp_path: Path) -> None:
    """Rows that share questions and answers across files; nearly equal pairs aside, of which the first is kept."""
    draw = random.Random(8)
    asked, said = [sentence(draw, 12) for _ in range(300)], [sentence(draw, 24) for _ in range(300)]
    rows = [record(draw.choice(asked), draw.choice(said)) for _ in range(400)]
    parts = [source(tmp_path / f"part{number}.jsonl", rows[100 * number : 100 * number + 100]) for number in range(4)]
    settings: dict[str, Any] = {"dev_share": 0.2, "test_share": 0.2}
    first = corpus_of(tmp_path, parts, **settings)
    other = corpus_of(tmp_path, [parts[place] for place in (2, 0, 3, 1)], **settings)
    assert _assigned(first) == _assigned(other) and len({split for _, split in _assigned(first)}) == 3
    assert [example.question for example in first.train] != [example.question for example in other.train]
    assert {passage.text for passage in first.passages} == {passage.text for passage in other.passages}


def test_another_name_or_dictionary_is_another_artifact(tmp_path: Path) -> None:
    """A record without a source takes its file's name, and with it perhaps its label."""
    first = made(tmp_path, many(5))
    renamed = corpus_of(tmp_path, [source(tmp_path / "maternal.jsonl", many(5))])
    assert {example.label for example in renamed.train} == {"maternal"}
    words = tmp_path / "words.txt"
    words.write_text("头痛\n", "utf-8")
    with_words = made(tmp_path, many(5), dictionary=str(words))
    words.write_text("头痛\n头晕\n", "utf-8")
    assert len({first.path, renamed.artifact.path, with_words.path, made(tmp_path, many(5), dictionary=str(words)).path}) == 4


# -- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_share": 0.5}, r"prepare\.test_share=0\.5; allowed: 0 to 0\.5"),
        ({"dev_share": -0.1}, r"prepare\.dev_share=-0\.1; allowed: 0 to 0\.5"),
        ({"dev_share": float("nan")}, r"prepare\.dev_share=nan; allowed: 0 to 0\.5"),
        ({"near_similarity": 1.01}, r"prepare\.near_similarity=1\.01; allowed: 0 to 1"),
        ({"near_similarity": 0.3}, r"prepare\.near_similarity=0\.3; allowed: 0 \(off\), or 0\.5 to 1"),
        ({"negatives": -1}, r"prepare\.negatives=-1; allowed: 0 or more"),
        ({"question_characters_min": -1}, r"prepare\.question_characters_min=-1; allowed: 0 or more"),
        ({"question_characters_max": -1}, r"prepare\.question_characters_max=-1"),
        ({"answer_characters_min": -1}, r"prepare\.answer_characters_min=-1"),
        ({"answer_characters_max": -1}, r"prepare\.answer_characters_max=-1"),
        ({"negatives": 4, "negatives_depth": 3}, r"prepare\.negatives_depth=3; allowed: prepare\.negatives=4 or more"),
        ({"negatives_pool": 0}, r"prepare\.negatives_pool=0; allowed: "),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(tmp_path, many(5), **settings)
    assert not (tmp_path / "store").exists()


def test_the_ends_of_the_ranges(tmp_path: Path) -> None:
    for settings in (
        {"near_similarity": 1.0},
        {"near_similarity": 0.5},
        {"near_similarity": 0.0},
        {"negatives": 1, "negatives_depth": 1, "negatives_pool": 1},
    ):
        assert len(corpus(tmp_path, many(5), **settings).train) == 5


def test_what_cannot_be_prepared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no source was named"):
        prepare.prepare([], config(), tmp_path / "store", False, ALONE)
    twice = [source(tmp_path / "rows.jsonl", many(5))] * 2
    with pytest.raises(ValueError, match="several sources have the name 'rows'; say another with KIND,name=OTHER:PATH"):
        prepare.prepare(twice, config(), tmp_path / "store", False, ALONE)
    with pytest.raises(ValueError, match=r"no usable record in .*rows\.jsonl .*'answer too short': 1"):
        made(tmp_path, [record("头痛怎么办呢？", "多休息。")])
    assert not list((tmp_path / "store").rglob("*.json*")), "nothing is left to go on with"


# -- real rows


def _adds_up(found: Corpus) -> None:
    """Every answer is a passage's text; no example's negative answers it; no question stands in two splits; ids are unique."""
    passages = {passage.id: passage for passage in found.passages}
    assert len(passages) == len(found.passages)
    keys: dict[str, str] = {}
    for split, examples in _splits(found).items():
        for example in examples:
            assert {text.key(answer) for answer in example.answers} == {text.key(passages[name].text) for name in example.positives}
            assert not set(example.positives) & set(example.negatives)
            assert keys.setdefault(text.key(example.question), split) == split


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    sources = [recognise(str(ROOT / "corpora" / f"{name}.jsonl")) for name in SHIPPED]
    settings = Config(dictionary=WORDS, dev_share=0.0, test_share=0.0)
    return prepare.read(prepare.prepare(sources, settings, tmp_path_factory.mktemp("shipped"), False, ALONE))


def test_the_shipped_corpora_prepare_cleanly(shipped: Corpus) -> None:
    found = statistics(shipped.artifact)
    assert (found["rejected_rows"], found["dropped"], found["privacy"]) == (0, {}, {"patient_name": 1})
    assert [part["records"] for part in found["sources"]] == [600, 600, 0, 0]
    assert len(shipped.passages) == 1200
    assert found["splits"] == {"train": 1200, "dev": 88 + 70, "test": 168 + 70}
    assert found["unanswerable"] == {"train": 0, "dev": 70, "test": 70}
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
    assert reasons == {"off_topic": 76, "not_covered": 36, "personal": 28}
    readme = (ROOT / "corpora" / "README.md").read_text("utf-8")
    assert "CC BY 4.0" in readme and "Not medical advice" in readme and "language models" in readme
    for path in (ROOT / "corpora").iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in readme, f"{path.name} is not described"


def test_real_data(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"the real data is not at {DATA}")
    table = tmp_path / "part.csv"
    with open(DATA / "toyhom" / "internal_medicine_sample.csv", "rb") as stream:
        table.write_bytes(b"".join(stream.readline() for _ in range(400)))
    names = ("medicalgpt/medical_sft_1K_format.jsonl", "toyhom/internal_medicine_pairs.txt")
    found = corpus_of(tmp_path, [*(recognise(str(DATA / name)) for name in names), recognise(str(table))], dev_share=0.1, test_share=0.1)
    counts = statistics(found.artifact)
    assert counts["rows"] >= 945 + 3840 + 300
    assert counts["dropped"]["equal pair"] > 200, "the table overlaps the pairs"
    assert counts["rejected_rows"] <= 5 and counts["leaks"]["pairs_checked"] > 0
    _adds_up(found)


def test_two_questions_of_one_id_are_two_examples(tmp_path: Path) -> None:
    rows = [
        record("头痛怎么办呢？", "多休息，多喝水，少看手机。", id="r1"),
        record("脑袋疼要看什么科？", "多休息，多喝水，少看手机。", id="r1"),
    ]
    queries: list[Row] = [{"id": "r1", "question": "脑壳疼咋整", "answer_ids": ["r1"], "split": "train"}]
    sources = [source(tmp_path / "records.jsonl", rows), source(tmp_path / "questions.jsonl", queries)]
    found = prepare.read(prepare.prepare(sources, config(), tmp_path / "store", progress=False, working=ALONE)).train
    assert [example.positives for example in found] == [("r1",)] * 3
    assert found[0].id == "r1" and len({example.id for example in found}) == 3
