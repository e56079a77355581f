"""BM25 against the formula written out, and the choice of the best rows."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

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
    assert lexical.ceiling(question) == (0.0, 0.0)


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


def test_the_ceiling_is_never_passed(segmenter: Segmenter) -> None:
    lexical = _lexical(segmenter)
    columns = {token: max(_brute(lexical, token)[row] for row in range(len(DOCUMENTS))) for token in ("头", "痛")}
    for question in QUESTIONS:
        ceiling, known = lexical.ceiling(question)
        assert ceiling >= lexical.scores(question).max() - 1e-5
        assert 0 < known <= 1
    assert lexical.ceiling("头")[0] == pytest.approx(columns["头"], rel=1e-5)
    assert lexical.ceiling("头z")[1] == pytest.approx(1 / 3)


def test_synonyms_count_as_much_as_their_weight(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("腹泻 拉肚子\n发热 发烧\n", "utf-8")
    plain, lexical = _lexical(segmenter), _lexical(segmenter, synonyms=Synonyms(path))
    assert 5 not in plain.search("拉肚子", 6)
    assert lexical.search("拉肚子", 1) == [5]
    assert (lexical.scores("拉肚子就是腹泻") == plain.scores("拉肚子就是腹泻")).all(), "what the question says itself is not counted twice"
    full = lexical.scores("拉肚子")
    lexical.synonym_weight = 0.5
    np.testing.assert_allclose(lexical.scores("拉肚子"), (full + plain.scores("拉肚子")) / 2, rtol=1e-6)
    lexical.synonym_weight = 0.0
    assert (lexical.scores("拉肚子") == plain.scores("拉肚子")).all()


def test_saved_is_loaded(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("腹泻 拉肚子\n", "utf-8")
    lexical = _lexical(segmenter, synonyms=Synonyms(tmp_path / "words.txt"))
    folder = tmp_path / "saved"
    folder.mkdir()
    lexical.save(folder)
    again = Lexical.load(folder, segmenter, "characters", len(DOCUMENTS))
    for question in [*QUESTIONS, "拉肚子", "xyzzy"]:
        assert (again.scores(question) == lexical.scores(question)).all()
        assert again.ceiling(question) == lexical.ceiling(question)
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle")]


def test_another_unit_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match="'bytes'; allowed: words, characters, both"):
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
