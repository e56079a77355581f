"""A run that was ended goes on where it stopped, and makes what it would have made; nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preparing import ALONE, command, config, contents, many, published, run, source

from medrag import files, prepare
from medrag.prepare import groups, stages, write

SOURCES = 5
"""files, so that there are as many shards of few rows"""
Stop = Callable[[subprocess.Popen[str]], None]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The sources' files: rows of their own, rows of the file before, and a mapped question in the last."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(SOURCES):
        files.write_jsonl(folder / f"part{number}.jsonl", [*many(40, number), *many(10, number - 1)])
    files.write_jsonl(folder / f"part{SOURCES}.jsonl", [{"question": "股票应该怎么买", "answer_ids": [], "split": "test"}])
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def undisturbed(raw: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("undisturbed")
    done = run(*raw, f"store={store}", "workers.processes=1")
    assert done.returncode == 0, done.stderr
    return contents(published(store))


def _stopped(raw: list[str], store: Path, at: str, stop: Stop) -> tuple[int, str, dict[Path, int]]:
    """Run until a file stands in the work folder, then stop. Gives exit status, stderr, and the files of finished tasks with their times."""
    line, environment = command(*raw, f"store={store}", "workers.processes=2")
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    limit = time.monotonic() + 120
    while not list(store.glob(f"corpus/.work-*/{at}")):
        assert process.poll() is None and time.monotonic() < limit, f"{at} was never seen"
        time.sleep(0.002)
    stop(process)
    _, said = process.communicate(timeout=60)
    limit = time.monotonic() + 20
    while _lives(process.pid):
        assert time.monotonic() < limit, "a worker has outlived the run"
        time.sleep(0.05)
    done = {path for path in store.glob("corpus/.work-*/*/*.json") if not path.parent.name.startswith(".")}
    times = {part: part.stat().st_mtime_ns for path in done for part in path.parent.glob(f"{path.stem}.*") if part.suffix != ".u32"}
    return process.returncode, said, times


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _kept(times: dict[Path, int]) -> bool:
    return all(path.stat().st_mtime_ns == stamp for path, stamp in times.items())


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()


def _ask_to_end(process: subprocess.Popen[str]) -> None:
    process.terminate()


def _kill_a_worker(process: subprocess.Popen[str]) -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.communicate()
        pytest.skip("which processes are workers is read from /proc, which is not there")
    workers = [int(child) for child in children.read_text("ascii").split() if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path, raw: list[str], undisturbed: dict[str, bytes]) -> None:
    """Killed again and again; half-written files of tasks that were not finished are there as well."""
    finished: dict[Path, int] = {}
    for at in ("clean/*.json", "near/answer-02.json", "mine/*.json"):
        status, _, times = _stopped(raw, tmp_path, at, _kill)
        assert status == -signal.SIGKILL and times.keys() > finished.keys()
        assert _kept(finished), "what was finished is not done again"
        finished = times
        (work,) = tmp_path.glob("corpus/.work-*")
        for name in ("sign/000-00000.npz", "near/answer-09.npz", "write/002-00000.passages.jsonl", "index/00000.npz", "mine/003-00000.jsonl"):
            part = work / name
            if part not in times:
                part.write_bytes(b'{"half": ')
    done = run(*raw, f"store={tmp_path}", "workers.processes=2")
    assert done.returncode == 0, done.stderr
    assert contents(published(tmp_path)) == undisturbed
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == ["CURRENT", published(tmp_path).name], "the work is put away"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "stop", "status", "told"),
    [
        ("sign/*.json", _ask_to_end, 130, "medrag: interrupted; run the same command again to go on"),
        (
            "near/question-*.json",
            _kill_a_worker,
            2,
            "medrag: a worker process was ended from outside (out of memory?); run the same command again to go on",
        ),
    ],
)
def test_an_end_from_outside_is_told_in_one_line(
    tmp_path: Path, raw: list[str], undisturbed: dict[str, bytes], at: str, stop: Stop, status: int, told: str
) -> None:
    found, said, finished = _stopped(raw, tmp_path, at, stop)
    assert found == status
    assert [line for line in said.splitlines() if line.startswith("medrag:")] == [told] and "Traceback" not in said
    assert said.rstrip().endswith(told), "nothing is said after it"
    assert finished and not list(tmp_path.glob("corpus/v*"))
    done = run(*raw, f"store={tmp_path}", "workers.processes=1")
    assert done.returncode == 0, done.stderr
    assert contents(published(tmp_path)) == undisturbed


def test_a_full_disk_leaves_work_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt can write four files and part of a fifth."""
    parts = [source(tmp_path / f"part{number}.jsonl", many(12, number)) for number in range(3)]
    settings = config(negatives=2, dev_share=0.2, test_share=0.2)
    whole = prepare.prepare(parts, settings, tmp_path / "whole", False, ALONE)
    left = [0]

    def limited(function: Callable[..., Any]) -> Callable[..., Any]:
        def writes(path: Path, *arguments: Any) -> Any:
            if left[0] == 0:
                path.write_bytes(b"{")
                raise OSError(28, "No space left on device", str(path))
            left[0] -= 1
            return function(path, *arguments)

        return writes

    for module in (stages, write):
        monkeypatch.setattr(module, "write_rows", limited(module.write_rows))
    for module in (stages, groups, write):
        monkeypatch.setattr(module, "save_arrays", limited(module.save_arrays))
    monkeypatch.setattr(files, "write_jsonl", limited(files.write_jsonl))
    store, attempts = tmp_path / "store", 0
    while True:
        left[0] = 4 if attempts < 40 else 1000
        try:
            made = prepare.prepare(parts, settings, store, False, ALONE)
            break
        except OSError:
            pass
        attempts += 1
        assert not list(store.glob("corpus/v*")) and not list(store.glob("corpus/.staging-*"))
        assert len(list(store.glob("corpus/.work-*"))) == 1
    assert attempts > 8
    assert contents(made.path) == contents(whole.path)


def test_what_is_refused_is_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is refused would be refused again: its work is put away. One that is interrupted is kept."""
    parts = [source(tmp_path / "rows.jsonl", many(12))]
    for error, kept in ((ValueError("this is refused"), False), (KeyboardInterrupt(), True)):

        def fail(*arguments: Any, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(write, "save_plan", fail)
            with pytest.raises(type(error)):
                prepare.prepare(parts, config(), tmp_path / "store", False, ALONE)
        assert bool(list((tmp_path / "store").glob("corpus/.work-*"))) == kept
    (begun,) = (tmp_path / "store").glob("corpus/.work-*")
    stamps = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    prepare.prepare(parts, config(seed=1), tmp_path / "store", False, ALONE)
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == stamps, "other settings do not find the work"
    prepare.prepare(parts, config(), tmp_path / "store", False, ALONE)
    assert not list((tmp_path / "store").glob("corpus/.work-*"))
