"""What the tests of ``prepare`` share: rows written, corpora made of them, and the command as a user types it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medrag import files, prepare, workers
from medrag.files import Artifact
from medrag.prepare import Config, Corpus
from medrag.sources import Source, recognise

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
WORDS = str(ROOT / "corpora" / "medical_words.txt")
ALONE = workers.Config(processes=1)
HAN = "".join(chr(0x4E00 + place) for place in random.Random(5).sample(range(3000), 800))
Row = dict[str, object]


def config(**changes: Any) -> Config:
    """Everything stands in train, and nothing is mined, unless it is said."""
    return replace(Config(dictionary="", negatives=0, dev_share=0.0, test_share=0.0), **changes)


def source(path: Path, rows: Sequence[Row]) -> Source:
    """A file of rows, each told by its keys."""
    files.write_jsonl(path, rows)
    return recognise(f"jsonl:{path}")


def made(folder: Path, rows: Sequence[Row], **changes: Any) -> Artifact:
    """The artifact of one file of rows."""
    return prepare.prepare([source(folder / "rows.jsonl", rows)], config(**changes), folder / "store", False, ALONE)


def corpus(folder: Path, rows: Sequence[Row], **changes: Any) -> Corpus:
    return prepare.read(made(folder, rows, **changes))


def corpus_of(folder: Path, sources: Sequence[Source], **changes: Any) -> Corpus:
    return prepare.read(prepare.prepare(sources, config(**changes), folder / "store", False, ALONE))


def record(question: str, answer: str, **more: object) -> Row:
    return {"question": question, "answer": answer, **more}


def many(count: int, seed: int = 0) -> list[Row]:
    """Records that have next to nothing in common."""
    draw = random.Random(seed)
    return [record(sentence(draw, draw.randint(8, 20)) + "？", sentence(draw, draw.randint(20, 40)) + "。") for _ in range(count)]


def sentence(draw: random.Random, characters: int) -> str:
    return "".join(draw.choices(HAN, k=characters))


def statistics(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "statistics.json").read_text("utf-8"))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact, byte for byte. The manifest's file holds versions only beside what is hashed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def command(*words: str, seed: int = 0) -> tuple[list[str], dict[str, str]]:
    """``medrag prepare`` with small settings, and an environment for it in which hashes are seeded."""
    small = ["prepare.dictionary=''", "prepare.negatives=2", "prepare.dev_share=0.1", "prepare.test_share=0.1"]
    return [sys.executable, "-m", "medrag", "prepare", *small, *words], {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}


def run(*words: str, seed: int = 0, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    line, environment = command(*words, seed=seed)
    return subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def published(store: Path) -> Path:
    """The only corpus of a store."""
    (path,) = store.glob("corpus/v*")
    return path
