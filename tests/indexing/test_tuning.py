"""Weights of signals, of synonyms, and the calibration, from development questions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ASKED, Tiny

from medrag import metrics
from medrag.fusion import SIGNALS
from medrag.indexing import tuning
from medrag.retriever import Retriever
from medrag.search import Search
from medrag.types import Example


def mrr(finder: Retriever, examples: list[Example]) -> float:
    found = finder.retrieve([example.question for example in examples], 10)
    return float(np.mean([metrics.reciprocal_rank([hit.passage.id for hit in hits], e.positives) for e, hits in zip(examples, found, strict=True)]))


def test_tune_weighs_the_signals_and_calibrates(tiny: Tiny) -> None:
    """Random encoders know nothing, so BM25 must win weight; sure questions must be righter than unsure ones."""
    finder = tiny.retriever(lexical=True, asked=ASKED)
    stranger = [Example("x1", "劳动仲裁要准备什么", (), ()), Example("x2", "红烧排骨放几勺糖", (), ())]
    assert finder.confidence(tiny.questions[0], finder.retrieve(tiny.questions[:1], 5)[0]) == 0.5
    dense_only = mrr(finder, tiny.examples)
    report = tuning.tune(finder, [*tiny.examples, *stranger])
    assert finder.weights == report["weights"] and set(finder.weights) == set(SIGNALS)
    assert min(finder.weights.values()) >= 0 and finder.weights["words"] + finder.weights["characters"] > 0
    tried = report["mrr_at_10"]
    assert tried["dense alone"] == pytest.approx(dense_only)
    assert mrr(finder, tiny.examples) == pytest.approx(tried["together"])
    assert tried["together"] > dense_only
    assert report["calibrated_on_questions"] == 32

    questions = [example.question for example in [*tiny.examples, *stranger]]
    found = finder.retrieve(questions, 10)
    sure = [finder.confidence(question, hits) for question, hits in zip(questions, found, strict=True)]
    right = [hits[0].passage.id in example.positives for hits, example in zip(found, [*tiny.examples, *stranger], strict=True)]
    assert report["right"] == sum(right)
    assert 0 < sum(right) < len(right)
    assert all(0 <= value <= 1 for value in sure)
    assert metrics.area_under_roc(sure, right) > 0.8
    assert float(np.mean(sure)) == pytest.approx(np.mean(right), abs=0.02)


def test_tune_without_bm25_or_without_answers_only_calibrates(tiny: Tiny) -> None:
    finder = tiny.retriever()
    report = tuning.tune(finder, tiny.examples)
    assert report["mrr_at_10"] == {} and finder.weights == {"dense": 1.0} and report["calibrated_on_questions"] == 30
    finder = tiny.retriever(lexical=True)
    report = tuning.tune(finder, [Example("x", "劳动仲裁要准备什么", (), ())])
    assert report["mrr_at_10"] == {} and report["right"] == 0
    assert finder.confidence("劳动仲裁", finder.retrieve(["劳动仲裁"], 3)[0]) < 0.5
    assert tuning.tune(tiny.retriever(lexical=True), [])["calibrated_on_questions"] == 0


def test_synonyms_are_weighed_by_what_they_find(tiny: Tiny, tmp_path: Path) -> None:
    """Of use where the question says it in other words than the passage, of harm where they mislead."""
    for words, better in (("体温高 退烧药\n", True), ("空腹测 喝热水 多休息 看医生\n", False)):
        (tmp_path / "synonyms.txt").write_text(words, "utf-8")
        finder = tiny.retriever(remember=False)
        finder.search = Search(kind="flat", lexical=["characters"], synonyms=str(tmp_path / "synonyms.txt"))
        finder.remember(tiny.passages)
        examples = [Example("x", "孩子体温高", (), ("p3",)), Example("y", "空腹测血糖", (), ("p13",))]
        report = tuning.tune(finder, examples)
        assert (finder.lexicals["characters"].synonym_weight > 0) == better
        assert report["synonym_weights"] == {name: lexical.synonym_weight for name, lexical in finder.lexicals.items()}
