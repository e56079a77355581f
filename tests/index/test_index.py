"""Exact search against NumPy's sort: hidden rows, ties, shards; which kind is chosen, and what cannot be built."""

from __future__ import annotations

import gc

import drawn
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag.index import Index, choose
from medrag.index.scan import TorchScan
from medrag.index.vectors import Vectors

CPU = torch.device("cpu")


def test_search_is_exact_and_by_inner_product() -> None:
    x_ND, q_BD = drawn.draw(200), drawn.draw(5, seed=1)
    x_ND[17] *= 50  # a long vector wins by inner product, not by distance
    score_BK, row_BK = drawn.index(x_ND).search(q_BD, 10)
    want_BN = q_BD @ x_ND.T
    want_BK = np.argsort(-want_BN, axis=1)[:, :10]
    assert (row_BK == want_BK).all()
    np.testing.assert_allclose(score_BK, np.take_along_axis(want_BN, want_BK, 1), rtol=1e-5)
    assert any(17 in row_K for row_K in row_BK)
    assert score_BK.dtype == np.float32 and row_BK.dtype == np.int64


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 80), st.integers(0, 5), st.integers(0, 100), st.integers(1, 4), st.sampled_from([1, 3, 2**24]), st.booleans(), st.data())
def test_any_size_skip_and_tie(rows: int, questions: int, k: int, pieces: int, levels: int, by_torch: bool, data: st.DataObject) -> None:
    """Few levels make many vectors equal: ties are decided by row, at the k-th place as well."""
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    x_ND = (rng.integers(-levels, levels, (rows, 3)) / levels).astype(np.float32)
    q_BD = (rng.integers(-levels, levels, (questions, 3)) / levels).astype(np.float32)
    skip = data.draw(st.lists(st.integers(0, rows - 1), max_size=rows))
    index = Index.build(drawn.shards(x_ND, pieces), "flat", 1)
    if by_torch:
        index._scan = TorchScan(index._vectors, CPU, data.draw(st.sampled_from([0, 200, 10_000])))
    found = index.search(q_BD, k, skip)
    assert found[0].shape == found[1].shape == (questions, min(k, rows - len(set(skip))))
    drawn.same(found, drawn.oracle(x_ND, q_BD, k, skip))


def test_more_ties_than_are_proposed() -> None:
    x_ND = np.ones((3000, 16), np.float32)
    x_ND[2500] = 2
    drawn.same(drawn.index(x_ND).search(x_ND[:2], 5, [1]), (np.array([[32, 16, 16, 16, 16]] * 2, np.float32), np.array([[2500, 0, 2, 3, 4]] * 2)))


def test_rows_are_numbered_as_they_were_added() -> None:
    x_ND = drawn.draw(50)
    index = Index(16)
    for start in range(0, 50, 7):
        index.add(x_ND[start : start + 7])
    assert len(index) == 50 and index.width == 16 and index.kind == "flat"
    assert (index.vectors([49, 0, 49]) == x_ND[[49, 0, 49]]).all()
    assert (index.search(x_ND, 3)[1] == drawn.index(x_ND).search(x_ND, 3)[1]).all()


def test_skipped_rows_do_not_come_back() -> None:
    x_ND, q_BD = drawn.draw(60), drawn.draw(4, seed=1)
    index = drawn.index(x_ND)
    full = index.search(q_BD, 60)[1]
    skip = sorted({int(row) for row in full[:, :3].flatten()})
    gc.collect()
    _, row_BK = index.search(q_BD, 20, skip)
    assert row_BK.tolist() == [[row for row in row_N if row not in skip][:20] for row_N in full.tolist()]
    score_BK, row_BK = index.search(q_BD, 60, skip)
    assert row_BK.shape == score_BK.shape == (4, 60 - len(skip))
    assert (row_BK >= 0).all() and np.isfinite(score_BK).all()
    assert (index.search(q_BD, 60)[1] == full).all()
    with pytest.raises(ValueError, match="rows 0 to 59 can be skipped, not 3 to 60"):
        index.search(q_BD, 1, [60, 3])


def test_more_neighbours_than_rows() -> None:
    index = drawn.index(drawn.draw(3))
    assert index.search(drawn.draw(2), 10)[1].shape == (2, 3)
    assert index.search(drawn.draw(2), 10, [0, 1, 2])[1].shape == (2, 0)
    assert Index(16).search(drawn.draw(2), 10)[0].shape == (2, 0)
    assert index.search(drawn.draw(0), 2)[1].shape == (0, 2)


@pytest.mark.parametrize("shape", [(2, 15), (2, 17), (16,), (1, 2, 16)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    index = Index(16)
    for act in (index.add, lambda x_ND: index.search(x_ND, 1)):
        with pytest.raises(ValueError, match="width 16, not of shape"):
            act(np.zeros(shape, np.float32))
    assert len(index) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x_ND = drawn.draw(3)
    x_ND[1, 2] = value
    index = Index(16)
    for act in (lambda: index.add(x_ND), lambda: index.search(x_ND, 1), lambda: Index.build(Vectors([x_ND]), "sq8", 1)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            act()
    assert len(index) == 0


def test_auto_goes_by_size_and_memory() -> None:
    table = [
        (0, 256, 4.0, "flat"),
        (12_000, 256, 4.0, "flat"),
        (120_000, 256, 4.0, "flat"),
        (120_000, 1024, 4.0, "ivf"),
        (262_144, 256, 4.0, "flat"),
        (262_145, 256, 4.0, "ivf"),
        (3_000_000, 256, 4.0, "ivf"),
        (3_000_000, 256, 0.5, "ivfpq"),
        (30_000_000, 768, 8.0, "ivfpq"),
        (120_000, 256, 0.05, "ivf"),
        (9_000, 256, 0.001, "flat"),
    ]
    for count, width, memory_gib, want in table:
        assert choose("auto", count, width, memory_gib) == want, (count, width, memory_gib)
    assert choose("hnsw", 120_000, 256, 4.0) == "hnsw"
    with pytest.raises(ValueError, match=r"index\.memory_gib=0: more than 0"):
        choose("auto", 10, 4, 0)


@pytest.mark.parametrize("kind", ["", "fast", "IVF", "IVF0,Flat", "PQ7", "IVF4,PQ5", "LSH", "IDMap,Flat", "IVF4,Flat,RFlat"])
def test_a_kind_that_faiss_refuses(kind: str) -> None:
    for act in (lambda: choose(kind, 100_000, 16, 4.0), lambda: Index.build(drawn.shards(drawn.draw(10_000)), kind, 4.0)):
        with pytest.raises(ValueError, match=rf"index\.kind={kind}: .*allowed: auto, flat, sq8, ivf, ivfpq, hnsw, or a factory string"):
            act()


@pytest.mark.parametrize(("kind", "count"), [("ivfpq", 255), ("IVF100,Flat", 3899), ("PQ4", 9983), ("sq8", 0), ("ivf", 0)])
def test_too_few_to_train(kind: str, count: int) -> None:
    with pytest.raises(ValueError, match=rf"index\.kind={kind}: {count} vectors are too few"):
        Index.build(drawn.shards(drawn.draw(count)), kind, 4.0)


@pytest.mark.parametrize(
    ("kind", "count"), [("auto", 0), ("auto", 1), ("sq8", 1), ("ivf", 1), ("ivf", 100), ("hnsw", 1), ("ivfpq", 256), ("ivfpq", 1000)]
)
def test_small_corpora_are_built_in_silence(kind: str, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    x_ND = drawn.draw(count)
    index = Index.build(drawn.shards(x_ND), kind, 4.0)
    row_BK = index.search(drawn.draw(3, seed=1), 5)[1]
    assert row_BK.shape == (3, min(5, count)) and index.kind == ("flat" if kind == "auto" else kind)
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    Index.build(drawn.shards(drawn.draw(100)), "sq8", 4.0, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "index sq8: 100%" in err and "100/100" in err


@pytest.mark.parametrize("name", ["probes", "refine"])
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"index\.{name}=-1"):
        Index.build(drawn.shards(drawn.draw(100)), "flat", 4.0, **{name: -1})  # type: ignore[arg-type]


def test_more_probes_and_candidates_find_more() -> None:
    """Vectors without clusters are hard, so that every step shows."""
    vectors, q_BD = drawn.shards(drawn.draw(4000)), drawn.draw(40, seed=1)
    settings = ((1, 1), (8, 1), (1000, 1), (1000, 10))
    found = [Index.build(vectors, "ivf", 1, probes, refine).probe(q_BD, 10) for probes, refine in settings]
    assert found[0] < found[1] < found[2] < found[3] == 1.0
