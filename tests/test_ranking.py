"""Ranks of every system against all passages sorted by hand; scores, differences and parts against the ranks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny

from medrag import metrics, ranking
from medrag.ranking import MEASURES
from medrag.types import Example

ASKED = [(0, "孕妇能不能喝咖啡"), (3, "孩子发烧了怎么办"), (13, "血糖高了怎么办")]
SYSTEMS = {"BM25, words", "BM25, characters and pairs", "BM25, training questions", "dense", "dense, training questions", "fusion"}


@pytest.fixture(scope="module")
def examples(tiny: Tiny) -> list[Example]:
    """Two positives for every third question, two sources."""
    return [
        dataclasses.replace(
            example, source=("clinic", "book")[number % 5 == 0], positives=(*example.positives, "p1") if number % 3 == 0 else example.positives
        )
        for number, example in enumerate(tiny.examples)
    ]


@pytest.fixture(scope="module")
def measured(tiny: Tiny, examples: list[Example]) -> dict[str, Any]:
    finder = tiny.retriever(lexical=True, asked=ASKED)
    finder.weights = {"dense": 0.1, "characters": 1.0}
    found = ranking.measure(finder, examples, 200, 0)
    assert finder.weights == {"dense": 0.1, "characters": 1.0}
    return found


def test_ranks_are_those_of_all_passages_sorted(tiny: Tiny, examples: list[Example], measured: dict[str, Any]) -> None:
    """What shares nothing with the question is not found by BM25, however deep one looks."""
    finder = tiny.retriever(lexical=True)
    ranks = measured["ranks"]["first_right"]
    assert set(ranks) == SYSTEMS and measured["ranks"]["questions"] == [example.id for example in examples]
    d_ND = finder.index.vectors(range(30))
    for place, example in enumerate(examples):
        with torch.no_grad():
            dense_N = d_ND @ finder.encode_questions([example.question])[0].numpy()
        bm25_N = finder.lexicals["characters"].scores(example.question)
        for name, score_N in (("dense", dense_N), ("BM25, characters and pairs", bm25_N), ("fusion", 0.1 * dense_N + bm25_N)):
            order = [
                row for row in sorted(range(30), key=lambda row: (-score_N[row], row)) if name != "BM25, characters and pairs" or score_N[row] > 0
            ]
            want = next((rank for rank, row in enumerate(order, 1) if tiny.passages[row].id in example.positives), None)
            assert ranks[name][place] == want
    assert None in ranks["BM25, characters and pairs"] and None not in ranks["dense"]
    assert sum(rank is not None for rank in ranks["dense, training questions"]) <= sum(
        {"p0", "p3", "p13"} & set(e.positives) != set() for e in examples
    )


def test_scores_and_parts_are_those_of_the_ranks(examples: list[Example], measured: dict[str, Any]) -> None:
    ranks = measured["ranks"]["first_right"]
    for name, row in measured["retrieval"].items():
        for k in (1, 10, 100):
            assert row[f"recall@{k}"]["mean"] == pytest.approx(np.mean([rank is not None and rank <= k for rank in ranks[name]]))
        assert row["MRR@10"]["mean"] == pytest.approx(np.mean([1 / rank if rank is not None and rank <= 10 else 0 for rank in ranks[name]]))
        assert all(value["low"] <= value["mean"] <= value["high"] and value["count"] == 30 for value in row.values())
    assert list(measured["retrieval_by"]) == ["label", "source"]
    assert list(measured["retrieval_by"]["source"]) == ["clinic", "book"], "the commonest first"
    for kind, parts in measured["retrieval_by"].items():
        for value, rows in parts.items():
            chosen = [place for place, example in enumerate(examples) if getattr(example, kind) == value]
            assert set(rows) == SYSTEMS
            assert rows["dense"]["recall@10"]["count"] == len(chosen)
            assert rows["dense"]["recall@10"]["mean"] == pytest.approx(np.mean([ranks["dense"][place] <= 10 for place in chosen]))


def test_differences_are_of_the_same_questions(measured: dict[str, Any]) -> None:
    """Fusion less the best single one, dense less BM25 over characters; the interval is narrower than that of two samples."""
    singles = {name: row["MRR@10"]["mean"] for name, row in measured["retrieval"].items() if name != "fusion"}
    best = max(singles, key=lambda name: singles[name])
    assert [(row["of"], row["less"]) for row in measured["retrieval_differences"]] == [("fusion", best), ("dense", "BM25, characters and pairs")]
    ranks = {name: np.array([np.inf if rank is None else rank for rank in row]) for name, row in measured["ranks"]["first_right"].items()}
    for row in measured["retrieval_differences"]:
        assert list(row["scores"]) == list(MEASURES)
        for measure, of in MEASURES.items():
            values = of(ranks[row["of"]]) - of(ranks[row["less"]])
            want = metrics.mean_with_interval(values, 200, 0)
            assert row["scores"][measure] == dataclasses.asdict(want)
            assert want.mean == pytest.approx(
                measured["retrieval"][row["of"]][measure]["mean"] - measured["retrieval"][row["less"]][measure]["mean"], abs=1e-12
            )


def test_dense_alone_has_nothing_to_be_compared_with(tiny: Tiny, examples: list[Example]) -> None:
    found = ranking.measure(tiny.retriever(), examples, 50, 0)
    assert list(found["retrieval"]) == ["dense"] and found["retrieval_differences"] == []


def test_the_table_shows_it_all(measured: dict[str, Any]) -> None:
    text = "\n".join(ranking.table(measured))
    for wanted in (
        *SYSTEMS,
        "recall@100",
        "fusion less",
        "dense less BM25, characters and pairs",
        "label maternal, 12 questions",
        "source book, 6 questions",
    ):
        assert wanted in text
    assert ranking.percent({"mean": 0.298, "low": 0.275, "high": 0.321}) == "29.8 [27.5, 32.1]"
    assert ranking.percent({"mean": 0.02, "low": -0.01, "high": 0.05}, "+") == "+2.0 [-1.0, +5.0]"


def test_what_has_collapsed_is_told_from_what_has_not(tiny: Tiny) -> None:
    """Against the hits counted by hand; a retriever that scores alike for all questions finds one passage first, and its prior is flat."""
    finder = tiny.retriever()
    questions = tiny.questions * 3
    found = ranking.variety(finder, questions, 4)
    hits = finder.retrieve(tiny.questions, 4)
    first = {row[0].passage.id for row in hits}
    nats = [-sum(p * math.log(p) for p in torch.tensor([hit.score for hit in row]).double().softmax(0).tolist()) for row in hits]
    assert len(first) > 1
    assert found == pytest.approx({"distinct_first_hits": len(first) / 90, "prior_nats": sum(nats) / 30}, abs=1e-5)
    with torch.no_grad():
        for parameter in finder.question_encoder.parameters():
            parameter.zero_()
    assert ranking.variety(finder, questions, 4) == pytest.approx({"distinct_first_hits": 1 / 90, "prior_nats": math.log(4)}, abs=1e-5)
    finder.hidden = frozenset(tiny.library)
    assert ranking.variety(finder, questions, 4) == {"distinct_first_hits": 0.0, "prior_nats": 0.0}
    assert ranking.variety(finder, [], 4) == {"distinct_first_hits": 0.0, "prior_nats": 0.0}
