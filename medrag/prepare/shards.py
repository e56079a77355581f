"""The folder that one run of ``prepare`` works in: shards of rows as JSON lines, arrays beside them, and what is done already.

Every stage makes the files of one name from those of the stage before, and last of all ``NAME.json`` with its counts: where that stands, a
run begun again goes past it. The folder is named by the key of the artifact, so that other settings never find it.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from medrag import files
from medrag.prepare.settings import Config
from medrag.sources import Source
from medrag.types import Example
from medrag.workers import Task, Workers

SHARD_ROWS = 5000
BASE, STARTS = "base.npy", "starts.npy"
"""where each shard's rows begin among all rows, and each row in the file of its shard"""
SAMPLES = 5
"""rows shown for each rule in the report"""

Counts = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A folder and all that its stages must know."""

    folder: Path
    config: Config
    sources: tuple[Source, ...]

    def path(self, stage: str, name: str) -> Path:
        return self.folder / stage / name

    def begin(self) -> None:
        for stage in ("read", "clean", "sign", "near", "write", "index", "mine"):
            (self.folder / stage).mkdir(parents=True, exist_ok=True)

    def done(self, stage: str, name: str) -> bool:
        return self.path(stage, f"{name}.json").exists()

    def finish(self, stage: str, name: str, counts: Counts) -> None:
        """Say that a task is done; its other files must be closed."""
        files.write_json(self.path(stage, f"{name}.json"), counts)

    def counts(self, stage: str, name: str) -> Counts:
        counts: Counts = json.loads(self.path(stage, f"{name}.json").read_text("utf-8"))
        return counts

    def run(self, workers: Workers, stage: str, task: Any, names: Sequence[str], unit: str, progress: bool) -> None:
        """Do the tasks of a stage that are not done: ``task(work, name)`` each."""
        left = [name for name in names if not self.done(stage, name)]
        function: Task = partial(task, self)
        bar = tqdm(total=len(names), initial=len(names) - len(left), desc=stage, unit=unit, disable=not progress, file=sys.stderr)
        over = threading.Event()

        def watch() -> None:
            """One large source is one task: say how far it has come."""
            while not over.wait(2):
                bar.set_postfix_str(f"{sum(1 for _ in (self.folder / stage).glob('*.jsonl')) * SHARD_ROWS:,} rows")

        if progress and stage == "read":
            threading.Thread(target=watch, daemon=True).start()
        with bar:
            try:
                for _ in workers.run(function, left):
                    bar.update()
            finally:
                over.set()

    def names(self) -> list[str]:
        """The names of all shards, in the order of the sources and their rows."""
        return [f"{number:03d}-{shard:05d}" for number in range(len(self.sources)) for shard in range(self.counts("read", f"{number:03d}")["shards"])]

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> list[int]:
    """Write JSON lines and return the byte where each begins."""
    starts, position = [], 0
    with open(path, "wb") as stream:
        for row in rows:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
            starts.append(position)
            position += len(line)
            stream.write(line)
    return starts


def save_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Uncompressed, without pickle."""
    with open(path, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def added(all_counts: Iterable[Counts]) -> Counter[str]:
    """The sum of flat counts."""
    total: Counter[str] = Counter()
    for counts in all_counts:
        total.update(counts)
    return total


class Shards:
    """Any signed row by its number."""

    def __init__(self, work: Work) -> None:
        self.work, self.names = work, work.names()
        self.base: npt.NDArray[np.int64] = np.load(work.folder / BASE)
        """(shards + 1,) the first row of each shard, and the number of rows"""
        self.start: npt.NDArray[np.int64] = np.load(work.folder / STARTS, mmap_mode="r").view(np.ndarray)
        """(N,) the byte of its shard where each row begins"""

    def __getitem__(self, number: int) -> dict[str, Any]:
        shard = int(np.searchsorted(self.base, number, "right")) - 1
        with open(self.work.path("sign", f"{self.names[shard]}.jsonl"), "rb") as stream:
            stream.seek(self.start[number])
            row: dict[str, Any] = json.loads(stream.readline())
        return row


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name; unlike ``asdict`` it copies nothing."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def example_of(row: dict[str, Any]) -> Example:
    """An example from its JSON row."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Example(**fields)
