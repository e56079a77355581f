"""Checkpoints of a training run: whole or not there, checked by their hashes, the newest two whole ones kept.

A checkpoint is a folder ``step-XXXXXXXX``, sealed as artifacts are: tensors in safetensors, and a manifest. It does not depend on how many devices
wrote it, on the stage of ZeRO or on the precision, so a run may go on with others. It is written beside the others, synchronised to disk, then
renamed, and only then older ones go: a kill or a power cut at any moment leaves one that can be gone on from, once there was one.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from medrag import files, weights

TENSORS = "state.safetensors"
BEST = "best.safetensors"
_HOME = "checkpoints"
_STAGING = ".staging"
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
_INFINITE = ("inf", "-inf", "nan")


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
    """losses of the last steps that were taken, nats, from which ``guard`` knows what is usual"""
    skipped: int = 0
    """steps of the whole run that were not taken, since their loss was bad"""
    skipped_in_a_row: int = 0
    """those of them since the last good one"""


def save(folder: Path, state: State, tensors: Mapping[str, Tensor]) -> Path:
    """Write the checkpoint of a step into a run's folder, and drop all but it and the newest whole one before it; the first rank alone calls this.

    Where one of the same step stands already, the new one has a number behind its name until that one is gone.
    Raises OSError with one line that says what is missing, what is still there and what to do, where it cannot be written.
    """
    home = folder / _HOME
    folder.mkdir(parents=True, exist_ok=True)
    with _staging(f"the checkpoint of step {state.step}", home, folder, tensors) as staging:
        weights.write(tensors, staging / TENSORS)
        files.seal(staging, "checkpoint", key=folder.name, config=_to_json(asdict(state)))
        there = [attempt for step, attempt, _ in _found(folder) if step == state.step]
        final = home / (f"step-{state.step:08d}" + (f".{max(there) + 1}" if there else ""))
        os.rename(staging, final)
    before = [path for step, _, path in reversed(_found(folder)) if step < state.step]
    earlier = next((path for path in before if _is_whole(path)), None)
    for _, _, path in _found(folder):
        # what comes after this step was damaged, or the run would have gone on from there; what cannot go yet (open files on NFS) goes next time
        if path not in (final, earlier):
            shutil.rmtree(path, ignore_errors=True)
    return final


def save_best(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace the best weights of a run, ``folder / BEST``, atomically. Raises OSError as ``save`` does."""
    with _staging(f"{BEST}, the best weights so far,", folder, folder, tensors) as staging:
        weights.write(tensors, staging / BEST)
        files.sync(staging / BEST)
        os.replace(staging / BEST, folder / BEST)


def newest(folder: Path, shown: bool = True) -> tuple[Path, State, dict[str, Tensor]] | None:
    """The newest whole checkpoint of a run, or None where there is none; damaged ones are named on stderr (``shown``) and passed over.

    Raises ValueError that names the folder to remove, where a whole one has a state that is not ours.
    """
    for _, _, path in reversed(_found(folder)):
        try:
            sealed = files.open_artifact(path)
            tensors = weights.read(path / TENSORS)
        except (OSError, ValueError) as error:
            if shown:
                print(f"passed over a checkpoint that is damaged, or of another version of medrag: {error}", file=sys.stderr)
            continue
        stated = sealed.manifest["config"]
        if unknown := sorted(stated.keys() - State.__dataclass_fields__.keys()):
            raise ValueError(_foreign(path, f"its state has {', '.join(unknown)}"))
        return path, State(**_from_json(stated)), tensors
    return None


def check(path: Path, tensors: Mapping[str, Tensor], trained: Mapping[str, bool]) -> None:
    """Raise ValueError that names the folder to remove, where a checkpoint's tensors are not what ``Engine.state`` gives of these parameters.

    ``trained`` tells for each parameter's name whether it is.
    """
    held = {name for name in tensors if name.startswith(("weight.", "frozen."))}
    wanted = {f"{'weight' if learns else 'frozen'}.{name}" for name, learns in trained.items()}
    if held != wanted:
        raise ValueError(_foreign(path, f"missing: {sorted(wanted - held)[:3]}; of no use: {sorted(held - wanted)[:3]}"))
    moments = {name for name in tensors if "." in name} - held
    adams = {f"{kind}.{name}" for kind in ("first", "second") for name, learns in trained.items() if learns}
    if moments and moments != adams:
        raise ValueError(_foreign(path, f"its optimizer is not AdamW: {sorted(moments ^ adams)[:3]}"))


def oldest_step(folder: Path) -> int:
    """The earliest step that a resumed run could go back to."""
    kept = sorted({step for step, _, _ in _found(folder)})
    return kept[0] if len(kept) > 1 else 0


@contextmanager
def writing(what: str, home: Path, folder: Path, needed_bytes: int) -> Iterator[None]:
    """Within, ``what`` is written to ``home``, on the disk of ``folder``, where so much room is asked for beforehand.

    Raises OSError with one line that says how much room is missing, which checkpoint of the run in ``folder`` is whole and what to do, where it
    cannot be written.
    """
    try:
        if needed_bytes > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        step = next((step for step, _, path in reversed(_found(folder)) if _is_whole(path)), None)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OSError(
            f"{what} could not be written to {home} ({error.strerror or error}): it needs {needed_bytes / 2**20:.1f} MiB, "
            f"and {shutil.disk_usage(folder).free / 2**20:.1f} MiB are free there; "
            f"{'there is no checkpoint yet' if step is None else f'the checkpoint of step {step} is intact'}; "
            f"{'free disk space' if full else 'mend that'}, then run the same command again to go on"
        ) from error


@contextmanager
def _staging(what: str, home: Path, folder: Path, tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """An empty folder in ``home`` to write ``tensors`` to, gone afterwards: what is meant to stay is renamed. Raises OSError as ``writing`` does."""
    staging = home / _STAGING
    for left in (folder / _STAGING, folder / _HOME / _STAGING):
        shutil.rmtree(left, ignore_errors=True)
    with writing(what, home, folder, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())):
        try:
            staging.mkdir(parents=True)
            yield staging
            files.sync(home)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _foreign(path: Path, why: str) -> str:
    return f"{path} was written by another version of medrag ({why}), so the run cannot go on from it; remove {path.parent.parent} to begin anew"


def _is_whole(path: Path) -> bool:
    try:
        files.open_artifact(path)
    except (OSError, ValueError):
        return False
    return True


def _found(folder: Path) -> list[tuple[int, int, Path]]:
    """Step, attempt and folder of each checkpoint that there may be, the newest last."""
    named = [(_NAME.fullmatch(path.name), path) for path in (folder / _HOME).glob("step-*")]
    return sorted((int(match[1]), int(match[2] or 1), path) for match, path in named if match)


def _to_json(value: Any) -> Any:
    """JSON has no infinities: they are words in it."""
    if isinstance(value, dict):
        return {name: _to_json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_to_json(one) for one in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _from_json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_from_json(one) for one in value]
    return float(value) if value in _INFINITE else value
