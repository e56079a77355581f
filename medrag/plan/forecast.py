"""What a run will need and take, and the smallest change that makes it fit, told to a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medrag.plan.memory import Memory
from medrag.plan.seconds import Seconds

BAR_CHARACTERS = 32
LEAST_BYTES = 2**19
"""of a part that is told: half a MiB"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One way to run it."""

    words: tuple[str, ...]
    """what the command line says more than the run as it was asked for"""
    memory: Memory
    seconds: Seconds

    @property
    def change(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run as it was asked for, and what would do instead where it does not fit."""

    title: tuple[str, ...]
    asked: Forecast
    instead: Forecast | None
    """the change that makes it fit, or where none does the one that needs least; None where it fits as it is"""
    larger: Forecast | None
    """the largest micro batch that fits beside it, where it fits with room"""
    capacity_bytes: float
    """of one device"""
    steps_an_epoch: int
    epochs: float
    typical: Seconds | None
    """of a step whose rows have the corpus's mean lengths; None where there is no corpus"""
    basis: tuple[str, ...]
    """what the prediction rests on"""

    @property
    def fits(self) -> bool:
        return self.asked.memory.total_bytes <= self.capacity_bytes

    def __str__(self) -> str:
        return "\n".join([*self.title, "", *self._parts(), "", *self._times(), "", *self.basis, "", *self._verdict()])

    def _parts(self) -> list[str]:
        memory = self.asked.memory
        lines = [f"{'part':<18}{'MiB':>9}{'share':>8}"]
        for name, size in memory.parts.items():
            if size >= LEAST_BYTES:
                share = size / memory.total_bytes
                lines.append(f"{name:<18}{size / 2**20:>9,.0f}{share:>8.1%}  {'█' * round(BAR_CHARACTERS * share) or '▏'}")
        margin = self.capacity_bytes - memory.total_bytes
        left = f"{abs(margin) / 2**20:,.0f} MiB {'to spare' if margin >= 0 else 'too much'}"
        lines += [
            f"{'total':<18}{memory.total_bytes / 2**20:>9,.0f}          most is held in the {memory.moment}",
            f"{'a device has':<18}{self.capacity_bytes / 2**20:>9,.0f}          {left}",
        ]
        return lines

    def _times(self) -> list[str]:
        lines = [f"{'':<18}{'a step':>12}{'an epoch':>14}{f'{self.epochs:g} epochs':>16}"]
        for name, seconds in (("full rows", self.asked.seconds), ("rows of the corpus", self.typical)):
            if seconds is not None:
                epoch = seconds.step * self.steps_an_epoch
                lines.append(f"{name:<18}{spoken(seconds.step):>12}{spoken(epoch):>14}{spoken(epoch * self.epochs):>16}")
        parts = self.asked.seconds
        exchange = f", exchange between devices {spoken(parts.exchange)}" if parts.exchange else ""
        lines.append(f"a step: forward and backward {spoken(parts.passes)}, optimizer {spoken(parts.optimizer)}{exchange}")
        return lines

    def _verdict(self) -> list[str]:
        if self.instead is None:
            lines = [f"fits: {(self.capacity_bytes - self.asked.memory.total_bytes) / self.capacity_bytes:.0%} of the memory stay free"]
            if self.larger is not None:
                lines.append(f"there is room for {_told(self.larger)}")
            return lines
        if self.instead.memory.total_bytes > self.capacity_bytes:
            return ["does not fit, whatever is changed", f"least is needed with {_told(self.instead)}"]
        return ["does not fit; this does:", f"  {self.instead.change}", f"with {_needs(self.instead)}"]


def table(stages: Mapping[str, Plan]) -> str:
    """A column for each plan: its parts, total, verdict and time."""
    plans = list(stages.values())
    parts = [name for name in plans[0].asked.memory.parts if any(plan.asked.memory.parts[name] >= LEAST_BYTES for plan in plans)]
    rows = {"MiB": list(stages)}
    rows |= {name: [f"{plan.asked.memory.parts[name] / 2**20:,.0f}" for plan in plans] for name in parts}
    rows["total"] = [f"{plan.asked.memory.total_bytes / 2**20:,.0f}" for plan in plans]
    rows["a device has"] = [f"{plan.capacity_bytes / 2**20:,.0f}" for plan in plans]
    rows["fits"] = ["yes" if plan.fits else "no" for plan in plans]
    rows["a step"] = [spoken(plan.asked.seconds.step) for plan in plans]
    rows["all epochs"] = [spoken(plan.asked.seconds.step * plan.steps_an_epoch * plan.epochs) for plan in plans]
    return "\n".join("".join([f"{name:<20}", *(f"{cell:>14}" for cell in cells)]) for name, cells in rows.items())


def spoken(seconds: float) -> str:
    """In units that a person thinks in."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _told(forecast: Forecast) -> str:
    return f"{forecast.change}: {_needs(forecast)}"


def _needs(forecast: Forecast) -> str:
    return f"{forecast.memory.total_bytes / 2**20:,.0f} MiB and {spoken(forecast.seconds.step)} a step"
