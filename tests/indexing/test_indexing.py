"""The index built, added to and removed from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import indexes
import numpy as np
import pytest
from conftest import Tiny

from medrag import files, indexing
from medrag.encoding import Encoding
from medrag.files import Artifact
from medrag.indexing import tuning, verify
from medrag.passages import Passages
from medrag.retriever import Retriever
from medrag.types import Passage

QUESTIONS = 6
"""asked where two indexes are compared"""


@pytest.fixture(scope="module", autouse=True)
def _no_power_cut() -> Iterator[None]:
    """Waiting for the disk is half the time of a small index."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def store(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed") / "store"
    indexes.publish(folder, tiny, indexes.many(tiny, 90))
    return folder


@pytest.fixture(scope="module")
def base(store: Path, tiny: Tiny) -> Artifact:
    return indexes.build(store, tiny)


@pytest.fixture(scope="module")
def others(tiny: Tiny) -> list[Passage]:
    """Like no other to the encoder."""
    texts = [passage.text for passage in tiny.passages]
    return [
        Passage(f"new{number}", texts[number % 30][::-1] + texts[(number + number // 30 + 5) % 30], "leaflets", "复查" * (number % 2))
        for number in range(40)
    ]


def ranked(finder: Retriever, tiny: Tiny, k: int = 12) -> list[list[tuple[str, float]]]:
    return [[(hit.passage.id, round(hit.score, 3)) for hit in hits] for hits in finder.retrieve(tiny.questions[:QUESTIONS], k)]


def agree(one: list[list[tuple[str, float]]], other: list[list[tuple[str, float]]]) -> None:
    assert [[name for name, _ in row] for row in one] == [[name for name, _ in row] for row in other]
    np.testing.assert_allclose([[score for _, score in row] for row in one], [[score for _, score in row] for row in other], atol=2e-3)


# -- building -----------------------------------------------------------------------------------------------------------------------


def test_what_is_built_in_shards_is_what_is_remembered_at_once(base: Artifact, tiny: Tiny) -> None:
    found = indexes.finder(tiny, base)
    whole = indexes.finder(tiny)
    whole.remember(indexes.many(tiny, 90))
    tuning.tune(whole, tiny.examples[:10])
    assert sorted(path.name for path in (base.path / "shards").glob("*.jsonl")) == [f"0000{number}.jsonl" for number in range(4)]
    assert list(found.passages) == indexes.many(tiny, 90) and dict(found.row) == whole.row
    assert found.weights == pytest.approx(whole.weights, rel=1e-3)
    found.weights = whole.weights
    agree(ranked(found, tiny), ranked(whole, tiny))


def test_a_second_build_finds_the_first(base: Artifact, store: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "index" / "CURRENT").unlink()
    (store / "index" / f".work-{base.manifest['key'][:12]}" / "passages").mkdir(parents=True)
    again = indexes.build(store, tiny)
    assert again.path == base.path and "already made" in capsys.readouterr().err
    assert files.current(store, "index").path == base.path
    assert not list((store / "index").glob(".work-*")), "what a killed run left is put away"


def test_another_search_takes_the_vectors_that_are_there(base: Artifact, store: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(Encoding, "__call__", refuse)
    other = indexes.build(store, tiny, kind="sq8", lexical=["characters"])
    assert other.path != base.path and not (other.path / "bm25" / "words").exists()
    for name in ("shards/00002.npy", "shards/00003.npy"):
        assert (other.path / name).read_bytes() == (base.path / name).read_bytes()
        assert (other.path / name).stat().st_ino == (base.path / name).stat().st_ino, "linked, not copied"
    with pytest.raises(AssertionError, match="encoded again"):
        indexes.build(store, tiny, shard_passages=40)
    shutil.rmtree(next((store / "index").glob(".work-*")))
    files.set_current(store, "index", base.path)


def test_questions_lead_to_the_passages_they_are_answered_by(store: Path, base: Artifact, tiny: Tiny) -> None:
    index = indexes.build(store, tiny, questions=True)
    rows = list(files.read_jsonl(index.path / "questions" / "00000.jsonl"))
    assert [(row["text"], f"p{row['row']}") for row in rows] == [(example.question, example.positives[0]) for example in tiny.examples[10:]]
    assert np.load(index.path / "questions" / "owners.npy").tolist() == [row["row"] for row in rows]
    finder = indexes.finder(tiny, index)
    finder.weights = {"questions": 1.0}
    for example in tiny.examples[10:15]:
        assert finder.retrieve([example.question], 1)[0][0].passage.id == example.positives[0]
    files.set_current(store, "index", base.path)


def test_settings_out_of_range_are_refused_before_anything_is_encoded(store: Path, base: Artifact, tiny: Tiny) -> None:
    for change, words in (
        ({"kind": "ivv"}, "index.kind=ivv"),
        ({"lexical": ["letters"]}, "index.lexical='letters'"),
        ({"candidates": 0}, "index.candidates=0"),
    ):
        with pytest.raises(ValueError, match=words):
            indexes.build(store, tiny, **change)
    assert not list((store / "index").glob(".work-*"))


def test_doubled_ids_in_the_corpus_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    passages = indexes.many(tiny, 40)
    indexes.publish(tmp_path, tiny, [*passages, replace(passages[7], text="另一条。")])
    with pytest.raises(ValueError, match="1 passages have the id of another, as 'p7'"):
        indexes.build(tmp_path, tiny)
    assert not list((tmp_path / "index").glob(".work-*")), "it would be refused again"


# -- adding and removing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "IVF2,Flat", "hnsw"])
def test_added_is_as_if_built_together(kind: str, store: Path, base: Artifact, tiny: Tiny, others: list[Passage], tmp_path: Path) -> None:
    """The same passages are found with the same scores as where all had been there from the beginning."""
    start = indexes.build(store, tiny, kind=kind, probes=0 if kind == "flat" else 64)
    before = indexes.contents(start)
    grown = indexes.add(start, tiny, indexes.write(tmp_path / "new.jsonl", others[:30]), indexes.write(tmp_path / "more.jsonl", others[30:]))
    assert grown.manifest["parents"].keys() == {"corpus", "dense", "index"} and grown.parent("index").hash == start.hash
    assert {name: grown.manifest["parents"][name] for name in ("corpus", "dense")} == start.manifest["parents"]
    assert grown.manifest["config"]["history"][-1]["files"][0][2] == [["new.jsonl", files.sha256(tmp_path / "new.jsonl")]]
    assert indexing.ancestors(grown) == {start.hash}
    together = tmp_path / "store"
    indexes.publish(together, tiny, [*indexes.many(tiny, 90), *others])
    found, whole = indexes.finder(tiny, grown), indexes.finder(tiny, indexes.build(together, tiny, kind=kind, probes=0 if kind == "flat" else 64))
    whole.weights = found.weights
    assert list(found.passages) == list(whole.passages) and dict(found.row) == dict(whole.row)
    agree(ranked(found, tiny), ranked(whole, tiny))
    assert indexes.contents(start) == before, "what is published is never edited"
    assert (grown.path / "shards/00001.npy").stat().st_ino == (start.path / "shards/00001.npy").stat().st_ino
    list(verify.verify(grown, found, indexes.encoding(found), tiny.questions, progress=False))
    files.set_current(store, "index", base.path)


def test_come_and_gone_is_as_if_it_had_been_so(
    store: Path, base: Artifact, tiny: Tiny, others: list[Passage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounds of additions and removals against a retriever that remembers just what is left."""
    index, draw = base, np.random.default_rng(3)
    expected = indexes.live(base)
    for turn in range(4):
        gone = {expected[place].id for place in draw.choice(len(expected), 15, replace=False).tolist()}
        index = indexing.remove(index, sorted(gone))
        back = [replace(passage, text=f"{passage.text}改过{turn}次。") for passage in expected if passage.id in gone][:5]
        new = [*back, *others[10 * turn : 10 * turn + 10]]
        expected = [passage for passage in expected if passage.id not in gone]
        assert indexes.live(index) == expected
        index = indexes.add(index, tiny, indexes.write(tmp_path / f"{turn}.jsonl", new))
        expected += new
        found, plain = indexes.finder(tiny, index), indexes.finder(tiny)
        plain.remember(expected)
        assert indexes.live(index) == expected
        assert {name: found.passages[row] for name, row in found.row.items()} == {passage.id: passage for passage in expected}
        hits = found.retrieve(tiny.questions, 20)
        assert {hit.passage.id for row in hits for hit in row} <= {passage.id for passage in expected}
        found.weights = {"dense": 1.0}
        agree(ranked(found, tiny), ranked(plain, tiny))
        kept = json.loads((index.path / "retrieval.json").read_text("utf-8"))
        assert kept["passages"] - kept["removed"] == len(expected)
        list(verify.verify(index, found, indexes.encoding(found), tiny.questions, progress=False))
    assert len(indexing.ancestors(index)) == 8 and base.hash in indexing.ancestors(index)
    capsys.readouterr()
    shutil.rmtree(indexes.build(store, tiny, candidates=7).path)
    assert "60 removed passages are back, and what was added is not: ['0.jsonl', '1.jsonl'" in capsys.readouterr().err
    files.set_current(store, "index", base.path)


def test_an_index_keeps_its_own_synonyms(store: Path, base: Artifact, tiny: Tiny, others: list[Passage], tmp_path: Path) -> None:
    """The file they came from may be gone, or lie somewhere else, when passages are added."""
    words = tmp_path / "synonyms.txt"
    words.write_text("宝宝 婴儿\n", "utf-8")
    one = indexes.build(store, tiny, synonyms=str(words), lexical=["characters"])
    words.unlink()
    two = indexes.add(one, tiny, indexes.write(tmp_path / "new.jsonl", others[:3]))
    kept = [indexes.finder(tiny, index).lexicals["characters"].synonyms.groups for index in (one, two)]
    assert kept[0] == kept[1] != []
    files.set_current(store, "index", base.path)


def test_what_is_there_already_is_skipped_and_counted(base: Artifact, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = list(Passages(base.path))
    same = [replace(old[3], id="other"), old[4], replace(old[6], text=old[6].text.replace("，", ",").replace("。", " 。"))]
    assert indexes.add(base, tiny, indexes.write(tmp_path / "same.jsonl", same)).path == base.path
    assert "added: 0, equal: 3" in capsys.readouterr().err
    new = Passage("n1", "全新的一条，请多休息。", "x")
    path = indexes.write(tmp_path / "mixed.jsonl", [*same, new, replace(new, id="n2"), replace(new, id="n3", title="休息")])
    grown = indexes.add(base, tiny, path)
    assert [passage.id for passage in Passages(grown.path)][len(old) :] == ["n1", "n3"], "under another title it says something else"
    step = grown.manifest["config"]["history"][-1]
    assert (step["added"], step["equal"]) == (2, 4)
    assert indexes.add(grown, tiny, path).path == grown.path, "a second time there is nothing new"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "p3", "text": "另一条说法。", "source": "x"}], r"bad\.jsonl, line 1: the id 'p3' is that of another passage \(v\d+-\w+, row 3\)"),
        (
            [{"id": "a", "text": "一条。", "source": "x"}, {"id": "a", "text": "两条。", "source": "x"}],
            r"line 2: the id 'a' is that of another passage \(.*bad\.jsonl, line 1\)",
        ),
        ([{"id": "a", "text": "一条。", "source": "x"}, {"id": "b", "text": " ", "source": "x"}], r"line 2, byte 4\d: the text of 'b' is empty"),
        ([{"id": "b", "text": "？！", "source": "x"}], "line 1, byte 0: no text is left of 'b' once it is cleaned"),
        ([{"id": "", "text": "一条。", "source": "x"}], "line 1, byte 0: id is empty"),
        ([{"id": "a", "text": "一条。", "source": "x"}, {"id": "b", "text": "两条。"}], "line 2, byte 4.: no passage; a passage is an object of"),
        ([{"id": "a", "text": "一条。", "source": "x"}, {"id": "b", "text": 7, "source": "x"}], "line 2, byte 4.: text must be a string, not int"),
    ],
)
def test_a_wrong_row_is_refused_with_its_place(rows: list[object], words: str, base: Artifact, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    before = sorted(base.path.parent.iterdir())
    with pytest.raises(ValueError, match=words):
        indexes.add(base, tiny, path)
    assert sorted(base.path.parent.iterdir()) == before


def test_raw_sources_are_cleaned_and_redacted(base: Artifact, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record's answer becomes a passage; advertisements and personal data go; what cannot be used is left out and named."""
    rows = [
        {"question": "打鼾怎么办？", "answer": "侧卧&nbsp;&nbsp;睡，少喝酒。我的微信是doctor12345，欢迎咨询。", "id": "r1"},
        {"question": "落枕怎么办？", "answer": "热敷，患者电话13812345678。"},
        {"question": "空的？", "answer": "……"},
        {"question": "没有答案？", "answer_ids": ["r1"]},
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    grown = indexes.add(base, tiny, path)
    first, second = list(Passages(grown.path))[90:]
    assert first.id == "r1" and first.source == "records" and first.title == "" and "微信" not in first.text and "&nbsp;" not in first.text
    assert second.id.startswith("p") and len(second.id) == 17 and "13812345678" not in second.text
    said = capsys.readouterr().err
    assert "left out: 2" in said and "row 3: no text is left" in said and "row 4: a question without" in said


def test_rows_of_passages_are_told_from_pages(base: Artifact, tiny: Tiny, tmp_path: Path) -> None:
    """Groups are kept and numbers are ids; a page, which has an address, is cut into passages."""
    rows = [{"id": 7, "text": "整段的话。", "source": "x", "group": "g1"}, {"id": "8", "text": "又一段话。", "source": "x", "title": "题"}]
    page = {"id": "9", "url": "http://example.org/9", "title": "页", "text": "一页里的一句话。\n\n" * 300, "source": "wiki"}
    for name, some in (("rows", rows), ("pages", [page])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), "utf-8")
    grown = indexes.add(base, tiny, tmp_path / "rows.jsonl")
    assert list(Passages(grown.path))[90:] == [Passage("7", "整段的话。", "x", "", "g1"), Passage("8", "又一段话。", "x", "题")]
    grown = indexes.add(base, tiny, tmp_path / "pages.jsonl")
    cut = list(Passages(grown.path))[90:]
    assert len(cut) > 1 and all(passage.title.startswith("页") for passage in cut)
    files.set_current(base.path.parent.parent, "index", base.path)


def test_removal_refuses_what_is_not_there(base: Artifact, tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="has no passage 'x1', 'x2'"):
        indexing.remove(base, ["p1", "x1", "x2"])
    smaller = indexing.remove(base, ["p1", "p2"])
    with pytest.raises(ValueError, match="has no passage 'p1'"):
        indexing.remove(smaller, ["p1"])
    with pytest.raises(ValueError, match="no passage would be left"):
        indexing.remove(base, [passage.id for passage in Passages(base.path)])
    assert indexing.remove(base, ["p2", "p1", "p2"]).path == smaller.path
    files.set_current(base.path.parent.parent, "index", base.path)
