"""What the tests of the index share: vectors, and an exhaustive search by NumPy's sort."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medrag.index import Index
from medrag.index.vectors import Vectors

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def draw(rows: int, width: int = 16, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def clustered(rows: int, seed: int = 0, width: int = 32) -> Floats:
    """Two hundred Gaussians: what approximate search is for."""
    centres = draw(200, width, seed=99)
    rng = np.random.default_rng(seed)
    x_ND = centres[rng.integers(200, size=rows)] + 0.4 * rng.standard_normal((rows, width))
    return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), np.float32)


def shards(x_ND: Floats, pieces: int = 3) -> Vectors:
    return Vectors([np.ascontiguousarray(piece) for piece in np.array_split(x_ND, pieces)])


def index(x_ND: Floats) -> Index:
    made = Index(x_ND.shape[1])
    made.add(x_ND)
    return made


def oracle(x_ND: Floats, q_BD: Floats, k: int, skip: list[int] | Rows = ()) -> tuple[Floats, Rows]:  # type: ignore[assignment]
    """Every product by the routine that decides ties, one pair at a time, and a stable sort."""
    score_BN = np.array([[np.vecdot(q_D, x_D) for x_D in x_ND] for q_D in q_BD], np.float32).reshape(len(q_BD), len(x_ND))
    left = np.setdiff1d(np.arange(len(x_ND)), skip)
    order_BK = left[np.argsort(-score_BN[:, left], axis=1, kind="stable")[:, :k]]
    return np.take_along_axis(score_BN, order_BK, 1), order_BK


def same(found: tuple[Floats, Rows], want: tuple[Floats, Rows]) -> None:
    np.testing.assert_array_equal(found[1], want[1])
    np.testing.assert_array_equal(found[0], want[0])
