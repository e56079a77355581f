"""Search against NumPy's sort, for every kind: hidden rows, ties, shards, saved = loaded, what cannot be built, what is damaged."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag.index import Index, choose
from medrag.scan import TorchScan
from medrag.vectors import Vectors

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
KINDS = ("sq8", "ivf", "ivfpq", "hnsw", "IVF40,Flat", "RR32,IVF40,SQ8", "HNSW16", "Flat")
CPU = torch.device("cpu")


def _draw(rows: int, width: int = 16, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def _clustered(rows: int, seed: int = 0, width: int = 32) -> Floats:
    """Two hundred Gaussians: what approximate search is for."""
    centres = _draw(200, width, seed=99)
    rng = np.random.default_rng(seed)
    x_ND = centres[rng.integers(200, size=rows)] + 0.4 * rng.standard_normal((rows, width))
    return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), np.float32)


def _shards(x_ND: Floats, pieces: int = 3) -> Vectors:
    return Vectors([np.ascontiguousarray(piece) for piece in np.array_split(x_ND, pieces)])


def _index(x_ND: Floats) -> Index:
    index = Index(x_ND.shape[1])
    index.add(x_ND)
    return index


def _oracle(x_ND: Floats, q_BD: Floats, k: int, skip: list[int] | Rows = ()) -> tuple[Floats, Rows]:  # type: ignore[assignment]
    """Every product by the routine that decides ties, one pair at a time, and a stable sort."""
    score_BN = np.array([[np.vecdot(q_D, x_D) for x_D in x_ND] for q_D in q_BD], np.float32).reshape(len(q_BD), len(x_ND))
    left = np.setdiff1d(np.arange(len(x_ND)), skip)
    order_BK = left[np.argsort(-score_BN[:, left], axis=1, kind="stable")[:, :k]]
    return np.take_along_axis(score_BN, order_BK, 1), order_BK


def _same(found: tuple[Floats, Rows], want: tuple[Floats, Rows]) -> None:
    np.testing.assert_array_equal(found[1], want[1])
    np.testing.assert_array_equal(found[0], want[0])


def test_search_is_exact_and_by_inner_product() -> None:
    x_ND, q_BD = _draw(200), _draw(5, seed=1)
    x_ND[17] *= 50  # a long vector wins by inner product, not by distance
    score_BK, row_BK = _index(x_ND).search(q_BD, 10)
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
    index = Index.build(_shards(x_ND, pieces), "flat", 1)
    if by_torch:
        index._scan = TorchScan(index._vectors, CPU, data.draw(st.sampled_from([0, 200, 10_000])))
    found = index.search(q_BD, k, skip)
    assert found[0].shape == found[1].shape == (questions, min(k, rows - len(set(skip))))
    _same(found, _oracle(x_ND, q_BD, k, skip))


def test_more_ties_than_are_proposed() -> None:
    x_ND = np.ones((3000, 16), np.float32)
    x_ND[2500] = 2
    _same(_index(x_ND).search(x_ND[:2], 5, [1]), (np.array([[32, 16, 16, 16, 16]] * 2, np.float32), np.array([[2500, 0, 2, 3, 4]] * 2)))


def test_rows_are_numbered_as_they_were_added() -> None:
    x_ND = _draw(50)
    index = Index(16)
    for start in range(0, 50, 7):
        index.add(x_ND[start : start + 7])
    assert len(index) == 50 and index.width == 16 and index.kind == "flat"
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
    with pytest.raises(ValueError, match="rows 0 to 59 can be skipped, not 3 to 60"):
        index.search(q_BD, 1, [60, 3])


def test_more_neighbours_than_rows() -> None:
    index = _index(_draw(3))
    assert index.search(_draw(2), 10)[1].shape == (2, 3)
    assert index.search(_draw(2), 10, [0, 1, 2])[1].shape == (2, 0)
    assert Index(16).search(_draw(2), 10)[0].shape == (2, 0)
    assert index.search(_draw(0), 2)[1].shape == (0, 2)


@pytest.mark.parametrize("shape", [(2, 15), (2, 17), (16,), (1, 2, 16)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    index = Index(16)
    for act in (index.add, lambda x_ND: index.search(x_ND, 1)):
        with pytest.raises(ValueError, match="width 16, not of shape"):
            act(np.zeros(shape, np.float32))
    assert len(index) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x_ND = _draw(3)
    x_ND[1, 2] = value
    index = Index(16)
    for act in (lambda: index.add(x_ND), lambda: index.search(x_ND, 1), lambda: Index.build(Vectors([x_ND]), "sq8", 1)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            act()
    assert len(index) == 0


@pytest.fixture(scope="module")
def world() -> tuple[Floats, Floats]:
    return _clustered(6000), _clustered(40, seed=1)


@pytest.fixture(scope="module")
def built(world: tuple[Floats, Floats]) -> Callable[[str], Index]:
    made = {kind: Index.build(_shards(world[0]), kind, 1) for kind in (*KINDS, "flat")}
    return lambda kind: made[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_find_nearly_all_and_score_exactly(kind: str, world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    x_ND, q_BD = world
    index, true_BK = built(kind), np.argsort(-(q_BD @ x_ND.T), axis=1)[:, :10]
    score_BK, row_BK = index.search(q_BD, 10)
    assert (len(index), index.width, index.kind) == (6000, 32, kind)
    recall = np.mean([np.isin(want_K, row_K).mean() for row_K, want_K in zip(row_BK, true_BK, strict=True)])
    assert recall >= 0.97 and index.probe(q_BD, 10) == pytest.approx(recall)
    np.testing.assert_array_equal(score_BK, np.vecdot(q_BD[:, None], x_ND[row_BK]))
    assert (np.diff(score_BK, axis=1) <= 0).all()
    assert all(len(set(row_K)) == 10 for row_K in row_BK.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_hide_what_is_skipped(kind: str, world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    """A third of the rows at random, then all of the nearest, then all but a few: what is left is found."""
    x_ND, q_BD = world
    order_BN = np.argsort(-(q_BD @ x_ND.T), axis=1)
    cases = [
        np.random.default_rng(0).choice(6000, 2000, replace=False),
        np.unique(order_BN[:8, :600]),
        np.setdiff1d(np.arange(6000), np.arange(0, 6000, 300)),
    ]
    for skip, least in zip(cases, (0.97, 0.9, 1.0), strict=True):
        row_BK = built(kind).search(q_BD, 10, skip)[1]
        assert not np.isin(row_BK, skip).any() and all(len(set(row_K)) == 10 for row_K in row_BK.tolist())
        left = np.setdiff1d(np.arange(6000), skip)
        want_BK = left[np.argsort(-(q_BD @ x_ND[left].T), axis=1)[:, :10]]
        assert np.mean([np.isin(want_K, row_K).mean() for row_K, want_K in zip(row_BK, want_BK, strict=True)]) >= least


@pytest.mark.parametrize("kind", ["flat", *KINDS])
def test_saved_is_loaded_mapped_and_grows(kind: str, world: tuple[Floats, Floats], built: Callable[[str], Index], tmp_path: Path) -> None:
    x_ND, q_BD = world
    more_ND = _clustered(50, seed=2)
    built(kind).save(tmp_path)
    assert (tmp_path / Index.FILE).exists() == (kind != "flat")
    again = Index.load(tmp_path, _shards(x_ND, 2))
    assert (len(again), again.width, again.kind) == (6000, 32, kind)
    _same(again.search(q_BD, 7, [3]), built(kind).search(q_BD, 7, [3]))
    copied = tmp_path / "copied"
    copied.mkdir()
    again.save(copied)
    assert [path.read_bytes() for path in sorted(copied.glob("search.*"))] == [path.read_bytes() for path in sorted(tmp_path.glob("search.*"))]
    before = {path: path.read_bytes() for path in tmp_path.glob("search.*")}
    again.add(more_ND)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert len(again) == 6050 and len(built(kind)) == 6000
    assert (again.search(more_ND, 1)[1][:, 0] == np.arange(6000, 6050)).mean() > 0.97
    again.save(copied)
    both = Index.load(copied, Vectors([x_ND, more_ND]))
    _same(both.search(q_BD, 7), again.search(q_BD, 7))


@pytest.mark.parametrize("kind", ["flat", "sq8", "ivf", "ivfpq", "IVF40,Flat"])
def test_the_same_vectors_give_the_same_bytes(kind: str, world: tuple[Floats, Floats], built: Callable[[str], Index], tmp_path: Path) -> None:
    digests = []
    for number, index in enumerate((built(kind), Index.build(_shards(world[0], 5), kind, 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        index.save(folder)
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())])
    assert digests[0] == digests[1]


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
    for act in (lambda: choose(kind, 100_000, 16, 4.0), lambda: Index.build(_shards(_draw(10_000)), kind, 4.0)):
        with pytest.raises(ValueError, match=rf"index\.kind={kind}: .*allowed: auto, flat, sq8, ivf, ivfpq, hnsw, or a factory string"):
            act()


@pytest.mark.parametrize(("kind", "count"), [("ivfpq", 255), ("IVF100,Flat", 3899), ("PQ4", 9983), ("sq8", 0), ("ivf", 0)])
def test_too_few_to_train(kind: str, count: int) -> None:
    with pytest.raises(ValueError, match=rf"index\.kind={kind}: {count} vectors are too few"):
        Index.build(_shards(_draw(count)), kind, 4.0)


@pytest.mark.parametrize(
    ("kind", "count"), [("auto", 0), ("auto", 1), ("sq8", 1), ("ivf", 1), ("ivf", 100), ("hnsw", 1), ("ivfpq", 256), ("ivfpq", 1000)]
)
def test_small_corpora_are_built_in_silence(kind: str, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    x_ND = _draw(count)
    index = Index.build(_shards(x_ND), kind, 4.0)
    row_BK = index.search(_draw(3, seed=1), 5)[1]
    assert row_BK.shape == (3, min(5, count)) and index.kind == ("flat" if kind == "auto" else kind)
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    Index.build(_shards(_draw(100)), "sq8", 4.0, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "index sq8: 100%" in err and "100/100" in err


@pytest.mark.parametrize("name", ["probes", "refine"])
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"index\.{name}=-1"):
        Index.build(_shards(_draw(100)), "flat", 4.0, **{name: -1})  # type: ignore[arg-type]


def test_more_probes_and_candidates_find_more() -> None:
    """Vectors without clusters are hard, so that every step shows."""
    vectors, q_BD = _shards(_draw(4000)), _draw(40, seed=1)
    settings = ((1, 1), (8, 1), (1000, 1), (1000, 10))
    found = [Index.build(vectors, "ivf", 1, probes, refine).probe(q_BD, 10) for probes, refine in settings]
    assert found[0] < found[1] < found[2] < found[3] == 1.0


@pytest.mark.parametrize("memory_bytes", [None, 100_000, 0])
def test_torch_is_as_exact(memory_bytes: int | None, world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    """All in fp32; a part in fp16, the rest sent; all sent."""
    index = Index.build(_shards(world[0]), "flat", 1)
    index._scan = scan = TorchScan(index._vectors, CPU, memory_bytes)
    assert scan.resident == {None: 6000, 100_000: 0, 0: 0}[memory_bytes]
    for skip in ([], [0, 5, 5999], list(range(0, 6000, 2))):
        _same(index.search(world[1], 20, skip), built("flat").search(world[1], 20, skip))
    index.add(world[1])
    assert (index.search(world[1], 1)[1][:, 0] == np.arange(6000, 6040)).all()


def test_torch_keeps_fp16_where_memory_is_short(world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    index = Index.build(_shards(world[0]), "flat", 1)
    index._scan = scan = TorchScan(index._vectors, CPU, 2 * 32 * 4500)
    assert scan.resident == 4000 and scan.dtype == torch.float16
    _same(index.search(world[1], 20), built("flat").search(world[1], 20))
    large = TorchScan(_shards(world[0] * 1e6), CPU, 2 * 32 * 4500)
    assert large.resident == 0


def test_to_the_cpu_changes_nothing(world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    want = built("ivf").search(world[1], 5)
    assert built("ivf").to(CPU) is built("ivf")
    _same(built("ivf").search(world[1], 5), want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_the_gpu_finds_what_the_cpu_finds(kind: str, world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    index = Index.build(_shards(world[0]), kind, 1).to(torch.device("cuda"))
    assert index.probe(world[1], 10) >= (1.0 if kind == "flat" else 0.97)
    want = built("flat").search(world[1], 10)
    if kind == "flat":
        _same(index.search(world[1], 10, [1, 2]), built("flat").search(world[1], 10, [1, 2]))
    assert (np.abs(index.search(world[1], 1)[0] - want[0][:, :1]) < 1e-6).mean() > 0.97


def test_an_index_that_does_not_fit_is_refused(built: Callable[[str], Index], world: tuple[Floats, Floats], tmp_path: Path) -> None:
    x_ND = world[0]
    built("ivf").save(tmp_path)
    for vectors in (_shards(x_ND[:-1]), _shards(np.ascontiguousarray(x_ND[:, :-1]))):
        with pytest.raises(ValueError, match=r"search\.json: an index of 6000 vectors of width 32, but there are"):
            Index.load(tmp_path, vectors)
    file, about = tmp_path / Index.FILE, tmp_path / Index.ABOUT
    for made, message in (
        (faiss.IndexFlatL2(32), "an index by inner product is needed"),
        (faiss.IndexFlatIP(31), r"holds 0 vectors of width 31, but there are 6000 of width 32"),
        (faiss.IndexFlatIP(32), r"holds 0 vectors of width 32, but there are 6000 of width 32"),
    ):
        faiss.write_index(made, str(file))
        with pytest.raises(ValueError, match=rf"search\.faiss: {message}"):
            Index.load(tmp_path, _shards(x_ND))
    for data in (b"", b"not an index at all, but a text"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"search\.faiss: Faiss cannot read it"):
            Index.load(tmp_path, _shards(x_ND))
    file.unlink()
    with pytest.raises(ValueError, match=r"search\.faiss: Faiss cannot read it"):
        Index.load(tmp_path, _shards(x_ND))
    for text in ("", "[]", "{}", json.dumps({"kind": "ivf", "factory": "IVF4,SQ8", "probes": -1, "refine": 1, "rows": 6000, "width": 32})):
        about.write_text(text)
        with pytest.raises(ValueError, match=r"search\.json: not the description of an index"):
            Index.load(tmp_path, _shards(x_ND))
    about.unlink()
    with pytest.raises(ValueError, match=r"search\.json: not the description of an index"):
        Index.load(tmp_path, _shards(x_ND))
