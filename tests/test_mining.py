"""Hard negatives: what is kept and what is dropped, by one process or two, before a kill and after it."""

from __future__ import annotations

import dataclasses
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import spawn

from medrag import encoder, mining, search
from medrag.methods import Parts, dense
from medrag.methods.dense import Dense
from medrag.mining import Rules
from medrag.retriever import Retriever
from medrag.search import Search
from medrag.text import Segmenter
from medrag.types import Example, Hit, Passage
from medrag.vocabulary import Wordpiece

LIBRARY = {
    f"p{number}": Passage(f"p{number}", f"text {number % 17}", "test", group=f"g{number % 7}" if number % 5 == 0 else "") for number in range(30)
}


@given(
    st.permutations(range(30)),
    st.lists(st.floats(-3, 3, width=16), min_size=30, max_size=30),
    st.integers(0, 29),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    st.integers(1, 9),
)
def test_what_is_kept_is_wrong_unlike_what_is_right_and_far_enough_below_it(
    order: list[int], scores: list[float], right: int, margin: float, keep: int
) -> None:
    hits = [Hit(LIBRARY[f"p{number}"], score) for number, score in zip(order, sorted(scores, reverse=True), strict=True)]
    example = Example("e", "？", ("。",), (f"p{right}",))
    right_score = next(hit.score for hit in hits if hit.passage.id == f"p{right}")
    kept = mining.chosen(hits, right_score, example, LIBRARY, Rules(30, margin, keep))
    answer = LIBRARY[f"p{right}"]
    allowed = []
    for hit in hits:
        alike = hit.passage.text == answer.text or (hit.passage.group and hit.passage.group == answer.group)
        if not alike and hit.score - hits[-1].score <= margin * (right_score - hits[-1].score):
            allowed.append(hit.passage.id)
    assert list(kept) == allowed[:keep], "the hardest first"


def test_a_right_passage_that_is_not_found_leaves_nothing_to_keep() -> None:
    """Its score is below all candidates': none of them can be called wrong."""
    hits = [Hit(LIBRARY[f"p{number}"], 1.0 - number / 10) for number in (1, 2, 3)]
    assert mining.chosen(hits, 0.5, Example("e", "？", ("。",), ("p9",)), LIBRARY, Rules(3, 0.95, 8)) == ()
    assert mining.chosen([], 0.5, Example("e", "？", ("。",), ("p9",)), LIBRARY, Rules(3, 0.95, 8)) == ()


def make(tiny: Tiny, tutor: Retriever | None = None, **options: Any) -> Dense:
    config = dense.Config(title_share=1.0, retriever=search.Config(question_tokens=32, passage_tokens=48), **options)
    return dense.build(config, Parts(tiny.retriever(remember=False), None, tiny.library, tutor))


def trained(method: Dense, examples: list[Example], steps: int = 12) -> Dense:
    """Fitted a little, so that right passages are found among the first."""
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        method(method.collate(examples)).backward()
        optimizer.step()
    return method


def test_the_model_s_own_mistakes_become_its_negatives(tiny: Tiny, tmp_path: Path) -> None:
    """What was mined is what an exhaustive search finds and the rules leave; examples without any keep what they had."""
    method = trained(make(tiny, mine_every_epochs=1.0, mine_depth=30, mined_negatives=3), tiny.examples)
    method.renew(tiny.examples, tmp_path, 0.5, 0.0)
    assert method.mined == {} and not list(tmp_path.rglob("*.jsonl")), "before the first round nothing is mined"
    method.renew(tiny.examples, tmp_path, 1.0, 0.0)
    assert set(method.mined) == {example.id for example in tiny.examples}
    method.index(tiny.passages)
    kept = 0
    for example in tiny.examples:
        (hits,) = method.retriever.retrieve([example.question], 30)
        right_score = next(hit.score for hit in hits if hit.passage.id in example.positives)
        most = hits[-1].score + 0.95 * (right_score - hits[-1].score)
        expected = [hit.passage.id for hit in hits if hit.score <= most and hit.passage.id not in example.positives][:3]
        assert list(method.mined[example.id].negatives) == (expected or list(example.negatives))
        kept += bool(expected)
    assert kept > 10
    drawn = method.collate(tiny.examples).tensors["likeness_PS"][30:, 0].tolist()
    assert all(
        drawn[row] in {dense._hash(mining.likenesses(tiny.library[name])[0]) for name in method.mined[example.id].negatives}
        for row, example in enumerate(tiny.examples)
    )


def test_rounds_begin_on_time_and_old_ones_go(tiny: Tiny, tmp_path: Path) -> None:
    method = make(tiny, mine_every_epochs=0.5)

    def there() -> list[str]:
        return sorted(path.name for path in (tmp_path / "mined").glob("*"))

    for step in range(6):
        method.renew(tiny.examples, tmp_path, step / 4, 0.0)
    assert there() == ["00001.jsonl", "00002.jsonl"], "rounds at half and at one, and nothing left of their making"
    method.renew(tiny.examples, tmp_path, 1.5, 1.25)
    assert there() == ["00002.jsonl", "00003.jsonl"], "a run that goes back to 1.25 needs the round that began at 1"


def test_a_resumed_run_reads_what_was_mined_with_the_weights_of_then(tiny: Tiny, tmp_path: Path) -> None:
    method = make(tiny, mine_every_epochs=1.0)
    method.renew(tiny.examples, tmp_path, 1.0, 0.0)
    mined = dict(method.mined)
    other = trained(make(tiny, mine_every_epochs=1.0), tiny.examples)
    other.renew(tiny.examples, tmp_path / "elsewhere", 1.5, 0.0)
    assert other.mined != mined
    other = trained(make(tiny, mine_every_epochs=1.0), tiny.examples)
    other.renew(tiny.examples, tmp_path, 1.5, 1.25)
    assert other.mined == mined


def test_the_teacher_proposes_and_scores_once(tiny: Tiny, tmp_path: Path) -> None:
    """Scores are those of the teacher's own search; its weights are no part of the method's, and its file outlives the rounds after it."""
    tutor = tiny.retriever(seed=7, lexical=True)
    tutor.weights = {"dense": 0.1, "words": 1.0, "characters": 1.0}
    method = make(tiny, tutor, teacher="index", distillation=1.0, mine_depth=20, mined_negatives=4)
    names = set(method.state_dict())
    assert names == set(make(tiny).state_dict())
    strange = Example("strange", "胃镜怎么做？", ("不知道。",), ("p3",), ("p5", "p6"))
    examples = [*tiny.examples, strange]
    method.renew(examples, tmp_path, 0.0, 0.0)
    proposed = 0
    for example in examples:
        (hits,) = tutor.retrieve([example.question], 30)
        by_id = {hit.passage.id: hit.score for hit in hits}
        mined = method.mined[example.id]
        assert mined.scores == pytest.approx({name: by_id[name] for name in {*example.positives, *mined.negatives}}, abs=1e-4)
        proposed += mined.negatives != example.negatives
    assert proposed > 10
    batch = method.collate(examples)
    assert bool(batch.tensors["teacher_BK"].isfinite().all())
    stored = (tmp_path / "mined" / "00000.jsonl").read_bytes()
    method.renew(examples, tmp_path, 7.5, 7.0)
    assert (tmp_path / "mined" / "00000.jsonl").read_bytes() == stored


def test_the_teacher_scores_what_the_model_mines(tiny: Tiny, tmp_path: Path) -> None:
    tutor = tiny.retriever(seed=7, lexical=True)
    tutor.weights = {"dense": 0.1, "words": 1.0, "characters": 0.0}
    method = make(tiny, tutor, teacher="index", distillation=1.0, mine_every_epochs=1.0)
    method.renew(tiny.examples, tmp_path, 1.0, 0.0)
    (hits,) = tutor.retrieve([tiny.examples[4].question], 30)
    by_id = {hit.passage.id: hit.score for hit in hits}
    mined = method.mined["e4"]
    assert mined.scores == pytest.approx({name: by_id[name] for name in ("p4", *mined.negatives)}, abs=1e-4)


def test_a_teacher_that_was_not_brought_is_missed(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task.options.teacher=index, but the method was made without one"):
        make(tiny, teacher="index").renew(tiny.examples, tmp_path, 0.0, 0.0)


def one_rank(rank: int, world: int, port: int, folder: Path, examples: list[Example], passages: list[Passage]) -> None:
    if world > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=timedelta(seconds=120))
    wordpiece = Wordpiece.load(folder)
    shape = encoder.Config(embedding=16, width=32, layers=2, heads=4, feed_forward=48, dropout=0.0, positions_tokens=64)
    models = [encoder.build(shape, wordpiece) for _ in range(2)]
    config = search.Config(question_tokens=32, passage_tokens=48)
    finder = Retriever(config, Search(synonyms="", lexical=[]), wordpiece, models[0], models[1], Segmenter())
    options = dense.Config(retriever=config, mine_every_epochs=1.0, mine_depth=10)
    method = dense.build(options, Parts(finder, None, {passage.id: passage for passage in passages}))
    method.load_state_dict(load_file(folder / "weights.safetensors"))
    method.renew(examples, folder / f"run{world}", 1.0, 0.0)
    assert len(method.mined) == len(examples)
    if world > 1:
        dist.destroy_process_group()


def second_rank(_process: int, port: int, folder: Path, examples: list[Example], passages: list[Passage]) -> None:
    torch.set_num_threads(1)
    one_rank(1, 2, port, folder, examples, passages)


def test_two_ranks_mine_what_one_process_mines(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.wordpiece.save(tmp_path)
    save_file(trained(make(tiny), tiny.examples).state_dict(), tmp_path / "weights.safetensors")
    examples = [*tiny.examples, dataclasses.replace(tiny.examples[0], id="one more")]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    other = spawn(second_rank, (port, tmp_path, examples, tiny.passages), nprocs=1, join=False)  # type: ignore[no-untyped-call]
    one_rank(0, 2, port, tmp_path, examples, tiny.passages)
    other.join()
    one_rank(0, 1, port, tmp_path, examples, tiny.passages)
    one, two = ((tmp_path / f"run{world}" / "mined" / "00001.jsonl").read_text("utf-8") for world in (1, 2))
    assert one == two and len(one.splitlines()) == 31
    assert [path.name for path in (tmp_path / "run2" / "mined").iterdir()] == ["00001.jsonl"]
