"""`medrag plan` as a user runs it: what it tells, what it proposes against every other way to run, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from commands import DENSE, TINY

from medrag.__main__ import main
from medrag.assemble import extent, planning
from medrag.assemble.planning import Setting
from medrag.config import compose
from medrag.plan import forecast
from medrag.plan.seconds import Speed

STATED = ["hardware.teraflops=0.1", "hardware.gigabytes_a_second=10"]
"""of a CPU, so that every plan is made with the same"""
SMALL = [*TINY, *STATED, "task.options.source_tokens=24", "task.options.answer_tokens=24"]
CARD = ["model=reference", "hardware=1080ti", "task.options.source_tokens=64", "task.options.answer_tokens=64"]


class Bar:
    """Counts what is rehearsed."""

    count = 0

    def update(self) -> None:
        self.count += 1


def search(words: list[str], capacity_bytes: float) -> planning._Search:
    return planning._Search(compose(words), Speed(1e11, 1e10, 1e-5, ""), capacity_bytes, Bar())


def test_the_reference_is_told_part_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "task=rag_token", *CARD, "hardware.micro_batch.rag_token=1", f"store={tmp_path}"]) == 0
    told = capsys.readouterr().out
    rows = re.findall(r"^([a-z ]{18}) +([\d,]+) ", told[: told.index("full rows")], re.MULTILINE)
    sizes = {name.strip(): int(size.replace(",", "")) for name, size in rows}
    total, capacity = sizes.pop("total"), sizes.pop("a device has")
    assert {"weights", "gradients", "optimizer", "encoder", "generator encoder", "decoder", "logits", "context"} <= sizes.keys()
    assert sum(sizes.values()) == pytest.approx(total, abs=len(sizes))
    assert capacity == round(10.9 * 1024)
    assert "84.6 million parameters trained" in told and "16 examples a step: 1 in a pass x 8 x 2" in told
    assert f"{capacity - total:,} MiB to spare" in told or f"{capacity - total - 1:,} MiB to spare" in told
    assert "112,000 examples, as many as the reference has" in told and "not measured on this card" in told
    assert re.search(r"^fits: \d+% of the memory", told, re.MULTILINE)
    (word, needed) = re.findall(r"there is room for (\S+): ([\d,]+) MiB", told)[0]
    assert word == "hardware.micro_batch.rag_token=8" and total < int(needed.replace(",", "")) <= capacity


def test_the_change_is_the_smallest_and_among_those_the_fastest() -> None:
    """Against all ways to run it, for capacities between what they need."""
    words = ["task=closed_book", *SMALL, "hardware.devices=2", "hardware.micro_batch.closed_book=4", "task.global_batch=16"]
    everything = search(words, 0)
    stages, micros = (0, 1, 2, 3), (1, 2, 4)
    ways = [everything.forecast(Setting(micro, kept, stage, False)) for micro in micros for kept in (False, True) for stage in stages]
    needs = sorted({way.memory.total_bytes for way in ways})
    own = everything.forecast(everything.own).memory.total_bytes
    assert own > needs[0]
    for capacity in [needs[0], *needs[1 : needs.index(own) : 3], own - 1]:
        trial = search(words, capacity)
        trial.known = everything.known
        found = trial.smallest()
        fitting = [way for way in ways if way.memory.total_bytes <= capacity]
        fewest = min(len(way.words) for way in fitting)
        assert found.memory.total_bytes <= capacity
        assert len(found.words) == fewest
        assert found.seconds.step == min(way.seconds.step for way in fitting if len(way.words) == fewest)
    nothing = search(words, needs[0] - 1)
    nothing.known = everything.known
    assert nothing.smallest().memory.total_bytes == needs[0]


def test_the_words_of_a_change_do_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=closed_book", *SMALL, f"store={tmp_path}", "hardware.devices=1", "task.global_batch=16"]
    asked = planning.plan(compose(words), instead=False).asked
    small = [*words, f"hardware.memory_gib={0.7 * asked.memory.total_bytes / 2**30}"]
    assert main(["plan", *small]) == 1
    told = capsys.readouterr().out
    assert "does not fit; this does:" in told and "too much" in told
    change = told[told.index("this does:") :].splitlines()[1].split()
    assert change and all(word.startswith("hardware.") for word in change)
    assert main(["plan", *small, *change]) == 0
    again = capsys.readouterr().out
    (needed,) = re.findall(r"^total +([\d,]+)", again, re.MULTILINE)
    assert f"with {needed} MiB" in told
    assert main(["plan", *words, "hardware.memory_gib=0.0001"]) == 1
    hopeless = capsys.readouterr().out
    assert "does not fit, whatever is changed" in hopeless and "least is needed with hardware." in hopeless


def test_before_training_on_a_card_a_shortage_is_told() -> None:
    words = ["task=closed_book", "hardware=1080ti", *TINY, "task.options.source_tokens=24", "task.options.answer_tokens=24"]
    assert planning.shortage(compose(words)) == ""
    told = planning.shortage(compose([*words, "hardware.memory_gib=0.5"]))
    assert re.fullmatch(r"this run is predicted to need [\d,]+ MiB on each device, which has 512 MiB; `medrag plan` .*", told)
    assert planning.shortage(compose([*words, "hardware.memory_gib=0"])) == ""


def test_a_card_may_offload_and_only_several_share_out() -> None:
    alone = search(["task=closed_book", *CARD, "hardware.devices=1"], 0)
    assert {(setting.zero_stage, setting.offload) for setting in alone._others()} == {(0, False), (1, True)}
    several = search(["task=closed_book", *CARD, "hardware.zero_stage=1", "hardware.micro_batch.closed_book=8"], 0)
    assert {setting.zero_stage for setting in several._others()} == {1, 2, 3}
    assert several._words(replace(several._others()[-1], micro=2)) == (
        "hardware.micro_batch.closed_book=2",
        "hardware.checkpointing=true",
        "hardware.zero_stage=3",
        "hardware.offload=true",
    )


def test_a_prepared_corpus_says_how_many_and_how_long(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (next(corpus.glob("corpus/v*")) / "train.jsonl").read_text("utf-8").splitlines()
    # rows of the corpus are far shorter than 400 tokens
    words = ["task=closed_book", *TINY, *STATED, f"store={corpus}", "hardware.devices=1", "task.options.source_tokens=400", "task.global_batch=8"]
    found = planning.plan(compose(words), instead=False)
    assert found.steps_an_epoch == len(lines) // 8 and found.typical is not None
    assert 0 < found.typical.passes < 0.7 * found.asked.seconds.passes
    assert found.typical.optimizer == found.asked.seconds.optimizer
    assert main(["plan", *words, "plan.examples=8000"]) == 0
    told = capsys.readouterr().out
    assert "8,000 examples, as asked for" in told and "rows of the corpus" in told
    dense = compose([*DENSE, *TINY])
    options = extent.shortened(dense.task.options, dense, [(10, 50, 12), (40, 50, 30)])
    assert (options.retriever.question_tokens, options.retriever.passage_tokens) == (14, 19)
    bare = extent.of_run(compose(["task=mlm", f"store={corpus}"]))
    assert bare.examples == len(lines) + bare.passages


def test_the_references_stages_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "memory.png"
    words = [*TINY, f"store={tmp_path}"]
    assert main(["plan", "--plot", str(picture), *words]) == 0
    told = capsys.readouterr().out
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = [line.split() for line in told.splitlines()]
    assert rows[0] == ["MiB", "dense", "closed_book", "rag_token"]
    totals = next(row for row in rows if row[0] == "total")
    alone = planning.plan(compose(["model=reference", "hardware=1080ti", *words, "task=closed_book"]), instead=False)
    assert totals[2] == f"{alone.asked.memory.total_bytes / 2**20:,.0f}"
    assert ["fits", "yes", "yes", "yes"] in rows
    assert main(["plan", "--plot", str(picture), *words, "hardware.memory_gib=0.1"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=raag_token"], "task=raag_token; allowed:.*did you mean rag_token"),
        (["hardware=1080"], "hardware=1080; allowed:.*1080ti"),
        (["task.global_batch=15", "hardware.devices=2"], "task.global_batch=15 is not divisible by hardware.devices=2; allowed devices"),
        (["hardware.precision=fp16"], "fp16 needs a GPU"),
        (["hardware.offload=true", "hardware=1080ti"], "offload=true needs hardware.zero_stage of 1, 2 or 3"),
        (["plan.examples=-1"], "plan.examples=-1; it must be 1 or more"),
        (["plan.examples=7", "task.global_batch=24"], "7 training examples are fewer than task.global_batch=24"),
        (["hardware=1080ti", "hardware.teraflops=0"], "hardware.teraflops=0"),
        (["hardware=1080ti", "hardware.memory_gib=0"], "hardware.memory_gib=0.*torch sees no card"),
        (["--plot"], "allowed: --plot FILE.png"),
        (["--plot", "memory.svg"], "allowed: --plot FILE.png"),
        (["--plot", "/no/such/folder/memory.png"], "there is no folder /no/such/folder"),
        (["--plot", "memory.png", "task=dense"], "draws dense, closed_book, rag_token; it takes no task=dense"),
        (["rag_token"], "allowed: --plot FILE.png, key=value"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words, f"store={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0021, "2.1 ms"), (1.234, "1.23 s"), (59.9, "59.9 s"), (3550, "59 min"), (3590, "1 h 0 min"), (8000, "2 h 13 min"), (90_000, "1 d 1 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert forecast.spoken(seconds) == words
