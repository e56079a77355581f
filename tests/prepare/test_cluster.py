"""One process, two processes, a Ray cluster, another seed of hashes: the same artifact, byte for byte."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from preparing import Row, contents, many, published, run

from medrag import files


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Rows that are doubles, that are dropped, that hold personal data, and that cannot be read."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(4):
        rows: list[Row] = [
            *many(30, number),
            *many(10, number - 1),
            {"question": "头痛怎么办呢", "answer": f"&lt;b&gt;多休息&lt;/b&gt;，电话13912345{number}78。"},
        ]
        rows += [{"question": "发烧", "answer": "短"}, {"question": 7, "answer": "短"}]
        files.write_jsonl(folder / f"part{number}.jsonl", rows)
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def alone(raw: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return _made(raw, tmp_path_factory.mktemp("alone"), "workers.processes=1", seed=1)


def _made(raw: list[str], store: Path, *words: str, seed: int) -> dict[str, bytes]:
    done = run(*raw, f"store={store}", *words, seed=seed)
    assert done.returncode == 0, done.stderr
    return contents(published(store))


def test_two_processes_make_what_one_makes(tmp_path: Path, raw: list[str], alone: dict[str, bytes]) -> None:
    """With hashes of another seed, too: nothing depends on the order of a set."""
    assert _made(raw, tmp_path, "workers.processes=2", seed=2) == alone
    assert b"part3" in alone["rejects.jsonl"] and len(alone["train.jsonl"]) > 10_000


@pytest.mark.slow
def test_a_ray_cluster_makes_what_one_process_makes(tmp_path: Path, raw: list[str], alone: dict[str, bytes]) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'medrag[cluster]'")
    assert _made(raw, tmp_path, "workers.processes=2", "workers.cluster=local", seed=3) == alone
