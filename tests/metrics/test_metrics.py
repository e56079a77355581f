"""Scores against values worked out by hand or by brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag import metrics
from medrag.text import Segmenter


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter()


def test_recall() -> None:
    ranked = ["a", "b", "c", "d"]
    assert [metrics.recall_at(ranked, {"c"}, k) for k in (1, 2, 3, 4, 100)] == [0, 0, 1, 1, 1]
    assert metrics.recall_at(ranked, {"x"}, 4) == metrics.recall_at([], {"a"}, 4) == metrics.recall_at(ranked, (), 4) == 0


def test_reciprocal_rank() -> None:
    ranked = list("abcdefghijkl")
    assert metrics.reciprocal_rank(ranked, {"a", "b"}) == 1
    assert metrics.reciprocal_rank(ranked, {"d", "c"}) == pytest.approx(1 / 3)
    assert metrics.reciprocal_rank(ranked, {"j"}) == pytest.approx(0.1)
    assert metrics.reciprocal_rank(ranked, {"k"}) == 0
    assert metrics.reciprocal_rank(ranked, {"k"}, k=11) == pytest.approx(1 / 11)


def test_ndcg() -> None:
    # right at ranks 2 and 3 of two: (1/log2 3 + 1/log2 4) / (1/log2 2 + 1/log2 3)
    assert metrics.ndcg(["x", "a", "b"], {"a", "b"}) == pytest.approx((0.6309298 + 0.5) / (1 + 0.6309298), abs=1e-6)
    assert metrics.ndcg(["a", "b", "x"], {"a", "b"}) == pytest.approx(1)
    assert metrics.ndcg(["x", "a"], {"a", "b"}, k=1) == 0
    assert metrics.ndcg(["a", "x"], {"a", "b", "c"}, k=1) == 1
    assert metrics.ndcg(["x"], {"a"}) == metrics.ndcg(["x"], ()) == 0


def test_character_f1() -> None:
    # 多喝水 against 多喝热水吧: 3 shared of 3 and 5
    assert metrics.character_f1("多喝水。", ["多喝热水吧"]) == pytest.approx(2 * 3 / (3 + 5))
    assert metrics.character_f1("水水水", ["水"]) == pytest.approx(2 * 1 / (3 + 1)), "bags, not sets"
    assert metrics.character_f1("吃HPV疫苗", ["hpv 疫苗"]) == pytest.approx(2 * 3 / (4 + 3)), "a foreign word is one unit"
    assert metrics.character_f1("多喝水", ["无关", "多，喝，水", "水"]) == 1
    assert metrics.character_f1("0.4毫克", ["04毫克"]) < 1
    assert (
        metrics.character_f1("", ["水"]) == metrics.character_f1("水", [""]) == metrics.character_f1("", [""]) == metrics.character_f1("水", []) == 0
    )


def test_rouge_l(segmenter: Segmenter) -> None:
    assert segmenter.join("我们喜欢喝水") == "我们 喜欢 喝水" and segmenter.join("我们喝水") == "我们 喝水"
    # the longest common subsequence has 2 words, of 2 and of 3: P = 1, R = 2/3
    assert metrics.rouge_l("我们喝水。", ["我们喜欢喝水！"], segmenter) == pytest.approx(0.8, abs=1e-6)
    assert metrics.rouge_l("我们喝水", ["医院", "我们喝水"], segmenter) == pytest.approx(1, abs=1e-6)
    assert metrics.rouge_l("医院", ["我们喝水"], segmenter) == pytest.approx(0, abs=1e-6)
    for answer, references in (("", ["水"]), ("。！", ["水"]), ("水", [""]), ("水", []), ("", [])):
        assert metrics.rouge_l(answer, references, segmenter) == 0


def test_rouge_l_of_a_very_long_answer(segmenter: Segmenter) -> None:
    assert metrics.rouge_l("头痛医院" * 600, ["头痛"], segmenter) > 0


def test_bleu() -> None:
    perfect = metrics.bleu(["孕期可以少喝咖啡。", "多喝水"], [["孕期可以少喝咖啡。"], ["多喝水", "别的"]])
    assert perfect.score == pytest.approx(100)
    assert "tok:zh" in perfect.signature and "nrefs:1" in perfect.signature
    assert perfect.statistics.shape == (2, 10)
    # 甲乙丙丁 against 甲乙丙戊: precisions 3/4, 2/3, 1/2, then 0/1 smoothed to 1/2; no brevity penalty
    measured = metrics.bleu(["甲乙丙丁"], [["甲乙丙戊"]])
    assert measured.score == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    # half as long as the reference: the penalty is exp(1 - 2)
    assert metrics.bleu(["甲乙丙丁"], [["甲乙丙丁戊己庚辛"]]).score == pytest.approx(100 * math.exp(-1))


def test_bleu_of_empty_answers() -> None:
    assert metrics.bleu(["", ""], [["多喝水"], ["多休息"]]).score == 0
    mixed = metrics.bleu(["", "孕期可以少喝咖啡"], [["多喝水"], ["孕期可以少喝咖啡"]])
    assert 0 < mixed.score < 100


def test_bleu_interval_contains_bleu() -> None:
    answers = ["孕期可以少喝咖啡", "多喝水多休息", "去医院看医生吧", "血压高要吃药"] * 5
    references = [["孕期可以喝咖啡"], ["多喝水好好休息"], ["去医院看医生吧"], ["不能停药"]] * 5
    measured = metrics.bleu(answers, references)
    low, high = metrics.bleu_interval(measured, 200, seed=0)
    assert 0 < low < measured.score < high < 100
    assert (low, high) == metrics.bleu_interval(measured, 200, seed=0) != metrics.bleu_interval(measured, 200, seed=1)
    alone = metrics.bleu(answers[:1], references[:1])
    assert metrics.bleu_interval(alone, 10, seed=0) == pytest.approx((alone.score, alone.score))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_the_interval_contains_the_mean(values: list[float]) -> None:
    found = metrics.mean_with_interval(values, resamples=200)
    assert found.count == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert min(values) - 1e-9 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= max(values) + 1e-9


def test_the_interval_has_the_width_of_two_standard_errors() -> None:
    found = metrics.mean_with_interval([0.0, 1.0] * 200, resamples=2000)
    assert found.mean == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.1)
    assert metrics.mean_with_interval([0.0, 1.0] * 200, 100, seed=3) == metrics.mean_with_interval([0.0, 1.0] * 200, 100, seed=3)
    assert metrics.mean_with_interval([]).count == 0 and math.isnan(metrics.mean_with_interval([]).mean)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
@settings(max_examples=200, deadline=None)
def test_area_under_roc(rows: list[tuple[int, bool]]) -> None:
    right, wrong = [score for score, positive in rows if positive], [score for score, positive in rows if not positive]
    area = metrics.area_under_roc([score for score, _ in rows], [positive for _, positive in rows])
    if not right or not wrong:
        assert math.isnan(area)
    else:
        wins = sum((ours > theirs) + 0.5 * (ours == theirs) for ours in right for theirs in wrong)
        assert area == pytest.approx(wins / (len(right) * len(wrong)))


def test_calibration() -> None:
    confidence, right = [0.05, 0.15, 0.15, 0.95, 1.0], [False, False, True, True, True]
    rows = metrics.reliability(confidence, right)
    assert [row[0] for row in rows] == [1, 2, 2]
    assert rows[1][1:] == pytest.approx((0.4, 0.15, 0.5))
    # 0.2 |0.05 - 0| + 0.4 |0.15 - 0.5| + 0.4 |0.975 - 1|
    assert metrics.calibration_error(confidence, right) == pytest.approx(0.01 + 0.14 + 0.01)
    assert metrics.calibration_error([1.0, 0.0], [True, False]) == 0
    assert metrics.calibration_error([1.0, 0.0], [False, True]) == 1
