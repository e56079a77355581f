"""A long job cut into steps, each of which is done once: a killed job goes on with the steps that are finished and whole.

A step fills a folder of its own. Its files are synchronised to disk, their hashes put down beside them, and the folder is renamed: what has its
final name is whole, unless the disk itself failed, which the hashes show. The job's folder is named by the key of what it makes, so that other
settings never find it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from medrag import files

_HASHES = "step.json"
_PART = ".part"


class Steps:
    """The folder ``HOME/.work-KEY`` while a process holds it; it is removed where the job ends, or is refused with ValueError."""

    def __init__(self, home: Path, key: str) -> None:
        self.folder = home / f".work-{key[:12]}"
        self._done: dict[str, Path] = {}

    def __enter__(self) -> Self:
        """Raises ValueError where another process works there."""
        files.name_other_work(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ValueError(f"{self.folder}: another process is at work there") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or issubclass(kind, ValueError):
            shutil.rmtree(self.folder)
        os.close(self._lock)

    def step(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder of a step, filled by ``make`` unless it is there and whole."""
        target = self.folder / name
        if name not in self._done and not _whole(target):
            part = self.folder / _PART
            for stale in (part, target):
                shutil.rmtree(stale, ignore_errors=True)
            part.mkdir()
            make(part)
            files.write_json(part / _HASHES, {name: files.sha256(part / name) for name in _names(part)})
            files.sync_tree(part)
            os.rename(part, target)
            files.sync(self.folder)
        self._done[name] = target
        return target

    def link(self, folder: Path, within: str = "") -> None:
        """Hard-link into ``folder`` the files of all steps done, or those whose names begin with ``within``, but none that is hidden."""
        for target in self._done.values():
            files.link_tree(target, folder, (name for name in _names(target) if name.startswith(within) and not name.startswith(".")))


def _names(folder: Path) -> Iterable[str]:
    return sorted(name for path in folder.rglob("*") if path.is_file() and (name := str(path.relative_to(folder))) != _HASHES)


def _whole(folder: Path) -> bool:
    """Whether a step is finished; one whose files changed since then is named on stderr."""
    if not folder.is_dir():
        return False
    try:
        stated = json.loads((folder / _HASHES).read_text("utf-8"))
        whole = bool(stated == {name: files.sha256(folder / name) for name in _names(folder)})
    except (OSError, ValueError):
        whole = False
    if not whole:
        print(f"{folder} is damaged and is made again", file=sys.stderr)
    return whole
