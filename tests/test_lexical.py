"""BM25 against the formula written out, and the choice of the best rows."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag.lexical import UNITS, Lexical, best
from medrag.text import Segmenter, Synonyms

DOCUMENTS = [
    "头痛怎么办？头痛要多休息，多喝水。",
    "发热是指体温超过37.3度，多喝水。",
    "孕期可以少喝咖啡，每天不超过一小杯。",
    "高血压病人要少吃盐，按时吃降压药。",
    "。",
    "腹泻要补充水分，严重时去医院。腹泻、腹泻！",
]
QUESTIONS = ["头痛怎么办", "头痛头痛头痛", "孕期能喝咖啡吗", "多喝水有用吗", "腹泻"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter()


def _lexical(segmenter: Segmenter, unit: str = "characters", synonyms: Synonyms | None = None) -> Lexical:
    lexical = Lexical(segmenter, unit, synonyms)
    lexical.build(DOCUMENTS)
    return lexical


def _brute(lexical: Lexical, question: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """``sum_t ln(1 + (N - n_t + 1/2) / (n_t + 1/2)) f_td / (f_td + k1 (1 - b + b |d| / mean |d|))``, over every token of the question."""
    documents = [Counter(lexical.tokens(document)) for document in DOCUMENTS]
    lengths = [sum(document.values()) for document in documents]
    mean = sum(lengths) / len(lengths)
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        score = 0.0
        for token in lexical.tokens(question):
            holding = sum(token in other for other in documents)
            weight = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            score += weight * document[token] / (document[token] + k1 * (1 - b + b * length / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("unit", UNITS)
def test_scores_are_those_of_the_formula(segmenter: Segmenter, unit: str) -> None:
    lexical = _lexical(segmenter, unit)
    for question in QUESTIONS:
        want = _brute(lexical, question)
        assert max(want) > 0
        np.testing.assert_allclose(lexical.scores(question), want, rtol=1e-5, atol=1e-6)
        assert lexical.search(question, 1) == [int(np.argmax(want))]


@pytest.mark.parametrize("question", ["", "，。", "xyzzy", "饕餮"])
def test_unknown_words_find_nothing(segmenter: Segmenter, question: str) -> None:
    lexical = _lexical(segmenter)
    assert lexical.scores(question).tolist() == [0.0] * len(DOCUMENTS)
    assert lexical.search(question, 3) == []
    assert lexical.find(question).known == 0.0


def test_an_unknown_word_beside_known_ones_changes_nothing(segmenter: Segmenter) -> None:
    lexical = _lexical(segmenter)
    assert (lexical.scores("头痛 xyzzy") == lexical.scores("头痛")).all()


def test_more_rows_than_the_corpus_has(segmenter: Segmenter) -> None:
    lexical = _lexical(segmenter)
    scores = lexical.scores("多喝水")
    found = lexical.search("多喝水", 100)
    assert set(found) == {row for row, score in enumerate(scores) if score > 0}
    assert [scores[row] for row in found] == sorted((scores[row] for row in found), reverse=True)
    assert lexical.search("多喝水", 0) == []


def test_what_share_of_a_question_is_known(segmenter: Segmenter) -> None:
    lexical = _lexical(segmenter)
    assert all(0 < lexical.find(question).known <= 1 for question in QUESTIONS)
    assert lexical.find("头z").known == pytest.approx(1 / 3)


def test_synonyms_count_as_much_as_their_weight(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("腹泻 拉肚子\n发热 发烧\n", "utf-8")
    plain, lexical = _lexical(segmenter), _lexical(segmenter, synonyms=Synonyms(path))
    assert 5 not in plain.search("拉肚子", 6)
    assert lexical.search("拉肚子", 1) == [5]
    assert (lexical.scores("拉肚子就是腹泻") == plain.scores("拉肚子就是腹泻")).all(), "what the question says itself is not counted twice"
    lexical.synonym_weight = 1.0
    full = lexical.scores("拉肚子")
    lexical.synonym_weight = 0.5
    np.testing.assert_allclose(lexical.scores("拉肚子"), (full + plain.scores("拉肚子")) / 2, rtol=1e-6)
    lexical.synonym_weight = 0.0
    assert (lexical.scores("拉肚子") == plain.scores("拉肚子")).all()


def test_saved_is_loaded(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("腹泻 拉肚子\n", "utf-8")
    lexical = _lexical(segmenter, synonyms=Synonyms(tmp_path / "words.txt"))
    wanted = {question: lexical.find(question) for question in [*QUESTIONS, "拉肚子", "xyzzy"]}
    folder = tmp_path / "bm25" / "characters"
    lexical.save(folder)
    for again in (lexical, Lexical.load(folder, segmenter, "characters")):
        assert len(again) == len(DOCUMENTS)
        for question, want in wanted.items():
            found = again.find(question)
            assert (found.own_N == want.own_N).all() and (found.synonyms_N == want.synonyms_N).all()
            assert found.known == want.known
    assert {path.suffix for path in folder.iterdir()} == {".npy", ".json", ".txt"}


@given(st.lists(st.text("头痛发热多喝水，a1 ", max_size=12), max_size=12), st.lists(st.integers(0, 12), max_size=3), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_added_is_built_at_once(segmenter: Segmenter, documents: list[str], cuts: list[int], at_once: int) -> None:
    """However the documents come, whatever the size of a shard, kept on disk in between or not: the very same bits."""
    whole, parts = Lexical(segmenter, "characters"), Lexical(segmenter, "characters")
    whole.build(documents)
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as home:
        patch.setattr("medrag.lexical.SHARD_DOCUMENTS", at_once)
        for number, (start, end) in enumerate(pairwise([0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)])):
            parts.add(documents[start:end])
            if number % 2:
                parts.save(Path(home) / "bm25")
                parts = Lexical.load(Path(home) / "bm25", segmenter, "characters")
        parts.save(Path(home) / "bm25")
        for again in (parts, Lexical.load(Path(home) / "bm25", segmenter, "characters")):
            assert len(again) == len(documents)
            for question in ("头痛", "多喝水发热", "a1", "没有"):
                one, other = whole.find(question), again.find(question)
                assert (one.own_N == other.own_N).all()
                assert one.known == other.known


def test_adding_leaves_what_was_saved_as_it_was(segmenter: Segmenter, tmp_path: Path) -> None:
    """A new folder takes the old shards over, as links, and what it adds touches nothing of theirs; a torn shard is not read."""
    _lexical(segmenter).save(tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    more = Lexical.load(tmp_path / "old", segmenter, "characters")
    more.add(["拉肚子了怎么办"])
    more.save(tmp_path / "new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert (tmp_path / "new" / "00000.rows_P.npy").samefile(tmp_path / "old" / "00000.rows_P.npy")
    both = Lexical.load(tmp_path / "new", segmenter, "characters")
    assert len(both) == len(DOCUMENTS) + 1 and both.search("拉肚子", 1) == [len(DOCUMENTS)]
    (tmp_path / "new" / "00001.units.json").unlink()
    assert len(Lexical.load(tmp_path / "new", segmenter, "characters")) == len(DOCUMENTS)


def test_nothing_to_find(segmenter: Segmenter, tmp_path: Path) -> None:
    """No documents, or documents without a unit."""
    for documents in ([], ["。", ""]):
        lexical = Lexical(segmenter)
        lexical.build(documents)
        lexical.save(tmp_path / str(len(documents)))
        for again in (lexical, Lexical.load(tmp_path / str(len(documents)), segmenter, "words")):
            assert again.scores("头痛").tolist() == [0.0] * len(documents)


def test_another_unit_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match=r"index\.lexical='bytes'; allowed: words, characters"):
        Lexical(segmenter, "bytes")


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=40), st.integers(0, 45))
@settings(max_examples=200, deadline=None)
def test_best_rows_in_order_and_ties_by_row(scores: list[float], k: int) -> None:
    array: npt.NDArray[np.float32] = np.asarray(scores, dtype=np.float32)
    want = [row for row in sorted(range(len(scores)), key=lambda row: (-scores[row], row)) if scores[row] > 0][:k]
    assert best(array, k) == want


def test_the_best_rows_are_those_of_a_full_sort() -> None:
    """Many ties, runs of zeros, and more rows than fit a whole number of runs."""
    random = np.random.default_rng(7)
    for count in (1, 63, 64, 65, 200, 1000):
        for highest in (1, 3, 1000):
            scores = random.integers(0, highest + 1, count).astype(np.float32)
            order = sorted((row for row in range(count) if scores[row] > 0), key=lambda row: (-scores[row], row))
            for k in (0, 1, 2, 15, 16, 50, count, count + 5):
                assert best(scores, k) == order[:k]
