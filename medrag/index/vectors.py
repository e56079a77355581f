"""Vectors of passages, in shards: rows are numbered over the shards in order.

Shapes: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Vectors:
    """float32 rows, in memory or in memory-mapped files that are read when their rows are asked for."""

    def __init__(self, shards: Sequence[Floats]) -> None:
        """``shards``: at least one array (N, D), possibly of no rows. Raises ValueError on other shapes, widths or types."""
        if not shards:
            raise ValueError("vectors need at least one shard, possibly of no rows: nothing else tells their width")
        self._shards: list[Floats] = []
        self._appended: list[Floats] = []
        self._width = int(shards[0].shape[-1]) if shards[0].ndim else 0
        for shard in shards:
            self._check(shard)
            self._shards.append(shard)
        self._count = sum(len(shard) for shard in self._shards)

    @classmethod
    def load(cls, folder: Path) -> Vectors:
        """Memory-map ``folder/00000.npy``, ``00001.npy``, ... Raises ValueError, naming the file, where one is missing, damaged or of other type."""
        paths = sorted(path for path in folder.glob("*.npy") if path.stem.isdigit())
        if not paths:
            raise ValueError(f"{folder}: no shard of vectors (00000.npy) was found")
        shards: list[Floats] = []
        for number, path in enumerate(paths):
            if path.name != f"{number:05d}.npy":
                raise ValueError(f"{folder}: {number:05d}.npy is missing")
            try:
                shard: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
                cls([*shards[:1], shard])
            except (ValueError, EOFError) as error:
                raise ValueError(f"{path}: {error}") from error
            shards.append(shard)
        return cls(shards)

    def __len__(self) -> int:
        return self._count

    @property
    def width(self) -> int:
        return self._width

    @property
    def shards(self) -> Sequence[Floats]:
        """The shards in order; rows appended since the last look are joined to one first, so that many small appends stay cheap."""
        if self._appended:
            self._shards.append(np.concatenate(self._appended) if len(self._appended) > 1 else self._appended[0])
            self._appended = []
        return self._shards

    def append(self, x_ND: Floats) -> None:
        """A shard in memory at the end. Raises ValueError on another width or type."""
        self._check(x_ND)
        if len(x_ND):
            self._appended.append(x_ND.copy() if x_ND.flags.writeable else x_ND)
            self._count += len(x_ND)

    def take(self, rows: Sequence[int] | Rows) -> Floats:
        """The vectors (N, D) of these rows, in the order asked for, repeats allowed. Raises IndexError on a row that does not exist."""
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self._count):
            raise IndexError(f"rows 0 to {self._count - 1} exist, not {wanted.min()} to {wanted.max()}")
        shards = self.shards
        if len(shards) == 1:
            return np.asarray(shards[0][wanted])
        ends = np.cumsum([len(shard) for shard in shards])
        found = np.empty((len(wanted), self._width), np.float32)
        order = np.argsort(wanted, kind="stable")
        bounds = np.searchsorted(wanted[order], ends)
        for number in np.flatnonzero(np.diff(bounds, prepend=0)).tolist():
            places = order[bounds[number - 1] if number else 0 : bounds[number]]
            found[places] = shards[number][wanted[places] - (ends[number] - len(shards[number]))]
        return found

    def blocks(self, rows_at_once: int, start: int = 0) -> Iterator[tuple[int, Floats]]:
        """``(start_row, x_ND)`` of at most so many consecutive rows, from row ``start`` on; no block crosses a shard, so nothing is copied."""
        first = 0
        for shard in list(self.shards):
            for offset in range(max(0, start - first), len(shard), rows_at_once):
                yield first + offset, shard[offset : offset + rows_at_once]
            first += len(shard)

    def _check(self, x_ND: Floats) -> None:
        if x_ND.ndim != 2 or x_ND.shape[1] != self._width:
            raise ValueError(f"vectors of width {self._width} are held here, not of shape {x_ND.shape}")
        if x_ND.dtype != np.float32:
            raise ValueError(f"vectors are float32, not {x_ND.dtype}")


def check_finite(x_ND: Floats) -> None:
    """Raise ValueError where a component is NaN or infinite."""
    if not np.isfinite(x_ND).all():
        raise ValueError("a vector with NaN or infinite components was refused")
