"""Kills ``build`` and ``add`` at random points, each run in a process forked from this one, and runs them again to the end.

    PYTHONPATH=tests python tests/indexing/index_kill.py FOLDER TRIALS

A point is a moment, or lies just before or after a call that changes the disk (link, rename, unlink, fsync and the like). Prints JSON: for
each trial whether the run was killed, the steps it had finished, what of the artifact differs from that of an undisturbed run, and what is
left beside it.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import conftest
import indexes
import numpy as np
import torch

from medrag import files
from medrag.files import Artifact
from medrag.text import Segmenter
from medrag.types import Example, Passage
from medrag.vocabulary import Sentencepiece, Wordpiece

CALLS = ((os, "rename"), (os, "replace"), (os, "link"), (os, "unlink"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"), (np, "save"), (json, "dumps"))
SEARCH: dict[str, Any] = {"kind": "IVF2,SQ8", "shard_passages": 25}


Run: TypeAlias = Callable[[Path], Artifact]


@dataclass(frozen=True)
class Point:
    """Where a run is killed: after some seconds, or at a call of this number."""

    call: int = 0
    after: bool = False
    seconds: float = 0.0


def world() -> conftest.Tiny:
    pairs = conftest.QUESTIONS_AND_ANSWERS
    passages = [Passage(f"p{number}", answer, "test") for number, (_, answer) in enumerate(pairs)]
    examples = [Example(f"e{number}", question, (answer,), (f"p{number}",)) for number, (question, answer) in enumerate(pairs)]
    texts = [text for pair in pairs for text in pair]
    segmenter = Segmenter()
    segmenter.words("头疼")
    return conftest.Tiny(passages, examples, Wordpiece.build(texts * 2, 400), Sentencepiece.build(texts, 640), segmenter)


def forked(run: Run, store: Path, point: Point | None = None, counted: Path | None = None) -> bool:
    """Run in a child, killed at the point; whether it was killed before it ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if counted is not None or (point is not None and point.call):
                hook(point or Point(), counted)
            run(store)
            status = 0
        except BaseException as error:
            print(f"{error!r} at {point}", file=sys.stderr, flush=True)
        os._exit(status)
    if point is not None and point.seconds:
        time.sleep(point.seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return os.WIFSIGNALED(status)


def hook(point: Point, counted: Path | None) -> None:
    """Kill this process at the call of this number, or only count the calls into a file."""
    calls = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls
            if counted is not None:
                with open(counted, "w", encoding="ascii") as stream:
                    stream.write(str(calls))
            if mine == point.call and not point.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return function(*arguments, **named)
            finally:
                if mine == point.call:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for module, name in CALLS:
        setattr(module, name, counting(getattr(module, name)))


def trials(folder: Path, start: Path, run: Run, count: int, seed: int) -> list[dict[str, object]]:
    """``run`` in copies of the store ``start``: undisturbed, then killed and run again."""
    draw = random.Random(seed)
    whole, calls = folder / "whole", folder / "calls"
    shutil.copytree(start, whole)
    began = time.monotonic()
    forked(run, whole)
    seconds = time.monotonic() - began
    wanted = files.current(whole, "index")
    undisturbed = indexes.contents(wanted)
    shutil.copytree(start, folder / "counted")
    forked(run, folder / "counted", counted=calls)
    total = int(calls.read_text("ascii"))
    told = []
    for trial in range(count):
        store = folder / f"{trial}"
        point = Point(seconds=draw.uniform(0.02, 0.9) * seconds) if trial % 3 == 0 else Point(draw.randint(1, total), draw.random() < 0.5)
        shutil.copytree(start, store)
        while not (killed := forked(run, store, point)) and point.seconds > 1e-3:
            shutil.rmtree(store)
            shutil.copytree(start, store)
            point = replace(point, seconds=point.seconds / 2)
        steps = sorted(path.parent.name for path in store.glob("index/.work-*/*/step.json") if path.parent.name != ".part")
        forked(run, store)
        made = files.current(store, "index")
        found = indexes.contents(made)
        differs = sorted(name for name in undisturbed.keys() | found.keys() if undisturbed.get(name) != found.get(name))
        if made.hash != wanted.hash:
            differs.append(files.MANIFEST)
        left = [path.name for path in store.glob("index/.work-*")]
        told.append({**asdict(point), "of": total, "killed": killed, "steps": steps, "differs": differs, "left": left})
        shutil.rmtree(store)
    return told


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    setattr(os, "fsync", lambda descriptor: None)  # noqa: B010 (what a killed process wrote is not lost; only a power cut would tell)
    tiny = world()
    start = folder / "start"
    indexes.publish(start, tiny, indexes.many(tiny, 90))
    new = indexes.write(folder / "new.jsonl", [Passage(f"new{number}", f"新的一条，第{number}次复查要空腹。", "leaflets") for number in range(45)])
    (folder / "build").mkdir()
    built = trials(folder / "build", start, lambda store: indexes.build(store, tiny, questions=True, **SEARCH), count, seed=1)
    base = folder / "base"
    shutil.copytree(start, base)
    forked(lambda store: indexes.build(store, tiny, questions=True, **SEARCH), base)
    (folder / "add").mkdir()
    added = trials(folder / "add", base, lambda store: indexes.add(files.current(store, "index"), tiny, new), count, seed=2)
    print(json.dumps({"build": built, "add": added}))


if __name__ == "__main__":
    main()
