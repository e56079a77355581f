"""The command as a user runs it, and models small enough for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHAPES: dict[str, dict[str, str | int | float]] = {
    "encoder": {
        "vocabulary_unit": "characters",
        "vocabulary_tokens": 800,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "feed_forward": 32,
        "embedding": 16,
        "dropout": 0.0,
        "pooling": "mean",
        "bag": 0,
    },
    "generator": {"vocabulary_tokens": 3000, "width": 16, "heads": 2, "head_width": 8, "layers": 1, "feed_forward": 32},
}
TINY = [f"model.{part}.{name}={value}" for part, shape in SHAPES.items() for name, value in shape.items()]
DENSE = ["task=dense", "task.options.retriever.question_tokens=16", "task.options.retriever.passage_tokens=24", "task.learning_rate=1e-3"]


def medrag(*arguments: str, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, with its own processes."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "medrag", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=timeout, check=False)


def losses(store: Path, key: str = "loss") -> dict[int, float]:
    """Logged values by step of the only dense run in a store."""
    (log,) = store.glob("runs/dense-*/log.jsonl")
    return {row["step"]: row[key] for row in map(json.loads, log.read_text("utf-8").splitlines()) if key in row}


def copy_of(store: Path, target: Path) -> Path:
    """A store with the corpus only."""
    subprocess.run(["cp", "-r", str(store), str(target)], check=True)
    for path in target.iterdir():
        if path.name != "corpus":
            subprocess.run(["rm", "-r", str(path)], check=True)
    return target
