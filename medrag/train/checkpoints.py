"""Checkpoints of a training run: whole or not there, checked by their hashes, the newest two kept.

A checkpoint is a folder ``step-XXXXXXXX`` of tensors in safetensors and a manifest. It does not depend on how many devices wrote it, on the stage
of ZeRO or on the precision, so a run may go on with others.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from medrag import files, weights

TENSORS = "state.safetensors"


@dataclass
class State:
    """Where a run stands; ``peak_memory_gib`` is the first rank's, of the card on a GPU, else of the process."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    bad_validations: int = 0
    stopped: bool = False
    peak_memory_gib: float = 0.0
    recent: list[float] = field(default_factory=list)
    """losses of the last steps, nats, from which ``guard`` knows what is usual"""
    skipped: int = 0
    """steps skipped since the last good one"""


def save(folder: Path, state: State, tensors: Mapping[str, Tensor]) -> Path:
    """Write ``checkpoints/step-XXXXXXXX`` into a run's folder and drop all but the newest two; the first rank alone calls this."""
    home = folder / "checkpoints"
    staging = home / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    weights.write(tensors, staging / TENSORS)
    files.write_json(staging / files.MANIFEST, {"files": {TENSORS: files.sha256(staging / TENSORS)}, "state": asdict(state)})
    final = home / f"step-{state.step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(staging, final)
    for old in _steps(folder)[:-2]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> tuple[Path, State, dict[str, Tensor]] | None:
    """The newest whole checkpoint of a run, or None where there is none."""
    for path in reversed(_steps(folder)):
        try:
            manifest = json.loads((path / files.MANIFEST).read_text("utf-8"))
            if files.sha256(path / TENSORS) == manifest["files"][TENSORS]:
                return path, State(**manifest["state"]), weights.read(path / TENSORS)
        except (OSError, ValueError):
            continue
    return None


def oldest_step(folder: Path) -> int:
    """The earliest step that a resumed run could go back to."""
    kept = _steps(folder)
    return int(kept[0].name.removeprefix("step-")) if len(kept) > 1 else 0


def _steps(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))
