"""Run -> Plan: rehearsed as it was asked for and, where it does not fit, with every change of its hardware that might make it fit.

The task is never changed: what is learned stays what was asked for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medrag import files, hardware, methods, prepare, schedule
from medrag.assemble.rehearsal import Rehearsal, rehearse
from medrag.config import Run
from medrag.methods import Method
from medrag.plan import seconds
from medrag.plan.forecast import Forecast, Plan, table
from medrag.plan.machine import this_machine
from medrag.plan.seconds import Seconds, Speed
from medrag.reports import memory as picture

__all__ = ["REFERENCE", "draw", "plan", "shortage", "table"]
EXAMPLES, PASSAGES = 112_000, 120_000
"""of the reference set-up"""
REFERENCE = {"dense": (3, 9), "closed_book": (2, 10), "rag_token": (2, 11)}
"""devices of its three stages, and the GB that it reports of each"""
SAMPLED = 2_000
"""examples whose lengths are taken for those of all"""
TOKENS_A_CHARACTER = {"characters": 1.0, "words": 0.68, "sentencepiece": 0.65}
"""by vocabulary; measured on a fifth of corpora/*.jsonl that the vocabulary was not made from: 1.01 for characters, 0.68 for words, and for
SentencePiece 0.59 to 0.75 (16,735 to 4,000 units)"""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to train on."""

    examples: int
    passages: int
    source: str
    lengths: tuple[tuple[int, int, int], ...]
    """characters of questions, their answers and passages, of some; empty where there is no corpus"""


@dataclass(frozen=True, slots=True)
class Setting:
    """What may be changed of a run's hardware."""

    micro: int
    """examples that a device holds activations of at once"""
    checkpointing: bool
    zero_stage: int
    offload: bool


def plan(run: Run, instead: bool = True) -> Plan:
    """Predict a run. ``instead``: look for what fits where it does not, and for the largest micro batch where it does.

    Raises ValueError where the run could not start on its hardware, or the hardware's memory or speed is not known.
    """
    hardware.check(run.hardware)
    extent = _extent(run)
    if extent.examples < run.task.global_batch:
        raise ValueError(f"{extent.examples} training examples are fewer than task.global_batch={run.task.global_batch}")
    run = replace(run, plan=replace(run.plan, examples=extent.examples, passages=extent.passages))
    schedule.shares(run.task, run.hardware, _class(run).whole_batch)
    capacity_bytes, capacity_source = _capacity(run)
    speed = seconds.speed_of(run.hardware)
    with tqdm(desc="rehearsing", unit=" ways", disable=None, leave=False, file=sys.stderr) as bar:
        search = _Search(run, speed, capacity_bytes, bar)
        asked = search.forecast(search.own)
        fits = asked.memory.total_bytes <= capacity_bytes
        return Plan(
            title=_title(run, search),
            asked=asked,
            instead=search.smallest() if instead and not fits else None,
            larger=search.larger() if instead and fits else None,
            capacity_bytes=capacity_bytes,
            steps_an_epoch=extent.examples // run.task.global_batch,
            epochs=run.task.epochs,
            typical=_typical(run, extent, speed),
            basis=(f"speed     {speed.source}", f"memory    {capacity_source}", f"epoch     {extent.examples:,} examples, {extent.source}"),
        )


def shortage(run: Run) -> str:
    """What a person should know before training begins: that memory will not do, as predicted; empty where it will, or nothing can be predicted."""
    try:
        capacity_bytes, _ = _capacity(run)
        needed_bytes = rehearse(replace(run, plan=replace(run.plan, passages=run.plan.passages or PASSAGES))).memory.total_bytes
    except (ValueError, RuntimeError):  # what cannot be rehearsed may be trained all the same, or says itself why not
        return ""
    if needed_bytes <= capacity_bytes:
        return ""
    needed, there = (f"{size / 2**20:,.0f} MiB" for size in (needed_bytes, capacity_bytes))
    return f"this run is predicted to need {needed} on each device, which has {there}; `medrag plan` with the same words says what would fit"


def draw(runs: Sequence[Run], path: Path) -> dict[str, Plan]:
    """The plans of the reference's stages, by method, and a picture of them in ``path``. Raises ValueError where its folder is not there."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    stages = {run.task.method: plan(run, instead=False) for run in runs}
    bars = []
    for name, found in stages.items():
        devices, gigabytes = REFERENCE[name]
        bars.append(picture.Stage(name, found.asked.memory.parts, runs[0].hardware.devices, f"{devices} x {gigabytes} GB", gigabytes * 1e9))
    first = next(iter(stages.values()))
    capacity = f"memory of a device: {first.capacity_bytes / 2**30:.1f} GiB"
    picture.write(bars, first.capacity_bytes, capacity, f"Memory of training with full rows on {first.title[1]}, as predicted", path)
    return stages


class _Search:
    """Ways to run it, each rehearsed once."""

    def __init__(self, run: Run, speed: Speed, capacity_bytes: float, bar: Any) -> None:
        self.run, self.speed, self.capacity_bytes, self.bar = run, speed, capacity_bytes, bar
        self.known: dict[Setting, Rehearsal] = {}
        cut = schedule.shares(run.task, run.hardware, _class(run).whole_batch)
        micro = min(cut.micro, cut.room.examples or cut.micro)
        self.own = Setting(micro, run.hardware.checkpointing, run.hardware.zero_stage, run.hardware.offload)
        per_device = run.task.global_batch // run.hardware.devices
        self.micros = [number for number in range(1, per_device + 1) if per_device % number == 0]

    def forecast(self, setting: Setting) -> Forecast:
        """What it needs and takes with this setting."""
        run = self._with(setting)
        if setting not in self.known:
            self.known[setting] = rehearse(run)
            self.bar.update()
        found = self.known[setting]
        taken = seconds.seconds(found.work, found.accumulation, found.trained_parameters, run.hardware, self.speed)
        return Forecast(self._words(setting), found.memory, taken)

    def smallest(self) -> Forecast:
        """With the fewest keys changed, and among those the least time a step; where nothing fits, what needs least memory."""
        for count in range(1, len(fields(Setting)) + 1):
            fitting = []
            for setting in self._others():
                if (changed := len(self._words(setting))) == count and self._fits(setting):
                    fitting.append(setting)
                elif changed == count - 1 and (micro := self._largest(setting, [number for number in self.micros if number < self.own.micro])):
                    fitting.append(replace(setting, micro=micro))
            if fitting:
                return min((self.forecast(setting) for setting in fitting), key=lambda forecast: forecast.seconds.step)
        return min((self.forecast(setting) for setting in self.known), key=lambda forecast: forecast.memory.total_bytes)

    def larger(self) -> Forecast | None:
        """The largest micro batch above its own that fits; not for methods that cut the whole batch themselves."""
        above = [] if _class(self.run).whole_batch else [number for number in self.micros if number > self.own.micro]
        micro = self._largest(self.own, above)
        return self.forecast(replace(self.own, micro=micro)) if micro else None

    def _others(self) -> list[Setting]:
        """All settings with its own micro batch."""
        stages = [self.own.zero_stage, *(stage for stage in range(self.own.zero_stage + 1, 4) if self.run.hardware.devices > 1)]
        pairs = [(stage, self.own.offload) for stage in stages]
        if self.run.hardware.device == "cuda" and not self.own.offload:
            pairs += [(stage, True) for stage in sorted({max(1, stage) for stage in stages})]
        kept = sorted({self.own.checkpointing, True})
        return [
            replace(self.own, checkpointing=checkpointing, zero_stage=stage, offload=offload) for checkpointing in kept for stage, offload in pairs
        ]

    def _fits(self, setting: Setting) -> bool:
        return self.forecast(setting).memory.total_bytes <= self.capacity_bytes

    def _largest(self, setting: Setting, micros: Sequence[int]) -> int:
        """The largest of these micro batches, smallest first, that fits; 0 where none does.

        The last may need less than the one before: where a step is one pass, no gradient waits for the next.
        """
        if micros and self._fits(replace(setting, micro=micros[-1])):
            return micros[-1]
        low, high = 0, len(micros) - 1
        while low < high:
            middle = (low + high) // 2
            if self._fits(replace(setting, micro=micros[middle])):
                low = middle + 1
            else:
                high = middle
        return micros[low - 1] if low else 0

    def _with(self, setting: Setting) -> Run:
        if setting == self.own:
            return self.run
        micro = self.run.hardware.micro_batch | ({self.run.task.method: setting.micro} if setting.micro != self.own.micro else {})
        changed = replace(
            self.run.hardware, micro_batch=micro, checkpointing=setting.checkpointing, zero_stage=setting.zero_stage, offload=setting.offload
        )
        return replace(self.run, hardware=changed)

    def _words(self, setting: Setting) -> tuple[str, ...]:
        names = {"micro": f"micro_batch.{self.run.task.method}"}
        pairs = [(entry.name, getattr(setting, entry.name)) for entry in fields(Setting)]
        return tuple(f"hardware.{names.get(name, name)}={str(value).lower()}" for name, value in pairs if value != getattr(self.own, name))


def _extent(run: Run) -> Extent:
    """What ``run.plan`` says, else the newest prepared corpus, else the reference."""
    asked = run.plan
    for name in ("examples", "passages"):
        if getattr(asked, name) < 0:
            raise ValueError(f"plan.{name}={getattr(asked, name)}; it must be 1 or more, or 0 for those of the corpus")
    if not (Path(run.store) / "corpus" / files.CURRENT).is_file():
        extent = Extent(EXAMPLES, PASSAGES, "as many as the reference has, since no corpus is prepared", ())
    else:
        corpus = files.current(Path(run.store), "corpus")
        passages = [len(row["text"]) for row in islice(files.read_jsonl(corpus.path / "passages.jsonl"), SAMPLED)]
        texts = [
            (len(example.question), len(example.answers[0])) for example in islice(prepare.examples(corpus, "train"), SAMPLED) if example.answers
        ]
        lengths = tuple((asked, answer, passages[place % len(passages)]) for place, (asked, answer) in enumerate(texts))
        counts = [_lines(corpus.path / name) for name in ("train.jsonl", "passages.jsonl")]
        extent = Extent(counts[0], counts[1], f"those of {corpus.path}", lengths)
    if _class(run).learns_from is not Method.learns_from:
        bare = "and passages, at least one piece each"
        extent = replace(extent, examples=extent.examples + (asked.passages or extent.passages), source=f"{extent.source}: questions {bare}")
    if asked.examples:
        extent = replace(extent, examples=asked.examples, source="as asked for")
    return replace(extent, passages=asked.passages or extent.passages)


def _lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


def _capacity(run: Run) -> tuple[float, str]:
    """Bytes that one process may hold, and whose word that is."""
    asked = run.hardware
    if asked.memory_gib:
        return asked.memory_gib * 2**30, f"hardware.memory_gib={asked.memory_gib:g} a device"
    machine = this_machine(Path(run.store))
    if asked.device == "cuda":
        if not machine.cards:
            raise ValueError("hardware.memory_gib=0, and torch sees no card here: say how much memory the card has")
        return machine.cards[0].memory_gib * 2**30, f"that of the {machine.cards[0].name} here"
    return machine.memory_gib / asked.devices * 2**30, f"this machine's, shared out to {asked.devices} process{'es' * (asked.devices > 1)}"


def _typical(run: Run, extent: Extent, speed: Speed) -> Seconds | None:
    """Seconds of a step whose rows have the corpus's mean lengths."""
    if not extent.lengths:
        return None
    options = _shortened(run.task.options, run, extent.lengths)
    found = rehearse(replace(run, task=replace(run.task, options=options)))
    return seconds.seconds(found.work, found.accumulation, found.trained_parameters, run.hardware, speed)


def _shortened(options: Any, run: Run, lengths: Sequence[tuple[int, int, int]]) -> Any:
    """The same options with each limit of tokens as low as texts cut to it are long in the mean."""
    reads = hasattr(options, "passages")
    parts = {
        "question_tokens": [question for question, _, _ in lengths],
        "passage_tokens": [passage for _, _, passage in lengths],
        "source_tokens": [question + passage * reads for question, _, passage in lengths],
        "answer_tokens": [answer for _, answer, _ in lengths],
        "tokens": [length for question, _, passage in lengths for length in (question, passage)],
    }
    own = _class(run).needs
    changed: dict[str, Any] = {}
    for entry in fields(options):
        value = getattr(options, entry.name)
        if entry.name in parts:
            by_encoder = entry.name in ("question_tokens", "passage_tokens") or "generator" not in own
            ratio = TOKENS_A_CHARACTER[run.model.encoder.vocabulary_unit if by_encoder else "sentencepiece"]
            cut = [min(value, ratio * length + 2) for length in parts[entry.name]]
            changed[entry.name] = math.ceil(sum(cut) / len(cut))
        elif entry.name == "retriever":
            changed[entry.name] = _shortened(value, run, lengths)
    return replace(options, **changed)


def _title(run: Run, search: _Search) -> tuple[str, ...]:
    asked, found = run.hardware, search.known[search.own]
    fixed = f", {found.frozen_parameters / 1e6:.1f} million fixed" if found.frozen_parameters else ""
    ways = [f"{asked.devices} x {asked.device}", asked.precision, f"ZeRO {asked.zero_stage}"]
    ways += ["checkpointing"] * asked.checkpointing + ["offload"] * asked.offload
    if _class(run).whole_batch:
        tokens = f", {asked.micro_tokens:,} tokens" if asked.micro_tokens else ""
        share = f"{found.micro} on each device; held at once: {search.own.micro} at most{tokens}"
    else:
        share = f"{found.micro} in a pass x {found.accumulation} x {asked.devices}"
    return (
        f"{run.task.method}: {found.trained_parameters / 1e6:.1f} million parameters trained{fixed}",
        ", ".join(ways),
        f"{run.task.global_batch} examples a step: {share}",
    )


def _class(run: Run) -> type[Method]:
    return methods.the_class(methods.load(run.task.method))
