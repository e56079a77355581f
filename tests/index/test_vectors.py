"""Shards of vectors against one array; files that are not shards are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrag.index.vectors import Vectors

Floats = npt.NDArray[np.float32]


def _draw(rows: int, width: int = 4, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def _save(folder: Path, *shards: npt.NDArray[np.generic]) -> Path:
    for number, shard in enumerate(shards):
        np.save(folder / f"{number:05d}.npy", shard)
    return folder


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.lists(st.integers(0, 6), max_size=4), st.data())
def test_shards_are_one_array(sizes: list[int], appended: list[int], data: st.DataObject) -> None:
    whole_ND = _draw(sum(sizes) + sum(appended))
    cuts = np.cumsum(sizes + appended)[:-1]
    pieces = np.split(whole_ND, cuts)
    vectors = Vectors(pieces[: len(sizes)])
    for piece in pieces[len(sizes) :]:
        vectors.append(piece)
    assert len(vectors) == len(whole_ND) and vectors.width == 4
    np.testing.assert_array_equal(np.concatenate(list(vectors.shards)), whole_ND)
    rows = data.draw(st.lists(st.integers(0, len(whole_ND) - 1), max_size=20)) if len(whole_ND) else []
    np.testing.assert_array_equal(vectors.take(rows), whole_ND[np.asarray(rows, dtype=int)])
    start, at_once = data.draw(st.integers(0, len(whole_ND))), data.draw(st.integers(1, 5))
    seen = list(vectors.blocks(at_once, start))
    assert all(len(block) <= at_once and (block == whole_ND[first : first + len(block)]).all() for first, block in seen)
    np.testing.assert_array_equal(np.concatenate([whole_ND[:start], *(block for _, block in seen)]), whole_ND)


def test_files_are_mapped_in_order_and_not_read(tmp_path: Path) -> None:
    first, second = _draw(5), _draw(3, seed=1)
    vectors = Vectors.load(_save(tmp_path, first, second))
    assert all(isinstance(shard, np.memmap) and not shard.flags.writeable for shard in vectors.shards)
    np.testing.assert_array_equal(vectors.take([7, 0, 5, 4]), np.concatenate([first, second])[[7, 0, 5, 4]])
    vectors.append(_draw(2, seed=2))
    assert len(vectors) == 10 and vectors.take([9]).tolist() == _draw(2, seed=2)[1:].tolist()
    assert len(Vectors.load(tmp_path)) == 8


def test_what_was_appended_is_a_copy() -> None:
    x_ND = _draw(2)
    vectors = Vectors([np.zeros((0, 4), np.float32)])
    vectors.append(x_ND)
    x_ND[:] = 7
    np.testing.assert_array_equal(vectors.take([0, 1]), _draw(2))


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_that_does_not_exist(row: int) -> None:
    with pytest.raises(IndexError, match="rows 0 to 4 exist"):
        Vectors([_draw(3), _draw(2)]).take([0, row])


@pytest.mark.parametrize("wrong", [_draw(2, width=3), _draw(2).astype(np.float64), _draw(2)[0], np.zeros((1, 2, 4), np.float32)])
def test_another_shape_or_type_is_refused(wrong: Floats, tmp_path: Path) -> None:
    vectors = Vectors([_draw(3)])
    for act in (lambda: vectors.append(wrong), lambda: Vectors([_draw(3), wrong])):
        with pytest.raises(ValueError, match=r"float32, not float64|width 4"):
            act()
    assert len(vectors) == 3
    with pytest.raises(ValueError, match=r"00001\.npy: .*(float32|width 4)"):
        Vectors.load(_save(tmp_path, _draw(3), wrong))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shard"):
        Vectors.load(tmp_path)
    with pytest.raises(ValueError, match="at least one shard"):
        Vectors([])
    _save(tmp_path, _draw(3), _draw(3), _draw(3))
    (tmp_path / "00001.npy").unlink()
    with pytest.raises(ValueError, match=r"00001\.npy is missing"):
        Vectors.load(tmp_path)
    whole = (tmp_path / "00002.npy").read_bytes()
    for damaged in (b"", b"no numpy file at all", whole[:40], whole[:-5]):
        (tmp_path / "00001.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"00001\.npy: "):
            Vectors.load(tmp_path)
    np.save(tmp_path / "00001.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"00001\.npy: "):
        Vectors.load(tmp_path)
