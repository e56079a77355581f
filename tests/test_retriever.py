"""Retrieval against brute force; what is kept and what is refused; confidence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ASKED, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag import files
from medrag.confidence import LOOKED_AT, RETRIEVAL
from medrag.fusion import SIGNALS
from medrag.indexing import tuning
from medrag.lexical import Found, Lexical
from medrag.memory import FOLDERS
from medrag.passages import write_ids, write_shard
from medrag.retriever import FILE, Retriever
from medrag.search import Config, Search
from medrag.types import Hit, Passage

Vectors = list[torch.Tensor]
WEIGHTS: list[dict[str, float]] = [
    {"dense": 1.0},
    {"dense": 0.5, "words": 0.0},
    {"dense": 1.0, "characters": 3.0},
    {"dense": 1.0, "words": 2.0, "characters": 1.0},
    {"characters": 1.0},
    {"dense": 1.0, "questions": 2.0},
    {"dense": 0.5, "words": 1.0, "characters": 1.0, "questions": 0.5, "question_characters": 2.0},
    {"questions": 1.0, "question_characters": 1.0},
]


@pytest.fixture(scope="module")
def d_D(tiny: Tiny) -> Vectors:
    """The passages' vectors, encoded one by one from the texts they should be found by."""
    finder = tiny.retriever(remember=False)
    assert finder.context_encoder is not None
    texts = [f"{passage.title} {passage.text}" if passage.title else passage.text for passage in tiny.passages]
    with torch.no_grad():
        return [finder.context_encoder(*tiny.wordpiece.batch([text], 48))[0] for text in texts]


@pytest.fixture(scope="module", name="finder")
def _finder(tiny: Tiny) -> Retriever:
    """With every signal there is; a test sets weights and what is hidden."""
    return tiny.retriever(lexical=True, asked=ASKED)


def brute_force(finder: Retriever, tiny: Tiny, d_D: Vectors, question: str, out: set[str]) -> list[tuple[str, float]]:
    """Every passage's score, one pair at a time, best first; of equal ones the first passage first."""
    with torch.no_grad():
        q_D = finder.question_encoder(*tiny.wordpiece.batch([question], 32))[0]
        asked_D = [finder.question_encoder(*tiny.wordpiece.batch([text], 32))[0] for _, text in ASKED]
    kept = [number for number, (owner, _) in enumerate(ASKED) if tiny.passages[owner].id not in out]
    floor = min((float(q_D @ asked_D[number]) for number in kept), default=0.0)
    pairs = []
    for row, passage in enumerate(tiny.passages):
        own = [number for number in kept if ASKED[number][0] == row]
        signals = {"dense": float(q_D @ d_D[row]), "questions": max((float(q_D @ asked_D[number]) - floor for number in own), default=0.0)}
        for name, lexical in finder.lexicals.items():
            score = lexical.scores(question)
            signals[name] = max((float(score[number]) for number in own), default=0.0) if name == "question_characters" else float(score[row])
        if passage.id not in out:
            pairs.append((passage.id, sum(weight * signals[name] for name, weight in finder.weights.items())))
    return sorted(pairs, key=lambda pair: -pair[1])


def assert_same(hits: list[Hit], expected: list[tuple[str, float]]) -> None:
    assert [hit.passage.id for hit in hits] == [name for name, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-3)


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: "+".join(weights))
def test_retrieve_equals_brute_force(tiny: Tiny, d_D: Vectors, weights: dict[str, float]) -> None:
    """Where every passage is a candidate, whatever the weights; titles, passages without questions and with several among them."""
    finder = tiny.retriever(lexical=True, asked=ASKED)
    finder.weights = weights
    questions = tiny.questions[:5]
    for question, hits in zip(questions, finder.retrieve(questions, 7), strict=True):
        expected = brute_force(finder, tiny, d_D, question, set())
        if "dense" in weights:
            assert_same(hits, expected[:7])
        else:
            assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected[:7]], abs=1e-3)
    assert [hits[0].passage.id for hits in finder.retrieve(questions, 1)] == [hits[0].passage.id for hits in finder.retrieve(questions, 7)]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=5, max_size=5), st.sets(st.integers(0, 29), max_size=6), st.integers(0, 29))
@settings(max_examples=25, deadline=None)
def test_any_weights_and_any_passages_left_out(tiny: Tiny, d_D: Vectors, finder: Retriever, weights: list[float], out: set[int], row: int) -> None:
    """Excluded and hidden passages are found neither themselves nor through their questions."""
    names = [tiny.passages[number].id for number in sorted(out)]
    finder.weights = dict(zip(SIGNALS, weights, strict=True))
    finder.hidden = frozenset(names[::2])
    (hits,) = finder.retrieve([tiny.questions[row]], 30, [names[1::2]])
    expected = brute_force(finder, tiny, d_D, tiny.questions[row], set(names))
    assert {hit.passage.id for hit in hits} == {name for name, _ in expected}
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-3)


def test_few_candidates_are_fused_over_their_union(tiny: Tiny, d_D: Vectors) -> None:
    """With 3 candidates of each kind, the fused list is the best of the lists' union, with all scores in full."""
    finder = tiny.retriever(lexical=True, candidates=3)
    for question in tiny.questions[:8]:
        finder.weights = {"dense": 1.0}
        dense = [name for name, _ in brute_force(finder, tiny, d_D, question, set())[:3]]
        found = [tiny.passages[row].id for lexical in finder.lexicals.values() for row in lexical.search(question, 3)]
        finder.weights = {"dense": 1.0, "words": 2.0, "characters": 1.0}
        everything = brute_force(finder, tiny, d_D, question, set())
        (hits,) = finder.retrieve([question], 3)
        assert_same(hits, [pair for pair in everything if pair[0] in {*dense, *found}][:3])


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_excluded_and_hidden_passages_are_left_out(tiny: Tiny, d_D: Vectors, weight: float) -> None:
    """``exclude`` holds for one question, ``hidden`` for all; the next best take their places."""
    finder = tiny.retriever(lexical=True, candidates=4)
    finder.weights = {"dense": 1.0, "characters": weight}
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


def test_what_is_nearly_equal_to_an_excluded_passage_is_left_out_with_it(tiny: Tiny) -> None:
    """Passages without a group are not one group."""
    finder = tiny.retriever(remember=False)
    finder.remember([dataclasses.replace(passage, group="same" if number in (2, 7, 19) else "") for number, passage in enumerate(tiny.passages)])
    (hits,), (others,) = finder.retrieve(tiny.questions[:1], 30, [["p7"]]), finder.retrieve(tiny.questions[:1], 30, [["p8"]])
    assert {hit.passage.id for hit in hits} == {passage.id for passage in tiny.passages} - {"p2", "p7", "p19"}
    assert {hit.passage.id for hit in others} == {passage.id for passage in tiny.passages} - {"p8"}
    finder.hidden = frozenset({"p19"})
    assert {hit.passage.id for hit in finder.retrieve(tiny.questions[:1], 30)[0]} == {hit.passage.id for hit in hits}


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
    together = finder.encode_passages(texts)
    alone = np.concatenate([finder.encode_passages([text]) for text in texts])
    assert np.allclose(together, alone, atol=1e-4)
    finder.train()
    finder.encode_passages(texts[:2])
    assert finder.training and finder.question_encoder.training


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: "+".join(weights))
def test_logp_is_the_log_softmax_of_the_hits_scores(tiny: Tiny, weights: dict[str, float]) -> None:
    """Also of hits that were found with other weights, and long ago."""
    finder = tiny.retriever(lexical=True, asked=ASKED)
    finder.weights = weights
    questions = tiny.questions[:3]
    hits = finder.retrieve(questions, 4)
    logp_BK = finder.logp(questions, hits)
    expected_BK = torch.tensor([[hit.score for hit in row] for row in hits]).log_softmax(1)
    assert logp_BK.dtype == torch.float32
    assert torch.allclose(logp_BK, expected_BK, atol=1e-3)
    shuffled = [[row[3], row[0], row[2], row[1]] for row in hits]
    finder.retrieve(tiny.questions[5:6], 2)
    assert torch.allclose(finder.logp(questions, shuffled), logp_BK[:, [3, 0, 2, 1]], atol=1e-5)


@pytest.mark.parametrize("weights", [{"dense": 1.0, "characters": 1.0}, {"questions": 1.0}], ids=["dense", "questions"])
def test_logp_moves_the_question_encoder_alone(tiny: Tiny, weights: dict[str, float]) -> None:
    """A step up the gradient of a passage's log-probability raises it, and no passage vector moves."""
    finder = tiny.retriever(lexical=True, asked=ASKED)
    finder.weights = weights
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


def keep(finder: Retriever, folder: Path, removed: list[int] | None = None) -> None:
    """Write the index artifact of what is in memory, in two shards."""
    memory = finder.memory
    assert memory is not None
    (folder / "shards").mkdir()
    (folder / "search").mkdir()
    for number, rows in enumerate((slice(0, 11), slice(11, None))):
        write_shard(folder / "shards", number, memory.passages[rows])
        np.save(folder / "shards" / f"{number:05d}.npy", memory.index.vectors(range(len(memory.passages))[rows]))
    write_ids(folder, memory.passages)
    memory.index.save(folder / "search")
    for name, lexical in memory.lexicals.items():
        lexical.save(folder / FOLDERS[name])
    if memory.question_index is not None:
        (folder / "questions").mkdir()
        (folder / "question_search").mkdir()
        np.save(folder / "questions" / "00000.npy", memory.question_index.vectors(range(len(memory.owners_M))))
        np.save(folder / "questions" / "owners.npy", memory.owners_M)
        memory.question_index.save(folder / "question_search")
    np.save(folder / "removed.npy", np.array(removed or [], dtype=np.int64))
    files.write_json(folder / FILE, finder.state())


def test_loaded_finds_what_was_remembered(tiny: Tiny, tmp_path: Path) -> None:
    finder = tiny.retriever(lexical=True, asked=ASKED, candidates=9)
    tuning.tune(finder, tiny.examples)
    finder.lexicals["characters"].synonym_weight = 0.3
    keep(finder, tmp_path)
    again = tiny.retriever(remember=False)
    again.load(tmp_path)
    assert list(again.passages) == finder.passages and dict(again.row) == finder.row
    assert again.search == finder.search and again.calibrator == finder.calibrator and again.weights == finder.weights
    assert again.lexicals["characters"].synonym_weight == 0.3 and again.signals == SIGNALS
    assert json.loads(json.dumps(again.state())) == json.loads((tmp_path / FILE).read_text("utf-8"))
    questions = tiny.questions[:5]
    for weights in (finder.weights, *WEIGHTS):
        finder.weights = again.weights = weights
        assert again.retrieve(questions, 6) == finder.retrieve(questions, 6)
        assert [again.confidence(q, h) for q, h in zip(questions, again.retrieve(questions, 6), strict=True)] == [
            finder.confidence(q, h) for q, h in zip(questions, finder.retrieve(questions, 6), strict=True)
        ]


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: "+".join(weights))
def test_removed_passages_are_never_found(tiny: Tiny, d_D: Vectors, tmp_path: Path, weights: dict[str, float]) -> None:
    """Neither themselves nor through their questions."""
    finder = tiny.retriever(lexical=True, asked=ASKED)
    keep(finder, tmp_path, removed=[0, 3, 8])
    again = tiny.retriever(remember=False)
    again.load(tmp_path)
    again.weights = weights
    again.hidden = frozenset({"p4"})
    for question in tiny.questions[:4]:
        (hits,) = again.retrieve([question], 30)
        expected = brute_force(again, tiny, d_D, question, {"p0", "p3", "p8", "p4"})
        assert {hit.passage.id for hit in hits} == {name for name, _ in expected}
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-3)


def test_a_dense_index_replaces_one_with_bm25(tiny: Tiny, tmp_path: Path) -> None:
    """Nothing of what was remembered before stays."""
    small = tiny.retriever(remember=False)
    small.remember(tiny.passages[:12], lexical=False)
    keep(small, tmp_path)
    finder = tiny.retriever(lexical=True)
    finder.weights = {"dense": 1.0, "characters": 1.0}
    finder.retrieve(tiny.questions[:1], 3)
    finder.load(tmp_path)
    assert finder.signals == ("dense",) and finder.weights == {"dense": 1.0}
    assert {hit.passage.id for hit in finder.retrieve(tiny.questions[:1], 30)[0]} == {f"p{number}" for number in range(12)}
    finder.features(tiny.questions[0], finder.retrieve(tiny.questions[:1], 3)[0])


@pytest.mark.parametrize(("place", "rows"), [("shards/00001.npy", 18), ("questions/owners.npy", 5), ("questions/00000.npy", 7)])
def test_parts_that_differ_in_number_are_refused(tiny: Tiny, tmp_path: Path, place: str, rows: int) -> None:
    finder = tiny.retriever(lexical=True, asked=ASKED)
    keep(finder, tmp_path)
    array = np.load(tmp_path / place)
    np.save(tmp_path / place, np.resize(array, (rows, *array.shape[1:])))
    with pytest.raises(ValueError, match=r"\d"):
        tiny.retriever(remember=False).load(tmp_path)


def test_another_width_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    keep(tiny.retriever(), tmp_path)
    wide = tiny.retriever(remember=False)
    assert wide.question_encoder.albert is not None
    wide.question_encoder.albert.config.hidden_size = 64
    with pytest.raises(ValueError, match="vectors of width 32, but the question encoder gives 64"):
        wide.load(tmp_path)


@pytest.mark.parametrize(
    ("settings_of_search", "message"),
    [
        ({"lexical": ["words", "bytes"]}, r"index\.lexical='bytes'; allowed: words, characters"),
        ({"lexical": ["words", "words"]}, r"index\.lexical=\['words', 'words'\]"),
        ({"candidates": 0}, r"index\.candidates=0; it must be 1 or more"),
        ({"refine": -1}, r"index\.refine=-1"),
        ({"shard_passages": -1}, r"index\.shard_passages=-1"),
        ({"probes": -1}, r"index\.probes=-1"),
        ({"memory_gib": 0.0}, r"index\.memory_gib=0\.0"),
    ],
)
def test_bad_settings_are_refused(tiny: Tiny, settings_of_search: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retriever(Config(32, 48), Search(**settings_of_search), tiny.wordpiece, tiny.encoder(), None, tiny.segmenter)


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
        Retriever(Config(65, 48), Search(), tiny.wordpiece, tiny.encoder(), None, tiny.segmenter)
    with pytest.raises(ValueError, match=r"passage_tokens=2; the encoder allows 3 to 64"):
        Retriever(Config(64, 2), Search(), tiny.wordpiece, tiny.encoder(), None, tiny.segmenter)


# -- being sure -----------------------------------------------------------------------------------------------------------------


def test_a_question_is_taken_to_units_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """For hits, log-probability and confidence together."""
    finder = tiny.retriever(lexical=True)
    finder.weights = {"dense": 1.0, "words": 1.0, "characters": 1.0}
    asked: list[str] = []
    find = Lexical.find

    def watched(lexical: Lexical, question: str) -> Found:
        asked.append(question)
        return find(lexical, question)

    monkeypatch.setattr(Lexical, "find", watched)
    questions = tiny.questions[:4]
    hits = finder.retrieve(questions, 5)
    finder.logp(questions, hits)
    for question, row in zip(questions, hits, strict=True):
        finder.confidence(question, row)
    assert sorted(asked) == sorted(questions * 2)


@pytest.mark.parametrize("lexical", [False, True])
def test_confidence_lies_between_0_and_1(tiny: Tiny, lexical: bool) -> None:
    finder = tiny.retriever(lexical=lexical)
    tuning.tune(finder, tiny.examples)
    odd = ["", "？？？", "a" * 300, "𠮷野家", *tiny.questions]
    for question, hits in zip(odd, finder.retrieve(odd, 5), strict=True):
        assert 0 <= finder.confidence(question, hits) <= 1
        assert 0 <= finder.confidence(question, hits[:1]) <= 1
        features = finder.features(question, hits)
        assert len(features) == len(RETRIEVAL) and np.isfinite(features).all()
        assert len(finder.features(question, [])) == len(RETRIEVAL)
    assert finder.confidence("糖尿病", []) == 0.0


@pytest.mark.parametrize("lexical", [False, True])
def test_features_say_what_they_are_however_many_hits_were_asked_for(tiny: Tiny, lexical: bool) -> None:
    finder = tiny.retriever(lexical=lexical, asked=ASKED)
    if lexical:
        finder.weights = {"dense": 1.0, "words": 2.0, "characters": 2.0, "questions": 1.0}
    question = tiny.questions[3]
    (hits,) = finder.retrieve([question], LOOKED_AT)
    score = np.array([hit.score for hit in hits])
    share = np.exp(score - score[0]) / np.exp(score - score[0]).sum()
    named = dict(zip(RETRIEVAL, finder.features(question, hits), strict=True))
    assert named["score"] == pytest.approx(score[0], abs=1e-4)
    assert named["margin"] == pytest.approx(score[0] - score[1:5].mean(), abs=1e-4)
    assert named["entropy"] == pytest.approx(-(share * np.log(share)).sum(), abs=1e-4)
    assert (0 < named["known"] <= 1) if lexical else named["known"] == 0
    for few in (1, 3):
        assert finder.features(question, finder.retrieve([question], few)[0]) == pytest.approx(list(named.values()), abs=1e-4)


def test_an_index_whose_confidence_looks_at_something_else_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    finder = tiny.retriever(lexical=True)
    keep(finder, tmp_path)
    kept = json.loads((tmp_path / FILE).read_text("utf-8"))
    kept["calibrator"]["names"] = ["ceiling", *RETRIEVAL[1:]]
    (tmp_path / FILE).write_text(json.dumps(kept), "utf-8")
    with pytest.raises(ValueError, match="run `medrag index build` again"):
        tiny.retriever(remember=False).load(tmp_path)


def test_a_passage_without_a_title_or_a_question_longer_than_the_limit(tiny: Tiny) -> None:
    finder = tiny.retriever(remember=False)
    finder.remember([Passage("only", "长" * 500, "test")], lexical=False)
    (hits,) = finder.retrieve(["问" * 500], 3)
    assert [hit.passage.id for hit in hits] == ["only"]


def test_what_is_found_in_training_is_what_is_found_afterwards(tiny: Tiny) -> None:
    """Dropout is for the gradient: the look-up is without it, and leaves the encoder as it was."""
    finder = tiny.retriever(fixed=True)
    for module in finder.question_encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    expected = finder.eval().retrieve(tiny.questions, 3)
    found = finder.train().retrieve(tiny.questions, 3)
    assert found == expected and finder.question_encoder.training
    with torch.no_grad():
        assert not torch.equal(finder.logp(tiny.questions, found), finder.eval().logp(tiny.questions, found))
