"""DPR's training: which passages a batch holds, which columns are masked, and how good the retriever is said to be."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import Tiny

from medrag import encoder, metrics, mining, search
from medrag.methods import Batch, Parts, dense
from medrag.methods.dense import Config, Dense
from medrag.mining import Mined
from medrag.retriever import Retriever
from medrag.schedule import Room
from medrag.types import Example, Passage

RETRIEVER = search.Config(question_tokens=32, passage_tokens=48)


def make(tiny: Tiny, library: Mapping[str, Passage] | None = None, tutor: Retriever | None = None, **options: Any) -> Dense:
    config = dataclasses.replace(Config(title_share=1.0, retriever=RETRIEVER), **options)
    return dense.build(config, Parts(tiny.retriever(remember=False), None, tiny.library if library is None else library, tutor))


def columns(batch: Batch, tiny: Tiny) -> list[str]:
    """The ids of a batch's passages."""
    names = {dense._hash(mining.likenesses(passage)[0]): passage.id for passage in tiny.passages}
    return [names[value] for value in batch.tensors["likeness_PS"][:, 0].tolist()]


def scores(method: Dense, tiny: Tiny, question: str, names: list[str]) -> list[float]:
    """Inner products of one question with passages, one text at a time."""
    assert method.retriever.context_encoder is not None
    with torch.no_grad():
        q_D = method.retriever.question_encoder(*tiny.wordpiece.batch([question], 32))[0]
        texts = [method.retriever.searched(method.library[name]) for name in names]
        return [float(q_D @ method.retriever.context_encoder(*tiny.wordpiece.batch([text], 48))[0]) for text in texts]


def log_share(values: list[float], place: int) -> float:
    return values[place] - math.log(sum(math.exp(value) for value in values))


def loss_by_hand(method: Dense, tiny: Tiny, examples: list[Example], columns: list[str]) -> float:
    """One question and one passage at a time; a column that is another right answer of a question takes no part."""
    total = 0.0
    for b, example in enumerate(examples):
        kept = [column for column, name in enumerate(columns) if column == b or name not in example.positives]
        total -= log_share(scores(method, tiny, example.question, [columns[column] for column in kept]), kept.index(b))
    return total / len(examples)


def test_positives_stand_first_then_the_hard_negatives(tiny: Tiny) -> None:
    method = make(tiny, negatives=2)
    examples = [dataclasses.replace(example, negatives=("p20",)) for example in tiny.examples[:3]]
    batch = method.collate(examples)
    assert columns(batch, tiny) == ["p0", "p1", "p2", *("p20",) * 6]
    assert batch.tensors["passage_PL"].shape[0] == 9 and batch.tensors["question_BL"].shape[0] == 3
    assert batch.weight == 3
    assert columns(make(tiny, negatives=0).collate(examples), tiny) == ["p0", "p1", "p2"]


def test_all_negatives_of_an_example_get_their_turn_and_none_is_doubled(tiny: Tiny) -> None:
    method = make(tiny, negatives=2)
    example = dataclasses.replace(tiny.examples[0], negatives=("p7", "p8", "p9"))
    pairs = [columns(method.collate([example]), tiny)[1:] for _ in range(60)]
    drawn = Counter(name for pair in pairs for name in pair)
    assert set(drawn) == set(example.negatives) and min(drawn.values()) > 25
    assert all(first != second for first, second in pairs)


def test_an_example_without_negatives_gets_a_passage_that_does_not_answer_it(tiny: Tiny) -> None:
    library = {name: tiny.library[name] for name in ("p0", "p1", "p2", "p3")}
    method = make(tiny, library=library)
    example = dataclasses.replace(tiny.examples[0], positives=("p0", "p2"), negatives=())
    assert {columns(method.collate([example]), tiny)[1] for _ in range(40)} == {"p1", "p3"}


def test_hashes_tell_texts_apart_and_are_the_same_everywhere(tiny: Tiny) -> None:
    hashes = [dense._hash(passage.id) for passage in tiny.passages]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= value < 2**63 for value in hashes)
    assert dense._hash("p0") == 814498152570772262, "not Python's hash, which differs from process to process"


def test_forward_equals_a_loop(tiny: Tiny) -> None:
    examples = tiny.examples[:4]
    method = make(tiny)
    found = method(method.collate(examples))
    names = [example.positives[0] for example in examples] + [example.negatives[0] for example in examples]
    assert names[1] == names[4], "a positive that is another's negative stays a negative"
    assert float(found.detach()) == pytest.approx(loss_by_hand(method, tiny, examples, names), abs=1e-3)


def test_other_copies_of_a_right_answer_are_masked(tiny: Tiny) -> None:
    """Two questions with one answer, and one question with a second right passage among the columns."""
    twin = Example("twin", "喝咖啡对胎儿好吗？", tiny.examples[0].answers, ("p0",), ("p20",))
    wide = dataclasses.replace(tiny.examples[5], positives=("p5", "p6"))
    examples = [tiny.examples[0], twin, wide, tiny.examples[6]]
    torch.manual_seed(0)
    method = make(tiny)
    batch = method.collate(examples)
    names = columns(batch, tiny)
    assert names[:2] == ["p0", "p0"] and "p6" in names
    found = float(method(batch).detach())
    assert found == pytest.approx(loss_by_hand(method, tiny, examples, names), abs=1e-3)

    unmasked = dict(batch.tensors) | {"right_BR": torch.full_like(batch.tensors["right_BR"], -1)}
    assert float(method(Batch(batch.examples, unmasked, batch.weight)).detach()) > found + 1e-2


@pytest.mark.parametrize("alike", [{"text": "可以少喝，每天不超过一小杯。"}, {"group": "g"}])
def test_passages_like_a_right_answer_are_no_negatives(tiny: Tiny, alike: dict[str, str]) -> None:
    """With the option off only the right passages themselves are masked, and the loss is what the copy as a negative makes it."""
    library = dict(tiny.library)
    library["p0"] = dataclasses.replace(library["p0"], group="g")
    library["p9"] = dataclasses.replace(library["p9"], **alike)
    example = dataclasses.replace(tiny.examples[0], negatives=("p9",))
    masked, plain = (make(tiny, library, mask_duplicates=on) for on in (True, False))
    examples = [example, tiny.examples[3]]
    assert {name for passage in ("p0", "p9") for name in mining.likenesses(library[passage])} & {"group g", f"text {tiny.passages[0].text}"}
    with_copy = scores(plain, tiny, example.question, ["p0", "p3", "p9", "p4"])
    other = -log_share(scores(plain, tiny, examples[1].question, ["p0", "p3", "p9", "p4"]), 1)
    assert float(plain(plain.collate(examples)).detach()) == pytest.approx((other - log_share(with_copy, 0)) / 2, abs=1e-3)
    without = [*with_copy[:2], with_copy[3]]
    assert float(masked(masked.collate(examples)).detach()) == pytest.approx((other - log_share(without, 0)) / 2, abs=1e-3)


def test_the_symmetric_loss_equals_a_loop(tiny: Tiny) -> None:
    """Each right passage among all questions, without those that it answers as well."""
    twin = Example("twin", "喝咖啡对胎儿好吗？", tiny.examples[0].answers, ("p0", "p2"), ("p20",))
    examples = [tiny.examples[0], tiny.examples[1], twin, tiny.examples[2]]
    torch.manual_seed(1)
    both, forth = make(tiny, symmetric=0.5), make(tiny)
    batch = both.collate(examples)
    positives = columns(batch, tiny)[:4]
    expected = 0.0
    for b, name in enumerate(positives):
        asked = [j for j, example in enumerate(examples) if j == b or name not in example.positives]
        values = [scores(both, tiny, examples[j].question, [name])[0] for j in asked]
        expected -= log_share(values, asked.index(b)) / 4
    difference = float(both(batch).detach()) - float(forth(batch).detach())
    assert difference == pytest.approx(0.5 * expected, abs=1e-3) and difference > 0.01


def test_the_student_is_drawn_to_the_teacher_over_each_question_s_own_candidates(tiny: Tiny) -> None:
    """The divergence by hand; an example that the teacher has not scored adds nothing, and the gradient is that of the scored ones."""
    method = make(tiny, negatives=2, distillation=2.0, teacher="index", teacher_temperature=0.5)
    examples = [dataclasses.replace(example, negatives=("p8", "p9")) for example in tiny.examples[:2]]
    method.mined = {"e0": Mined(("p8", "p9"), {"p0": 1.0, "p8": 0.25, "p9": -0.5})}
    batch = method.collate(examples)
    assert batch.tensors["teacher_BK"].isnan().tolist() == [[False] * 3, [True] * 3]
    candidates = [columns(batch, tiny)[at] for at in (0, 2, 3)]
    student = torch.tensor(scores(method, tiny, examples[0].question, candidates)).log_softmax(0)
    teacher = torch.tensor([method.mined["e0"].scores[name] / 0.5 for name in candidates]).log_softmax(0)
    expected = float((teacher.exp() * (teacher - student)).sum()) / 2
    plain = make(tiny, negatives=2)
    assert float((method(batch) - plain(batch)).detach()) == pytest.approx(2.0 * expected, abs=1e-3)
    method(batch).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in method.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("pooling", "similarity", "temperature"), [("mean", "dot", 4.0), ("cls", "cosine", 0.1), ("mean", "cosine", 0.0)])
def test_the_encoder_s_options_reach_the_loss(tiny: Tiny, pooling: str, similarity: str, temperature: float) -> None:
    """Scores are inner products, or cosines, over the temperature; the loss and the search see the same ones."""
    method = make(tiny)
    plain = [tiny.encoder(seed, pooling, similarity) for seed in (0, 100)]
    made = [encoder.Encoder(model.transformer.config, pooling, similarity, temperature).eval() for model in plain]
    for model, other in zip(made, plain, strict=True):
        model.load_state_dict(other.state_dict())
    method.retriever.question_encoder, method.retriever.context_encoder = made
    examples = tiny.examples[:3]
    found = float(method(method.collate(examples)).detach())
    names = ["p0", "p1", "p2", "p1", "p2", "p3"]
    assert found == pytest.approx(loss_by_hand(method, tiny, examples, names), abs=1e-3)
    method.index(tiny.passages)
    (hits,) = method.retriever.retrieve([examples[0].question], 5)
    q_D, c_D = (
        x / (x.norm() if similarity == "cosine" else 1)
        for x in (_state(made[0], tiny, examples[0].question), _state(made[1], tiny, _text(method, hits[0].passage)))
    )
    assert hits[0].score == pytest.approx(float(q_D @ c_D) / (temperature or 0.05), rel=1e-3)


def _text(method: Dense, passage: Passage) -> str:
    return method.retriever.searched(passage)


def _state(model: encoder.Encoder, tiny: Tiny, text: str) -> torch.Tensor:
    """The pooled state of one text, before anything is done to its length."""
    ids, mask = tiny.wordpiece.batch([text], 48)
    with torch.no_grad():
        state_LD: torch.Tensor = model.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state[0]
    return state_LD[0] if model.pooling == "cls" else state_LD.mean(0)


def test_one_encoder_may_serve_both_sides(tiny: Tiny) -> None:
    method = make(tiny)
    method.retriever.context_encoder = method.retriever.question_encoder
    batch = method.collate(tiny.examples[:4])
    method(batch).backward()
    whole = torch.cat([parameter.grad.flatten() for parameter in method.parameters() if parameter.grad is not None])
    assert len(whole) == sum(parameter.numel() for parameter in method.retriever.question_encoder.parameters())
    method.zero_grad()
    method.room = Room(examples=1)
    method(batch).backward()
    chunks = torch.cat([parameter.grad.flatten() for parameter in method.parameters() if parameter.grad is not None])
    assert float((whole - chunks).norm()) < 1e-5 * float(whole.norm())


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (1.0, 100, 100), (0.5, 30, 70)])
def test_titles_are_seen_as_often_as_asked(tiny: Tiny, share: float, least: int, most: int) -> None:
    library = {"p0": dataclasses.replace(tiny.passages[0], title="血糖")}
    method = make(tiny, negatives=0, title_share=share, library=library)
    plain, titled = (tiny.wordpiece.batch([text], 48)[0][0].tolist() for text in (library["p0"].text, f"血糖 {library['p0'].text}"))
    assert len(titled) == len(plain) + 2
    batch = method.collate([tiny.examples[0]] * 100)
    rows = [ids[mask].tolist() for ids, mask in zip(batch.tensors["passage_PL"], batch.tensors["passage_mask_PL"], strict=True)]
    assert all(row in (plain, titled) for row in rows)
    assert least <= sum(row == titled for row in rows) <= most


def test_answer_is_the_best_passage_word_for_word(tiny: Tiny) -> None:
    method = make(tiny)
    method.index(tiny.passages)
    (answer,) = method.answer(["糖尿病能吃水果吗？"])
    assert answer.text == answer.hits[0].passage.text and len(answer.hits) == 10
    shares = torch.tensor([hit.score for hit in answer.hits]).softmax(0)
    assert answer.logprob == pytest.approx(math.log(float(shares[0])), abs=1e-5)
    method.retriever.hidden = frozenset(tiny.library)
    (nothing,) = method.answer(["糖尿病能吃水果吗？"])
    assert (nothing.text, nothing.hits, nothing.confidence) == ("", (), 0.0)


def test_validate_measures_over_the_pool(tiny: Tiny) -> None:
    method = make(tiny)
    examples = tiny.examples
    measured = method.validate(examples, 7)
    assert next(iter(measured)) == "MRR@10", "the first measure is the criterion"
    method.index(tiny.passages)
    found = [[hit.passage.id for hit in row] for row in method.retriever.retrieve([example.question for example in examples], 30)]
    expected = {"MRR@10": [metrics.reciprocal_rank(names, example.positives) for names, example in zip(found, examples, strict=True)]}
    expected |= {f"recall@{k}": [float(example.positives[0] in names[:k]) for names, example in zip(found, examples, strict=True)] for k in (1, 10)}
    assert {name: sum(values) / 30 for name, values in expected.items()} == pytest.approx({name: measured[name] for name in expected})
    assert measured["MRR@10"] > 0 and measured["recall@1"] < measured["recall@10"] < measured["recall@100"] == 1
    assert method.validate([*examples, Example("lost", "劳动仲裁要准备什么", (), ())], 4) == pytest.approx(dict(measured))


@pytest.mark.parametrize(("pool", "size"), [(0, 4), (4, 4), (6, 6), (30, 30), (99, 30)])
def test_the_pool_holds_the_right_passages_and_the_first_others(tiny: Tiny, pool: int, size: int) -> None:
    method = make(tiny, validation_pool_passages=pool)
    score = method.validate(tiny.examples[10:14], 8)["MRR@10"]
    names = [passage.id for passage in method.retriever.passages]
    assert len(names) == size
    assert names[:4] == ["p10", "p11", "p12", "p13"]
    assert names[4:6] == ["p0", "p1"][: max(0, size - 4)]
    assert 0 <= score <= 1


def test_training_finds_the_right_passages(tiny: Tiny) -> None:
    """The loss teaches what is measured: a few steps put the right passages on top of a pool of eight."""
    method = make(tiny, validation_pool_passages=8)
    examples = tiny.examples[:8]
    before = method.validate(examples, 8)["MRR@10"]
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        method(method.collate(examples)).backward()
        optimizer.step()
    after = method.validate(examples, 8)["MRR@10"]
    assert after > 0.9 > before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negatives": -1}, "negatives=-1; it must be 0 or more"),
        ({"symmetric": -0.5}, "symmetric=-0.5; it must be 0 or more"),
        ({"mine_margin": 1.5}, "mine_margin=1.5; it must be 0 to 1"),
        ({"mine_depth": 0}, "mine_depth=0; it must be 1 or more"),
        ({"teacher": "gpt"}, "teacher='gpt'; allowed: nothing, index"),
        ({"teacher_temperature": 0.0}, "teacher_temperature=0.0; it must be above 0"),
        ({"distillation": 1.0}, "distillation=1.0 needs task.options.teacher=index"),
        ({"distillation": 1.0, "teacher": "index", "negatives": 0}, "needs .*task.options.negatives of 1 or more"),
    ],
)
def test_bad_options_are_refused(tiny: Tiny, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(tiny, **options)


def test_a_retriever_is_needed() -> None:
    with pytest.raises(ValueError, match="needs a retriever"):
        dense.build(Config(), Parts())
