"""DPR's training: which passages a batch holds, which columns are masked, and how good the retriever is said to be."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from conftest import Tiny

from medrag import metrics, retriever
from medrag.methods import Batch, Parts, dense
from medrag.methods.dense import Config, Dense
from medrag.types import Example, Passage

RETRIEVER = retriever.Config(question_tokens=32, passage_tokens=48)


def make(tiny: Tiny, negatives: int = 1, title_share: float = 1.0, pool: int = 2000, library: Mapping[str, Passage] | None = None) -> Dense:
    config = Config(negatives=negatives, title_share=title_share, retriever=RETRIEVER, validation_pool_passages=pool)
    return dense.build(config, Parts(tiny.retriever(remember=False), None, tiny.library if library is None else library))


def loss_by_hand(method: Dense, tiny: Tiny, examples: list[Example], columns: list[str]) -> float:
    """One question and one passage at a time; a column that is another right answer of a question takes no part."""
    total = 0.0
    assert method.retriever.context_encoder is not None
    with torch.no_grad():
        for b, example in enumerate(examples):
            q_D = method.retriever.question_encoder(*tiny.wordpiece.batch([example.question], 32))[0]
            score = {}
            for column, name in enumerate(columns):
                text = method.retriever.searched(tiny.library[name])
                if column == b or name not in example.positives:
                    score[column] = float(q_D @ method.retriever.context_encoder(*tiny.wordpiece.batch([text], 48))[0])
            total -= score[b] - math.log(sum(math.exp(value) for value in score.values()))
    return total / len(examples)


def test_positives_stand_first_then_the_hard_negatives(tiny: Tiny) -> None:
    method = make(tiny, negatives=2)
    examples = [dataclasses.replace(example, negatives=("p20",)) for example in tiny.examples[:3]]
    batch = method.collate(examples)
    expected = [dense._hash(name) for name in ("p0", "p1", "p2", *("p20",) * 6)]
    assert batch.tensors["passage_hash_P"].tolist() == expected
    assert batch.tensors["passage_PL"].shape[0] == 9 and batch.tensors["question_BL"].shape[0] == 3
    assert batch.weight == 3
    assert make(tiny, negatives=0).collate(examples).tensors["passage_hash_P"].tolist() == expected[:3]


def test_all_negatives_of_an_example_get_their_turn(tiny: Tiny) -> None:
    method = make(tiny)
    example = dataclasses.replace(tiny.examples[0], negatives=("p7", "p8", "p9"))
    drawn = Counter(int(method.collate([example]).tensors["passage_hash_P"][1]) for _ in range(60))
    assert set(drawn) == {dense._hash(name) for name in example.negatives}
    assert min(drawn.values()) > 8


def test_an_example_without_negatives_gets_a_passage_that_does_not_answer_it(tiny: Tiny) -> None:
    library = {name: tiny.library[name] for name in ("p0", "p1", "p2", "p3")}
    method = make(tiny, library=library)
    example = dataclasses.replace(tiny.examples[0], positives=("p0", "p2"), negatives=())
    drawn = {int(method.collate([example]).tensors["passage_hash_P"][1]) for _ in range(40)}
    assert drawn == {dense._hash("p1"), dense._hash("p3")}


def test_hashes_tell_ids_apart_and_are_the_same_everywhere(tiny: Tiny) -> None:
    hashes = [dense._hash(passage.id) for passage in tiny.passages]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= value < 2**63 for value in hashes)
    assert dense._hash("p0") == 814498152570772262, "not Python's hash, which differs from process to process"


def test_forward_equals_a_loop(tiny: Tiny) -> None:
    examples = tiny.examples[:4]
    method = make(tiny)
    found = method(method.collate(examples))
    columns = [example.positives[0] for example in examples] + [example.negatives[0] for example in examples]
    assert columns[1] == columns[4], "a positive that is another's negative stays a negative"
    assert float(found.detach()) == pytest.approx(loss_by_hand(method, tiny, examples, columns), abs=1e-3)


def test_other_copies_of_a_right_answer_are_masked(tiny: Tiny) -> None:
    """Two questions with one answer, and one question with a second right passage among the columns."""
    twin = Example("twin", "喝咖啡对胎儿好吗？", tiny.examples[0].answers, ("p0",), ("p20",))
    wide = dataclasses.replace(tiny.examples[5], positives=("p5", "p6"))
    examples = [tiny.examples[0], twin, wide, tiny.examples[6]]
    torch.manual_seed(0)
    method = make(tiny)
    batch = method.collate(examples)
    names = {dense._hash(name): name for name in tiny.library}
    columns = [names[value] for value in batch.tensors["passage_hash_P"].tolist()]
    assert columns[:2] == ["p0", "p0"] and "p6" in columns
    found = float(method(batch).detach())
    assert found == pytest.approx(loss_by_hand(method, tiny, examples, columns), abs=1e-3)

    unmasked = dict(batch.tensors) | {"right_hash_BR": torch.full_like(batch.tensors["right_hash_BR"], -1)}
    assert float(method(Batch(batch.examples, unmasked, batch.weight)).detach()) > found + 1e-2


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


def test_validate_is_mrr_over_the_pool(tiny: Tiny) -> None:
    method = make(tiny)
    examples = tiny.examples
    score = method.validate(examples, 7)
    method.index(tiny.passages)
    hits = method.retriever.retrieve([example.question for example in examples], 10)
    expected = sum(metrics.reciprocal_rank([hit.passage.id for hit in row], e.positives) for row, e in zip(hits, examples, strict=True)) / 30
    assert 0 < score == pytest.approx(expected)
    assert method.validate([*examples, Example("lost", "劳动仲裁要准备什么", (), ())], 4) == pytest.approx(score)


@pytest.mark.parametrize(("pool", "size"), [(0, 4), (4, 4), (6, 6), (30, 30), (99, 30)])
def test_the_pool_holds_the_right_passages_and_the_first_others(tiny: Tiny, pool: int, size: int) -> None:
    method = make(tiny, pool=pool)
    score = method.validate(tiny.examples[10:14], 8)
    names = [passage.id for passage in method.retriever.passages]
    assert len(names) == size
    assert names[:4] == ["p10", "p11", "p12", "p13"]
    assert names[4:6] == ["p0", "p1"][: max(0, size - 4)]
    assert 0 <= score <= 1


def test_training_finds_the_right_passages(tiny: Tiny) -> None:
    """The loss teaches what is measured: a few steps put the right passages on top of a pool of eight."""
    method = make(tiny, pool=8)
    examples = tiny.examples[:8]
    before = method.validate(examples, 8)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        method(method.collate(examples)).backward()
        optimizer.step()
    after = method.validate(examples, 8)
    assert after > 0.9 > before


def test_bad_options_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="negatives=-1; it must be 0 or more"):
        make(tiny, negatives=-1)
    with pytest.raises(ValueError, match="needs a retriever"):
        dense.build(Config(), Parts())
