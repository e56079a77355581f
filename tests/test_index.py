"""Exact search against NumPy, hidden rows, and saved = loaded."""

from __future__ import annotations

import gc
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from medrag.index import Index

Floats = npt.NDArray[np.float32]


def _draw(rows: int, width: int = 16, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def _index(x_ND: Floats) -> Index:
    index = Index(x_ND.shape[1])
    index.add(x_ND)
    return index


def test_search_is_exact_and_by_inner_product() -> None:
    x_ND, q_BD = _draw(200), _draw(5, seed=1)
    x_ND[17] *= 50  # a long vector wins by inner product, not by distance
    score_BK, row_BK = _index(x_ND).search(q_BD, 10)
    want_BN = q_BD @ x_ND.T
    want_BK = np.argsort(-want_BN, axis=1)[:, :10]
    assert (row_BK == want_BK).all()
    np.testing.assert_allclose(score_BK, np.take_along_axis(want_BN, want_BK, 1), rtol=1e-5)
    assert any(17 in row_K for row_K in row_BK)


def test_rows_are_numbered_as_they_were_added() -> None:
    x_ND = _draw(50)
    index = Index(16)
    for start in range(0, 50, 7):
        index.add(x_ND[start : start + 7])
    assert len(index) == 50 and index.width == 16
    assert (index.vectors([49, 0, 49]) == x_ND[[49, 0, 49]]).all()
    assert (index.search(x_ND, 3)[1] == _index(x_ND).search(x_ND, 3)[1]).all()


def test_skipped_rows_do_not_come_back() -> None:
    x_ND, q_BD = _draw(60), _draw(4, seed=1)
    index = _index(x_ND)
    full = index.search(q_BD, 60)[1]
    skip = sorted({int(row) for row in full[:, :3].flatten()})
    gc.collect()
    _, row_BK = index.search(q_BD, 20, skip)
    assert row_BK.tolist() == [[row for row in row_N if row not in skip][:20] for row_N in full.tolist()]
    score_BK, row_BK = index.search(q_BD, 60, skip)
    assert row_BK.shape == score_BK.shape == (4, 60 - len(skip))
    assert (row_BK >= 0).all() and np.isfinite(score_BK).all()
    assert (index.search(q_BD, 60)[1] == full).all()


def test_more_neighbours_than_rows() -> None:
    index = _index(_draw(3))
    assert index.search(_draw(2), 10)[1].shape == (2, 3)
    assert index.search(_draw(2), 10, [0, 1, 2])[1].shape == (2, 0)
    assert Index(16).search(_draw(2), 10)[0].shape == (2, 0)
    assert index.search(_draw(0), 2)[1].shape == (0, 2)


@pytest.mark.parametrize("shape", [(2, 15), (2, 17), (16,), (1, 2, 16)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    index = Index(16)
    with pytest.raises(ValueError, match="width 16, not of shape"):
        index.add(np.zeros(shape, np.float32))
    assert len(index) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x_ND = _draw(3)
    x_ND[1, 2] = value
    index = Index(16)
    with pytest.raises(ValueError, match="NaN or infinite"):
        index.add(x_ND)
    assert len(index) == 0


def test_saved_is_loaded(tmp_path: Path) -> None:
    x_ND, q_BD = _draw(40), _draw(3, seed=1)
    index = _index(x_ND)
    index.save(tmp_path)
    again = Index.load(tmp_path)
    assert (len(again), again.width) == (40, 16)
    for ours, theirs in zip(index.search(q_BD, 5), again.search(q_BD, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    again.add(x_ND[:1])
    assert len(again) == 41 and len(index) == 40


def test_an_index_by_distance_is_refused(tmp_path: Path) -> None:
    faiss.write_index(faiss.IndexFlatL2(4), str(tmp_path / Index.FILE))
    with pytest.raises(ValueError, match=r"vectors\.faiss: an index by inner product is needed"):
        Index.load(tmp_path)
