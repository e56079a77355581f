"""A store with tiny trained methods, and services over it.

``pytest_plugins = ["service_fixtures"]`` brings them; a conftest would be the second of its name for mypy. The store is made once for all
processes of a test run, each of which has its own services.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import DENSE, TINY, copy_of, medrag
from served import BOTH, BRIEF, FAST, FID, TOKEN, Service, once

from medrag.__main__ import main


@pytest.fixture(scope="session")
def served_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a corpus, ``dense``, an index and ``fid``, each trained for a few steps; read only."""

    def make(store: Path) -> None:
        copy_of(request.getfixturevalue("corpus"), store)
        for task in ([*DENSE, "task.options.passages=20"], FID):
            done = medrag("train", *task, *FAST, *BRIEF, *TINY, f"store={store}")
            assert done.returncode == 0, done.stderr
            assert task is FID or main(["index", "build", f"store={store}", *TINY, "hardware.devices=1"]) == 0

    return once(tmp_path_factory, "served-store", make)


@pytest.fixture(scope="session")
def service(served_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Without a token, and refuses nothing for weak evidence."""
    with Service(served_store, tmp_path_factory.mktemp("service"), *BOTH, "answer.refuse_below=0") as started:
        yield started.wait()


@pytest.fixture(scope="session")
def guarded(served_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With a token; refuses everything for weak evidence, and nothing may take longer than 4 seconds."""
    settings = [*BOTH, "answer.refuse_below=1", "serve.deadline_seconds=4", "serve.queue_questions=8"]
    with Service(served_store, tmp_path_factory.mktemp("guarded"), *settings, token=TOKEN) as started:
        yield started.wait()
