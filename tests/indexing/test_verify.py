"""What is in order in an index, and what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import indexes
import numpy as np
import pytest
from conftest import Tiny

from medrag import files
from medrag.files import Artifact
from medrag.indexing import verify


@pytest.fixture(scope="module", autouse=True)
def _no_power_cut() -> Iterator[None]:
    """Waiting for the disk is half the time of a small index."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def store(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed") / "store"
    indexes.publish(folder, tiny, indexes.many(tiny, 90))
    return folder


@pytest.fixture(scope="module")
def base(store: Path, tiny: Tiny) -> Artifact:
    return indexes.build(store, tiny)


@pytest.fixture
def damaged(base: Artifact, tmp_path: Path) -> Artifact:
    """A copy whose files may be changed, as a faulty build might have left them."""
    path = tmp_path / "index" / base.path.name
    files.link_tree(base.path, path, base.manifest["files"])
    for file in [file for file in path.rglob("*") if file.is_file()]:
        whole = file.read_bytes()
        file.unlink()
        file.write_bytes(whole)
    return Artifact(path, base.manifest)


def report(index: Artifact, tiny: Tiny, seed: int = 0) -> list[str]:
    finder = indexes.finder(tiny, index, seed)
    return list(verify.verify(index, finder, indexes.encoding(finder), tiny.questions, progress=False))


def test_verify_says_what_is_in_order(base: Artifact, tiny: Tiny) -> None:
    said = "\n".join(report(base, tiny))
    assert "90 each" in said and "90 ids" in said and "finite" in said and "64 passages encoded anew" in said and "recall@10" in said


def test_verify_sees_what_hashes_cannot(damaged: Artifact, tiny: Tiny) -> None:
    vectors = damaged.path / "shards" / "00002.npy"
    whole = np.load(vectors)
    with pytest.raises(ValueError, match=r"passage 'p\d+' encoded now is another vector .* the encoder or the vectors"):
        report(damaged, tiny, seed=1)
    np.save(vectors, np.roll(whole, 1, axis=0))
    with pytest.raises(ValueError, match=r"passage 'p\d+' encoded now is another vector"):
        report(damaged, tiny)
    whole[7, 3] = np.nan
    np.save(vectors, whole)
    with pytest.raises(ValueError, match="the vector of row 57 is not finite"):
        report(damaged, tiny)


def test_verify_sees_a_lookup_gone_astray(damaged: Artifact, tiny: Tiny) -> None:
    order = np.load(damaged.path / "ids.order.npy")
    np.save(damaged.path / "ids.order.npy", np.roll(order, 1))
    with pytest.raises(ValueError, match=r"the id 'p0' of row 0 leads to row None"):
        report(damaged, tiny)
    np.save(damaged.path / "ids.order.npy", order)
    np.save(damaged.path / "removed.npy", np.array([5]))
    with pytest.raises(ValueError, match="90 ids for 89 passages that are not removed"):
        report(damaged, tiny)


def test_verify_sees_a_search_that_is_too_coarse(store: Path, base: Artifact, tiny: Tiny) -> None:
    index = indexes.build(store, tiny, kind="IVF2,Flat", probes=1, refine=1)
    with pytest.raises(ValueError, match=r"finds 0\.\d+ of the ten best .* index\.probes"):
        report(index, tiny)
    files.set_current(store, "index", base.path)
