"""Scores of texts against sacrebleu and rouge-chinese called directly, and against values worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rouge_chinese import Rouge
from sacrebleu.metrics.bleu import BLEU

from medrag.metrics import texts
from medrag.text import Segmenter

ANSWERS = ["孕期可以少喝咖啡，每天一小杯。", "多喝水多休息", "", "血压高要吃药，血压高要吃药", "去医院"]
REFERENCES = [["孕期可以喝咖啡吗？可以少喝。", "别的"], ["多喝水，好好休息"], ["不能停药"], ["血压高不能停药"], ["去医院"]]
WORDS = st.lists(st.sampled_from("甲乙丙丁"), max_size=12)


def test_character_f1() -> None:
    # 多喝水 against 多喝热水吧: 3 shared of 3 and 5
    assert texts.character_f1("多喝水。", ["多喝热水吧"]) == pytest.approx(2 * 3 / (3 + 5))
    assert texts.character_f1("水水水", ["水"]) == pytest.approx(2 * 1 / (3 + 1)), "bags, not sets"
    assert texts.character_f1("吃HPV疫苗", ["hpv 疫苗"]) == pytest.approx(2 * 3 / (4 + 3)), "a foreign word is one unit"
    assert texts.character_f1("多喝水", ["无关", "多，喝，水", "水"]) == 1
    assert texts.character_f1("0.4毫克", ["04毫克"]) < 1
    for answer, references in (("", ["水"]), ("水", [""]), ("", [""]), ("水", [])):
        assert texts.character_f1(answer, references) == 0


def test_rouge_by_hand() -> None:
    segmenter = Segmenter()
    ours, theirs = segmenter.join("我们喝水。").split(), segmenter.join("我们喜欢喝水！").split()
    assert ours == ["我们", "喝水"] and theirs == ["我们", "喜欢", "喝水"]
    # two words of 2 and 3, no pair, a common subsequence of two: P = 1, R = 2/3
    assert texts.rouge(ours, [theirs]) == pytest.approx((0.8, 0, 0.8))
    assert texts.rouge(list("甲乙甲乙"), [list("甲乙")]) == pytest.approx((1, 2 * 1 / (2 + 1), 2 * 2 / (4 + 2))), "n-grams are sets"
    assert texts.rouge(list("甲乙"), [list("丙"), list("乙甲"), list("甲")]) == pytest.approx((1, 0, 2 / 3)), "the best reference for each figure"
    for answer, references in (([], [["水"]]), (["水"], [[]]), (["水"], []), ([], []), ([], [[]])):
        assert texts.rouge(answer, references) == (0, 0, 0)


@given(WORDS, WORDS)
@settings(max_examples=300, deadline=None)
def test_rouge_is_that_of_rouge_chinese(answer: list[str], reference: list[str]) -> None:
    assume(answer and reference)
    (wanted,) = Rouge(stats=["f"]).get_scores(" ".join(answer), " ".join(reference))
    assert texts.rouge(answer, [reference]) == pytest.approx([wanted[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")], abs=1e-7)


def test_rouge_of_a_very_long_answer() -> None:
    assert texts.rouge(["头痛", "医院"] * 2000, [["头痛"] * 10]).longest == pytest.approx(2 * 10 / 4010)


@pytest.mark.parametrize("order", texts.ORDERS)
def test_bleu_is_that_of_sacrebleu(order: int) -> None:
    rows, signature = texts.bleu_statistics(ANSWERS, REFERENCES)
    metric = BLEU(tokenize="zh", max_ngram_order=order)
    wanted = metric.corpus_score(ANSWERS, [[first for first, *_ in REFERENCES]])
    assert texts.bleu(rows.sum(0), order) == pytest.approx(wanted.score) and 0 < wanted.score < 100
    assert signature == str(metric.get_signature()) and "tok:zh" in signature and "nrefs:1" in signature
    for some in ([0], [1, 3], [3, 3, 0], [2], [4]):
        alone = metric.corpus_score([ANSWERS[place] for place in some], [[REFERENCES[place][0] for place in some]])
        assert texts.bleu(rows[some].sum(0), order) == pytest.approx(alone.score), "any selection is scored from the rows of the whole"


def test_bleu_by_hand() -> None:
    def scores(answer: str, reference: str) -> list[float]:
        rows, _ = texts.bleu_statistics([answer], [[reference]])
        return [texts.bleu(rows.sum(0), order) for order in texts.ORDERS]

    # 甲乙丙丁 against 甲乙丙戊: precisions 3/4, 2/3, 1/2, then 0/1 smoothed to 1/2; no brevity penalty
    precisions = [3 / 4, 2 / 3, 1 / 2, 1 / 2]
    assert scores("甲乙丙丁", "甲乙丙戊") == pytest.approx([100 * math.prod(precisions[:n]) ** (1 / n) for n in texts.ORDERS])
    # half as long as the reference: the penalty is exp(1 - 2)
    assert scores("甲乙丙丁", "甲乙丙丁戊己庚辛") == pytest.approx([100 * math.exp(-1)] * 4)
    assert scores("多喝水。", "多喝水。") == pytest.approx([100] * 4)
    # two characters have no run of three
    assert scores("去医", "去医") == pytest.approx([100, 100, 0, 0])
    assert scores("", "多喝水") == scores("咖啡", "多喝水") == [0] * 4


def test_distinct_by_hand() -> None:
    answers = [list("甲乙甲"), list("甲乙"), [], list("丙")]
    # words 甲 乙 丙 of 6; pairs 甲乙 乙甲 of 3
    assert texts.distinct(answers, 1).mean == pytest.approx(3 / 6) and texts.distinct(answers, 2).mean == pytest.approx(2 / 3)
    assert texts.distinct(answers, 1).count == 4
    assert texts.distinct([[], []], 1).mean == texts.distinct([], 2).mean == texts.distinct([list("甲")], 2).mean == 0


@given(st.lists(WORDS, min_size=2, max_size=6), st.sampled_from([1, 2]))
@settings(max_examples=100, deadline=None)
def test_the_interval_of_distinct_leaves_one_out(answers: list[list[str]], order: int) -> None:
    def share(some: list[list[str]]) -> float:
        runs = [run for words in some for run in (words if order == 1 else list(pairwise(words)))]
        return len(set(runs)) / len(runs) if runs else 0.0

    measured = texts.distinct(answers, order)
    without = np.array([share(answers[:place] + answers[place + 1 :]) for place in range(len(answers))])
    error = 1.96 * math.sqrt((len(answers) - 1) * float(np.mean((without - without.mean()) ** 2)))
    assert measured.mean == pytest.approx(share(answers))
    assert (measured.low, measured.high) == pytest.approx((max(0, share(answers) - error), min(1, share(answers) + error)))
