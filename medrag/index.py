"""Faiss over row numbers, always by inner product. The only importer of faiss.

Shapes: N vectors, B questions, K neighbours, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Index:
    """Exact inner-product search; rows are numbered in the order they were added."""

    FILE = "vectors.faiss"

    def __init__(self, width: int) -> None:
        self._flat: faiss.Index = faiss.IndexFlatIP(width)

    def __len__(self) -> int:
        return int(self._flat.ntotal)

    @property
    def width(self) -> int:
        return int(self._flat.d)

    def add(self, x_ND: Floats) -> None:
        """Append vectors. Raises ValueError on another width or a component that is not finite."""
        if x_ND.ndim != 2 or x_ND.shape[1] != self.width:
            raise ValueError(f"the index holds vectors of width {self.width}, not of shape {x_ND.shape}")
        if not np.isfinite(x_ND).all():
            raise ValueError("a vector with NaN or infinite components was refused")
        self._flat.add(np.ascontiguousarray(x_ND, dtype=np.float32))

    def search(self, q_BD: Floats, k: int, skip: Sequence[int] = ()) -> tuple[Floats, Rows]:
        """``(score_BK, row_BK)``, best first, without the rows of ``skip``; K is less than ``k`` where the index holds fewer."""
        k = min(k, len(self) - len(skip))
        if k <= 0:
            return np.zeros((len(q_BD), 0), np.float32), np.zeros((len(q_BD), 0), np.int64)
        chosen = None
        if len(skip):
            chosen = faiss.SearchParameters(sel=faiss.IDSelectorNot(faiss.IDSelectorBatch(np.asarray(skip, dtype=np.int64))))  # type: ignore[call-arg]
        score_BK, row_BK = self._flat.search(np.ascontiguousarray(q_BD, dtype=np.float32), k, params=chosen)
        return score_BK, row_BK

    def vectors(self, rows: Sequence[int]) -> Floats:
        """The vectors (N, D) of these rows."""
        found: Floats = self._flat.reconstruct_batch(np.asarray(rows, dtype=np.int64))
        return found

    def save(self, folder: Path) -> None:
        faiss.write_index(self._flat, str(folder / self.FILE))

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read an index whose hash has been checked: Faiss itself does not notice a damaged file."""
        flat = faiss.read_index(str(folder / cls.FILE))
        if flat.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{folder / cls.FILE}: an index by inner product is needed, not one by metric {flat.metric_type}")
        index = cls(flat.d)
        index._flat = flat
        return index
