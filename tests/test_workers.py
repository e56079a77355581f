"""Tasks are done once each by whoever there is; errors and killed workers are told in one line."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from medrag import workers
from medrag.workers import Config, Workers

NAMES = [f"{number:02d}" for number in range(9)]


def note(folder: Path, name: str) -> None:
    """Say who did a task."""
    (folder / name).write_text(str(os.getpid()), "utf-8")


def refuse(folder: Path, name: str) -> None:
    if name == "03":
        raise ValueError(f"task {name} is refused")
    note(folder, name)


def die(folder: Path, name: str) -> None:
    """One worker is ended from outside, as by a kernel that has run out of memory."""
    if name == "03":
        os.kill(os.getpid(), signal.SIGKILL)
    note(folder, name)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_is_done_once(tmp_path: Path, processes: int) -> None:
    with Workers(Config(processes)) as crew:
        assert sorted(crew.run(partial(note, tmp_path), NAMES)) == NAMES
        assert not list(crew.run(partial(note, tmp_path), []))
    who = {(tmp_path / name).read_text("utf-8") for name in NAMES}
    assert len(who) <= processes and (str(os.getpid()) in who) == (processes == 1)


def test_one_process_works_in_order_as_it_is_asked(tmp_path: Path) -> None:
    with Workers(Config(1)) as crew:
        done = crew.run(partial(note, tmp_path), NAMES)
        assert next(done) == "00" and not (tmp_path / "01").exists()
        assert list(done) == NAMES[1:]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_error_of_a_task_reaches_who_asked(tmp_path: Path, processes: int) -> None:
    with pytest.raises(ValueError, match="task 03 is refused"), Workers(Config(processes)) as crew:
        list(crew.run(partial(refuse, tmp_path), NAMES))
    assert not (tmp_path / "03").exists()


def test_a_worker_ended_from_outside_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"^a worker process was ended from outside \(out of memory\?\); run the same command again to go on$"),
        Workers(Config(2)) as crew,
    ):
        list(crew.run(partial(die, tmp_path), NAMES))


def test_a_pool_is_used_again_by_the_next_stage(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with Workers(Config(2)) as crew:
        for folder in (first, second):
            folder.mkdir()
            list(crew.run(partial(note, folder), NAMES))
    who = [{(folder / name).read_text("utf-8") for name in NAMES} for folder in (first, second)]
    assert len(who[0] | who[1]) <= 2, "spawning takes seconds, and is done once"


def test_settings() -> None:
    with pytest.raises(ValueError, match=r"workers\.processes=-1; allowed: 0 \(all cores\) or more"):
        Workers(Config(-1))
    assert Workers(Config()).processes == (os.cpu_count() or 1)


def test_a_cluster_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r"workers\.cluster='local' needs Ray: pip install 'medrag\[cluster\]'"):
        workers.Workers(Config(cluster="local")).__enter__()
