"""Predicted memory of every card preset with every task of the reference's size; the largest micro batches that fit.

    python tests/benchmarks/presets.py [PRESET...] [key=value...] [--largest] [--lines FILE.jsonl]

A table of what a device is predicted to hold at most. ``--largest`` looks for the most that a card could hold at once in a step of two micro batches,
whatever the task's own global batch: ``hardware.micro_batch``, or ``hardware.micro_tokens`` for dense, which contrasts its whole batch. Powers of
two (and one and a half times those) on one device, without activation checkpointing where anything fits, within 90% of the card, or within 6 GiB of
one of 11 GB. Nothing is loaded and no GPU is used. Memory depends on the precision and on what is held at once, not on the card, so that each
is predicted once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from medrag import config
from medrag.assemble.rehearsal import rehearse
from medrag.config import Run
from medrag.schedule import shares

TASKS = ("dense", "dense_large", "closed_book", "rag_sequence", "rag_token", "fid", "mlm", "span_corruption")
SHARE = 0.9
"""of a card's memory that may be taken"""
SMALL_CARD_GIB, SMALL_LIMIT_GIB = 11.0, 6.0
EXAMPLES = [1 << doubled for doubled in range(9)]
TOKENS = sorted(number << doubled for number in (4096, 6144) for doubled in range(9))


@dataclass
class Predictions:
    """Each rehearsal once."""

    known: dict[str, float] = field(default_factory=dict)

    def gib(self, run: Run) -> float:
        """What a device holds at most."""
        card, cut = run.hardware, shares(run.task, run.hardware, run.task.method == "dense")
        key = f"{run.task.method} {run.task.global_batch} in {cut.micro} x {cut.accumulation}, {cut.room.tokens} tokens, {card.precision}, "
        key += f"{card.devices} devices, ZeRO {card.zero_stage}, offload {card.offload}, checkpointing {card.checkpointing}"
        if key not in self.known:
            self.known[key] = rehearse(run).memory.total_bytes / 2**30
            print(f"{key}: {self.known[key]:.2f} GiB", file=sys.stderr)
        return self.known[key]


@dataclass(frozen=True)
class Row:
    """One preset with one task."""

    preset: str
    task: str
    devices: int
    micro: int
    """examples in a forward pass"""
    accumulation: int
    tokens: int
    """held at once of a method that contrasts the whole batch"""
    checkpointing: bool
    gib: float
    card_gib: float


def sizes(run: Run) -> Iterator[Run]:
    """The run with a device holding more and more at once, half of each global batch."""
    dense = run.task.method == "dense"
    options = run.task.options
    tokens_each = options.retriever.question_tokens + (1 + options.negatives) * options.retriever.passage_tokens if dense else 1
    for size in TOKENS if dense else EXAMPLES:
        batch = max(2, 2 * size // tokens_each)
        card = replace(run.hardware, devices=1, micro_batch={run.task.method: batch if dense else size}, micro_tokens=size if dense else 0)
        yield replace(run, hardware=card, task=replace(run.task, global_batch=batch))


def largest(run: Run, limit_gib: float, predictions: Predictions) -> Run | None:
    """By bisection; None where not even the smallest fits."""
    for checkpointing in (False, True):
        growing = list(sizes(replace(run, hardware=replace(run.hardware, checkpointing=checkpointing))))
        low, high = 0, len(growing)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if predictions.gib(growing[middle]) <= limit_gib else (low, middle)
        if low:
            return growing[low - 1]
    return None


def rows(presets: list[str], overrides: list[str], search: bool) -> Iterator[Row]:
    """Row by row, as each is predicted."""
    predictions = Predictions()
    for preset, task in product(presets, TASKS):
        if search and task == "dense_large":
            continue
        found = run = config.compose(["model=reference", f"hardware={preset}", f"task={task}", *overrides])
        card_gib = run.hardware.memory_gib
        if search:
            limit_gib = SMALL_LIMIT_GIB if card_gib <= SMALL_CARD_GIB else SHARE * card_gib
            fitting = largest(run, limit_gib, predictions)
            if fitting is None:
                print(f"{preset} {task}: nothing fits into {limit_gib:.1f} GiB", file=sys.stderr)
                continue
            found = fitting
        whole = run.task.method == "dense"
        cut = shares(found.task, found.hardware, whole)
        tokens = found.hardware.micro_tokens if whole else 0
        gib = round(predictions.gib(found), 2)
        yield Row(preset, task, found.hardware.devices, cut.micro, cut.accumulation, tokens, found.hardware.checkpointing, gib, card_gib)


def main() -> None:
    words = argparse.ArgumentParser(description="predicted memory of every card preset")
    words.add_argument("presets", nargs="*", metavar="PRESET or key=value")
    words.add_argument("--largest", action="store_true", help="look for the most that could be held at once")
    words.add_argument("--lines", type=Path, help="write the rows as JSON lines, too")
    chosen = words.parse_args()
    overrides = [word for word in chosen.presets if "=" in word]
    presets = [word for word in chosen.presets if "=" not in word] or [name for name in config.presets("hardware") if name != "cpu"]
    found = []
    print(f"{'preset':<10}{'task':<17}{'devices':>8}{'micro batch':>13}{'x':>4}{'tokens':>9}{'checkpointing':>15}{'GiB':>8}{'of':>7}")
    for row in rows(presets, overrides, chosen.largest):
        at_once = f"{row.micro:>13}{row.accumulation:>4}{row.tokens or '':>9}{'yes' if row.checkpointing else '':>15}"
        print(f"{row.preset:<10}{row.task:<17}{row.devices:>8}{at_once}{row.gib:>8.2f}{row.card_gib:>7.1f}", flush=True)
        found.append(row)
    if chosen.lines:
        chosen.lines.write_text("".join(json.dumps(vars(row)) + "\n" for row in found), "utf-8")


if __name__ == "__main__":
    main()
