"""Run -> Plan: rehearsed as it was asked for and, where it does not fit, with every change of its hardware that might make it fit.

The task is never changed: what is learned stays what was asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medrag import encoder, hardware, methods, schedule
from medrag.assemble import extent
from medrag.assemble.extent import Extent
from medrag.assemble.rehearsal import Rehearsal, rehearse
from medrag.config import Run
from medrag.plan import seconds
from medrag.plan.forecast import Forecast, Plan, table
from medrag.plan.machine import this_machine
from medrag.plan.seconds import Seconds, Speed
from medrag.reports import memory as picture

__all__ = ["REFERENCE", "draw", "plan", "shortage", "table"]
REFERENCE = {"dense": (3, 9), "closed_book": (2, 10), "rag_token": (2, 11)}
"""devices of its three stages, and the GB that it reports of each"""


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
    there = extent.of_run(run)
    if there.examples < run.task.global_batch:
        raise ValueError(f"{there.examples} training examples are fewer than task.global_batch={run.task.global_batch}")
    run = replace(run, plan=replace(run.plan, examples=there.examples, passages=there.passages))
    schedule.shares(run.task, run.hardware, methods.the_class(run.task.method).whole_batch)
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
            steps_an_epoch=there.examples // run.task.global_batch,
            epochs=run.task.epochs,
            typical=_typical(run, there, speed),
            basis=(
                f"speed     {speed.source}",
                f"memory    {capacity_source}",
                f"epoch     {there.examples:,} examples, {there.source}",
                *_index(run),
            ),
        )


def _index(run: Run) -> list[str]:
    """Where the vectors are that are searched in training."""
    if "index" not in methods.the_class(run.task.method).needs:
        return []
    shape = encoder.outline(run.model.encoder)
    width = (shape.width if shape.layers else 0) + shape.bag
    held = f"{run.plan.passages:,} vectors of {width}, {4 * width * run.plan.passages / 2**20:,.0f} MiB"
    return [f"index     {held}, mapped from the disk and searched by the processor; none on a device"]


def shortage(run: Run) -> str:
    """What a person should know before training begins: that memory will not do, as predicted; empty where it will, or nothing can be predicted."""
    try:
        capacity_bytes, _ = _capacity(run)
        needed_bytes = rehearse(run).memory.total_bytes
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
        cut = schedule.shares(run.task, run.hardware, methods.the_class(run.task.method).whole_batch)
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
        above = [] if methods.the_class(self.run.task.method).whole_batch else [number for number in self.micros if number > self.own.micro]
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


def _typical(run: Run, there: Extent, speed: Speed) -> Seconds | None:
    """Seconds of a step whose rows have the corpus's mean lengths."""
    if not there.lengths:
        return None
    options = extent.shortened(run.task.options, run, there.lengths)
    found = rehearse(replace(run, task=replace(run.task, options=options)))
    return seconds.seconds(found.work, found.accumulation, found.trained_parameters, run.hardware, speed)


def _title(run: Run, search: _Search) -> tuple[str, ...]:
    asked, found = run.hardware, search.known[search.own]
    fixed = f", {found.frozen_parameters / 1e6:.1f} million fixed" if found.frozen_parameters else ""
    ways = [f"{asked.devices} x {asked.device}", asked.precision, f"ZeRO {asked.zero_stage}"]
    ways += ["checkpointing"] * asked.checkpointing + ["offload"] * asked.offload
    if methods.the_class(run.task.method).whole_batch:
        tokens = f", {asked.micro_tokens:,} tokens" if asked.micro_tokens else ""
        share = f"{found.micro} on each device; held at once: {search.own.micro} at most{tokens}"
    else:
        share = f"{found.micro} in a pass x {found.accumulation} x {asked.devices}"
    return (
        f"{run.task.method}: {found.trained_parameters / 1e6:.1f} million parameters trained{fixed}",
        ", ".join(ways),
        f"{run.task.global_batch} examples a step: {share}",
    )
