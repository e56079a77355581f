"""Checkpoints of a training run: whole or not there, checked by their hashes, the newest two kept."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from medrag import files


@dataclass
class State:
    """Where a run stands; ``peak_memory_gib`` is the first rank's, of the card on a GPU, else of the process."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    bad_validations: int = 0
    stopped: bool = False
    peak_memory_gib: float = 0.0


def save(engine: Any, folder: Path, state: State, settings: dict[str, Any]) -> None:
    """All ranks write into a staging folder; rank 0 adds hashes and renames it; the last two checkpoints are kept."""
    home = folder / "checkpoints"
    staging = home / ".staging"
    if dist.get_rank() == 0:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(staging), tag="state", client_state={"state": asdict(state)}, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        names = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
        hashes = {name: files.sha256(staging / name) for name in names}
        files.write_json(staging / files.MANIFEST, {"files": hashes, "settings": settings, "state": asdict(state)})
        final = home / f"step-{state.step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(staging, final)
        for old in _steps(folder)[:-2]:
            shutil.rmtree(old)
    dist.barrier()


def resume(engine: Any, folder: Path, settings: dict[str, Any]) -> State:
    """Load the newest whole checkpoint. Raises ValueError where it was written on other hardware settings."""
    for path in reversed(_steps(folder)):
        try:
            manifest = json.loads((path / files.MANIFEST).read_text("utf-8"))
            whole = all(files.sha256(path / name) == digest for name, digest in manifest["files"].items())
        except (OSError, ValueError):
            whole = False
        if not whole:
            continue
        if manifest["settings"] != settings:
            raise ValueError(
                f"{path} was written with {manifest['settings']}, this run has {settings}; use the same, or remove {folder} to start anew"
            )
        engine.load_checkpoint(str(path), tag="state")
        if dist.get_rank() == 0:
            print(f"going on from {path}", file=sys.stderr)
        return State(**manifest["state"])
    return State()


def oldest_step(folder: Path) -> int:
    """The earliest step that a resumed run could go back to."""
    kept = _steps(folder)
    return int(kept[0].name.removeprefix("step-")) if len(kept) > 1 else 0


def _steps(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))
