"""Every kind of index: what it finds and hides, saved = loaded, on torch, what is damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import drawn
import faiss
import numpy as np
import pytest
import torch
from drawn import Floats

from medrag.index import Index
from medrag.index.scan import TorchScan
from medrag.index.vectors import Vectors

KINDS = ("sq8", "ivf", "ivfpq", "hnsw", "IVF40,Flat", "RR32,IVF40,SQ8", "HNSW16", "Flat")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world() -> tuple[Floats, Floats]:
    return drawn.clustered(6000), drawn.clustered(40, seed=1)


@pytest.fixture(scope="module")
def built(world: tuple[Floats, Floats]) -> Callable[[str], Index]:
    made = {kind: Index.build(drawn.shards(world[0]), kind, 1) for kind in (*KINDS, "flat")}
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
    more_ND = drawn.clustered(50, seed=2)
    built(kind).save(tmp_path)
    assert (tmp_path / Index.FILE).exists() == (kind != "flat")
    again = Index.load(tmp_path, drawn.shards(x_ND, 2))
    assert (len(again), again.width, again.kind) == (6000, 32, kind)
    drawn.same(again.search(q_BD, 7, [3]), built(kind).search(q_BD, 7, [3]))
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
    drawn.same(both.search(q_BD, 7), again.search(q_BD, 7))


@pytest.mark.parametrize("kind", ["flat", "sq8", "ivf", "ivfpq", "IVF40,Flat"])
def test_the_same_vectors_give_the_same_bytes(kind: str, world: tuple[Floats, Floats], built: Callable[[str], Index], tmp_path: Path) -> None:
    digests = []
    for number, index in enumerate((built(kind), Index.build(drawn.shards(world[0], 5), kind, 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        index.save(folder)
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("memory_bytes", [None, 100_000, 0])
def test_torch_is_as_exact(memory_bytes: int | None, world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    """All in fp32; a part in fp16, the rest sent; all sent."""
    index = Index.build(drawn.shards(world[0]), "flat", 1)
    index._scan = scan = TorchScan(index._vectors, CPU, memory_bytes)
    assert scan.resident == {None: 6000, 100_000: 0, 0: 0}[memory_bytes]
    for skip in ([], [0, 5, 5999], list(range(0, 6000, 2))):
        drawn.same(index.search(world[1], 20, skip), built("flat").search(world[1], 20, skip))
    index.add(world[1])
    assert (index.search(world[1], 1)[1][:, 0] == np.arange(6000, 6040)).all()


def test_torch_keeps_fp16_where_memory_is_short(world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    index = Index.build(drawn.shards(world[0]), "flat", 1)
    index._scan = scan = TorchScan(index._vectors, CPU, 2 * 32 * 4500)
    assert scan.resident == 4000 and scan.dtype == torch.float16
    drawn.same(index.search(world[1], 20), built("flat").search(world[1], 20))
    large = TorchScan(drawn.shards(world[0] * 1e6), CPU, 2 * 32 * 4500)
    assert large.resident == 0


def test_to_the_cpu_changes_nothing(world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    want = built("ivf").search(world[1], 5)
    assert built("ivf").to(CPU) is built("ivf")
    drawn.same(built("ivf").search(world[1], 5), want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_the_gpu_finds_what_the_cpu_finds(kind: str, world: tuple[Floats, Floats], built: Callable[[str], Index]) -> None:
    index = Index.build(drawn.shards(world[0]), kind, 1).to(torch.device("cuda"))
    assert index.probe(world[1], 10) >= (1.0 if kind == "flat" else 0.97)
    want = built("flat").search(world[1], 10)
    if kind == "flat":
        drawn.same(index.search(world[1], 10, [1, 2]), built("flat").search(world[1], 10, [1, 2]))
    assert (np.abs(index.search(world[1], 1)[0] - want[0][:, :1]) < 1e-6).mean() > 0.97


def test_an_index_that_does_not_fit_is_refused(built: Callable[[str], Index], world: tuple[Floats, Floats], tmp_path: Path) -> None:
    x_ND = world[0]
    built("ivf").save(tmp_path)
    for vectors in (drawn.shards(x_ND[:-1]), drawn.shards(np.ascontiguousarray(x_ND[:, :-1]))):
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
            Index.load(tmp_path, drawn.shards(x_ND))
    for data in (b"", b"not an index at all, but a text"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"search\.faiss: Faiss cannot read it"):
            Index.load(tmp_path, drawn.shards(x_ND))
    file.unlink()
    with pytest.raises(ValueError, match=r"search\.faiss: Faiss cannot read it"):
        Index.load(tmp_path, drawn.shards(x_ND))
    for text in ("", "[]", "{}", json.dumps({"kind": "ivf", "factory": "IVF4,SQ8", "probes": -1, "refine": 1, "rows": 6000, "width": 32})):
        about.write_text(text)
        with pytest.raises(ValueError, match=r"search\.json: not the description of an index"):
            Index.load(tmp_path, drawn.shards(x_ND))
    about.unlink()
    with pytest.raises(ValueError, match=r"search\.json: not the description of an index"):
        Index.load(tmp_path, drawn.shards(x_ND))
