"""Retrieval against brute force; what is kept and what is refused; confidence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tiny

from medrag import files, metrics, retriever
from medrag.retriever import Fusion, Retriever
from medrag.types import Example, Hit, Passage

Vectors = list[torch.Tensor]


@pytest.fixture(scope="module")
def d_D(tiny: Tiny) -> Vectors:
    """The passages' vectors, encoded one by one from the texts they should be found by."""
    finder = tiny.retriever(remember=False)
    assert finder.context_encoder is not None
    texts = [f"{passage.title} {passage.text}" if passage.title else passage.text for passage in tiny.passages]
    with torch.no_grad():
        return [finder.context_encoder(*tiny.wordpiece.batch([text], 48))[0] for text in texts]


def brute_force(finder: Retriever, tiny: Tiny, d_D: Vectors, question: str, out: set[str]) -> list[tuple[str, float]]:
    """Every passage's score, one pair at a time, best first."""
    with torch.no_grad():
        q_D = finder.question_encoder(*tiny.wordpiece.batch([question], 32))[0]
    score = [finder.dense_weight * float(q_D @ d) for d in d_D]
    if finder.lexical is not None:
        bm25_N = finder.lexical.scores(question)
        score = [value + finder.lexical_weight * float(bm25) for value, bm25 in zip(score, bm25_N, strict=True)]
    pairs = [(passage.id, value) for passage, value in zip(tiny.passages, score, strict=True) if passage.id not in out]
    return sorted(pairs, key=lambda pair: -pair[1])


def assert_same(hits: list[Hit], expected: list[tuple[str, float]]) -> None:
    assert [hit.passage.id for hit in hits] == [name for name, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-3)


@pytest.mark.parametrize(("lexical", "lexical_weight", "dense_weight"), [(False, 0.0, 1.0), (True, 0.0, 1.0), (True, 3.0, 1.0), (True, 1.0, 0.0)])
def test_retrieve_equals_brute_force(tiny: Tiny, d_D: Vectors, lexical: bool, lexical_weight: float, dense_weight: float) -> None:
    finder = tiny.retriever(lexical=lexical)
    finder.lexical_weight, finder.dense_weight = lexical_weight, dense_weight
    questions = tiny.questions[:5]
    for question, hits in zip(questions, finder.retrieve(questions, 7), strict=True):
        expected = brute_force(finder, tiny, d_D, question, set())
        if dense_weight:
            assert_same(hits, expected[:7])
        else:
            assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected[:7]], abs=1e-3)
    assert [hits[0].passage.id for hits in finder.retrieve(questions, 1)] == [hits[0].passage.id for hits in finder.retrieve(questions, 7)]


def test_few_candidates_are_fused_over_their_union(tiny: Tiny, d_D: Vectors) -> None:
    """With 3 candidates of each kind, the fused list is the best of the two lists' union, with both scores in full."""
    finder = tiny.retriever(lexical=True, candidates=3)
    finder.lexical_weight = 2.0
    assert finder.lexical is not None
    for question in tiny.questions[:8]:
        everything = brute_force(finder, tiny, d_D, question, set())
        finder.lexical_weight = 0.0
        dense = [name for name, _ in brute_force(finder, tiny, d_D, question, set())[:3]]
        finder.lexical_weight = 2.0
        words = [tiny.passages[row].id for row in finder.lexical.search(question, 3)]
        (hits,) = finder.retrieve([question], 3)
        assert_same(hits, [pair for pair in everything if pair[0] in {*dense, *words}][:3])


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_excluded_and_hidden_passages_are_left_out(tiny: Tiny, d_D: Vectors, weight: float) -> None:
    """``exclude`` holds for one question, ``hidden`` for all; the next best take their places."""
    finder = tiny.retriever(lexical=True, candidates=4)
    finder.lexical_weight = weight
    questions = tiny.questions[:3]
    before = [[hit.passage.id for hit in hits] for hits in finder.retrieve(questions, 30)]
    exclude = [before[0][:3], [], ["nobody", before[2][1]]]
    finder.hidden = frozenset({before[1][0], "nobody"})
    after = finder.retrieve(questions, 4, exclude)
    for b, question in enumerate(questions):
        out = {*exclude[b], *finder.hidden}
        assert len(after[b]) == 4
        assert not out & {hit.passage.id for hit in after[b]}
        if not weight:
            assert_same(after[b], brute_force(finder, tiny, d_D, question, out)[:4])


def test_everything_but_one_excluded(tiny: Tiny) -> None:
    finder = tiny.retriever()
    names = [passage.id for passage in tiny.passages]
    (hits,) = finder.retrieve(tiny.questions[:1], 5, [names[1:]])
    assert [hit.passage.id for hit in hits] == names[:1]
    assert finder.retrieve(tiny.questions[:1], 5, [names]) == [[]]
    finder.hidden = frozenset(names)
    assert finder.retrieve(tiny.questions[:2], 5) == [[], []]
    assert finder.retrieve([], 5) == []


def test_more_asked_than_there_are(tiny: Tiny) -> None:
    (hits,) = tiny.retriever().retrieve(tiny.questions[:1], 1000)
    assert len(hits) == len(tiny.passages)


def test_titles_are_searched_where_there_are_any(tiny: Tiny) -> None:
    finder = tiny.retriever(remember=False)
    assert finder.searched(tiny.passages[0]) == f"第0条 {tiny.passages[0].text}"
    assert finder.searched(tiny.passages[1]) == tiny.passages[1].text
    finder.config = dataclasses.replace(finder.config, titles=False)
    assert finder.searched(tiny.passages[0]) == tiny.passages[0].text


def test_passages_are_encoded_in_the_order_given(tiny: Tiny) -> None:
    """Batches are made by length; the vectors come back in place."""
    finder = tiny.retriever()
    texts = [passage.text for passage in tiny.passages]
    together = finder.encode_passages(texts, batch_passages=4)
    alone = np.concatenate([finder.encode_passages([text]) for text in texts])
    assert np.allclose(together, alone, atol=1e-4)
    finder.train()
    finder.encode_passages(texts[:2])
    assert finder.training and finder.question_encoder.training


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_logp_is_the_log_softmax_of_the_hits_scores(tiny: Tiny, weight: float) -> None:
    finder = tiny.retriever(lexical=True)
    finder.lexical_weight = weight
    questions = tiny.questions[:3]
    hits = finder.retrieve(questions, 4)
    logp_BK = finder.logp(questions, hits)
    expected_BK = torch.tensor([[hit.score for hit in row] for row in hits]).log_softmax(1)
    assert logp_BK.dtype == torch.float32
    assert torch.allclose(logp_BK, expected_BK, atol=1e-3)
    shuffled = [[row[3], row[0], row[2], row[1]] for row in hits]
    assert torch.allclose(finder.logp(questions, shuffled), logp_BK[:, [3, 0, 2, 1]], atol=1e-5)


def test_logp_moves_the_question_encoder_alone(tiny: Tiny) -> None:
    """A step up the gradient of a passage's log-probability raises it, and no passage vector moves."""
    finder = tiny.retriever(lexical=True)
    finder.lexical_weight = 1.0
    questions = tiny.questions[:3]
    hits = finder.retrieve(questions, 4)
    before = finder.logp(questions, hits)[:, 2].sum()
    before.backward()  # type: ignore[no-untyped-call]
    assert finder.context_encoder is not None
    assert all(parameter.grad is None for parameter in finder.context_encoder.parameters())
    with torch.no_grad():
        for name, parameter in finder.question_encoder.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            parameter.add_(parameter.grad, alpha=1e-4)
    with torch.no_grad():
        assert float(finder.logp(questions, hits)[:, 2].sum()) > float(before) + 1e-4


def test_logp_refuses_rows_of_different_length(tiny: Tiny) -> None:
    finder = tiny.retriever()
    hits = finder.retrieve(tiny.questions[:2], 3)
    with pytest.raises(ValueError, match=r"same number of hits, not \[2, 3\]"):
        finder.logp(tiny.questions[:2], [hits[0], hits[1][:2]])


def test_saved_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    finder = tiny.retriever(lexical=True)
    finder.fusion.candidates = 9
    finder.tune(tiny.examples)
    finder.lexical_weight = 0.7
    finder.save(tmp_path)
    again = tiny.retriever(remember=False)
    again.load(tmp_path)
    assert again.passages == finder.passages and again.row == finder.row
    assert again.fusion == finder.fusion and again.lexical_weight == 0.7 and again.calibrator == finder.calibrator
    questions = tiny.questions[:5]
    assert again.retrieve(questions, 6) == finder.retrieve(questions, 6)
    assert [again.confidence(q, h) for q, h in zip(questions, again.retrieve(questions, 6), strict=True)] == [
        finder.confidence(q, h) for q, h in zip(questions, finder.retrieve(questions, 6), strict=True)
    ]


def test_a_dense_index_replaces_one_with_bm25(tiny: Tiny, tmp_path: Path) -> None:
    """Nothing of what was remembered before stays."""
    small = tiny.retriever(remember=False)
    small.remember(tiny.passages[:5], lexical=False)
    small.save(tmp_path)
    finder = tiny.retriever(lexical=True)
    finder.lexical_weight = 1.0
    finder.load(tmp_path)
    assert finder.lexical is None and finder.lexical_weight == 0
    assert {hit.passage.id for hit in finder.retrieve(tiny.questions[:1], 30)[0]} == {"p0", "p1", "p2", "p3", "p4"}


def test_what_does_not_fit_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    finder = tiny.retriever(lexical=False)
    finder.save(tmp_path)
    rows = list(files.read_jsonl(tmp_path / "passages.jsonl"))
    files.write_jsonl(tmp_path / "passages.jsonl", rows[:-1])
    with pytest.raises(ValueError, match="30 vectors but 29 passages"):
        tiny.retriever(remember=False).load(tmp_path)
    files.write_jsonl(tmp_path / "passages.jsonl", rows)
    wide = tiny.retriever(remember=False)
    wide.question_encoder.albert.config.hidden_size = 64
    with pytest.raises(ValueError, match="vectors of width 32, but the question encoder gives 64"):
        wide.load(tmp_path)


def test_bad_requests_are_refused(tiny: Tiny) -> None:
    finder = tiny.retriever(remember=False)
    with pytest.raises(ValueError, match="nothing is indexed yet"):
        finder.retrieve(["糖尿病"], 3)
    with pytest.raises(ValueError, match="no passages to index"):
        finder.remember([])
    with pytest.raises(ValueError, match="1 passages have the id of another"):
        finder.remember([*tiny.passages, tiny.passages[3]])
    finder.context_encoder = None
    with pytest.raises(ValueError, match="no passage encoder"):
        finder.remember(tiny.passages)
    with pytest.raises(ValueError, match=r"question_tokens=65; the encoder allows 3 to 64"):
        Retriever(retriever.Config(65, 48), Fusion(), tiny.wordpiece, tiny.encoder(), None, tiny.segmenter)
    with pytest.raises(ValueError, match=r"passage_tokens=2; the encoder allows 3 to 64"):
        Retriever(retriever.Config(64, 2), Fusion(), tiny.wordpiece, tiny.encoder(), None, tiny.segmenter)


# -- being sure -----------------------------------------------------------------------------------------------------------------


def mrr(finder: Retriever, examples: list[Example]) -> float:
    found = finder.retrieve([example.question for example in examples], 10)
    return float(np.mean([metrics.reciprocal_rank([hit.passage.id for hit in hits], e.positives) for e, hits in zip(examples, found, strict=True)]))


def test_tune_picks_the_best_weight_and_calibrates(tiny: Tiny) -> None:
    """Random encoders know nothing, so BM25 must win weight; sure questions must be righter than unsure ones."""
    finder = tiny.retriever(lexical=True)
    stranger = [Example("x1", "劳动仲裁要准备什么", (), ()), Example("x2", "红烧排骨放几勺糖", (), ())]
    assert finder.confidence(tiny.questions[0], finder.retrieve(tiny.questions[:1], 5)[0]) == 0.5
    dense_only = mrr(finder, tiny.examples)
    report = finder.tune([*tiny.examples, *stranger])
    tried = {float(name.removeprefix("BM25 weight ")): value for name, value in report["mrr_at_10"].items() if name.startswith("BM25 weight ")}
    assert finder.lexical_weight == report["lexical_weight"] > 0
    assert len(tried) == 9 and tried[0.0] == pytest.approx(dense_only)
    assert mrr(finder, tiny.examples) == pytest.approx(max(tried.values()))
    assert max(tried.values()) > dense_only
    assert len(set(tried.values())) > 1, "weights that are all as good prove nothing"
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
    report = finder.tune(tiny.examples)
    assert report["mrr_at_10"] == {} and finder.lexical_weight == 0 and report["calibrated_on_questions"] == 30
    finder = tiny.retriever(lexical=True)
    report = finder.tune([Example("x", "劳动仲裁要准备什么", (), ())])
    assert report["mrr_at_10"] == {} and report["right"] == 0
    assert finder.confidence("劳动仲裁", finder.retrieve(["劳动仲裁"], 3)[0]) < 0.5
    assert tiny.retriever(lexical=True).tune([])["calibrated_on_questions"] == 0


@pytest.mark.parametrize("lexical", [False, True])
def test_confidence_lies_between_0_and_1(tiny: Tiny, lexical: bool) -> None:
    finder = tiny.retriever(lexical=lexical)
    finder.tune(tiny.examples)
    odd = ["", "？？？", "a" * 300, "𠮷野家", *tiny.questions]
    for question, hits in zip(odd, finder.retrieve(odd, 5), strict=True):
        assert 0 <= finder.confidence(question, hits) <= 1
        assert 0 <= finder.confidence(question, hits[:1]) <= 1
        features = finder.features(question, hits)
        assert len(features) == len(retriever.FEATURES) and np.isfinite(features).all()
        assert len(finder.features(question, [])) == len(retriever.FEATURES)
    assert finder.confidence("糖尿病", []) == 0.0


def test_features_say_what_they_are(tiny: Tiny) -> None:
    finder = tiny.retriever(lexical=True)
    finder.lexical_weight = 20.0
    question = tiny.questions[3]
    (hits,) = finder.retrieve([question], 5)
    assert finder.lexical is not None
    bm25 = float(finder.lexical.scores(question)[finder.row[hits[0].passage.id]])
    named = dict(zip(retriever.FEATURES, finder.features(question, hits), strict=True))
    assert named["dense"] == pytest.approx(hits[0].score - 20.0 * bm25, abs=1e-4)
    assert named["lexical"] == pytest.approx(np.log1p(bm25))
    assert 0 < named["ceiling"] <= 1 and 0 < named["known"] <= 1
    rest = [hit.score for hit in hits[1:]]
    assert named["margin"] == pytest.approx((hits[0].score - np.mean(rest)) / abs(hits[0].score), abs=1e-4)
    units = {"宝", "发", "烧", "怎", "么", "办", "宝宝", "宝发", "发烧", "烧怎", "怎么", "么办"}
    assert question == "宝宝发烧怎么办？"
    text = finder.searched(hits[0].passage)
    assert named["coverage"] == pytest.approx(sum(unit in text for unit in units) / len(units))


def test_a_passage_without_a_title_or_a_question_longer_than_the_limit(tiny: Tiny) -> None:
    finder = tiny.retriever(remember=False)
    finder.remember([Passage("only", "长" * 500, "test")], lexical=False)
    (hits,) = finder.retrieve(["问" * 500], 3)
    assert [hit.passage.id for hit in hits] == ["only"]
