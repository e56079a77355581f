"""Killed at any point a build goes on, and makes what it would have made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medrag.indexing.steps import Steps


def test_steps_are_done_once_and_damage_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[str] = []

    def run(fail_at: str = "", error: type[BaseException] = KeyboardInterrupt) -> None:
        with Steps(tmp_path, "0123456789abcdef") as steps:
            for name in ("one", "two"):

                def make(folder: Path, name: str = name) -> None:
                    (folder / "a").mkdir()
                    (folder / "a" / name).write_text(name, "utf-8")
                    if name == fail_at:
                        raise error("stopped")
                    made.append(name)

                steps.step(name, make)
            steps.link(tmp_path / "whole")

    with pytest.raises(KeyboardInterrupt):
        run("two")
    work = tmp_path / ".work-0123456789ab"
    assert made == ["one"] and (work / "one" / "a" / "one").exists() and not (work / "two").exists()
    with pytest.raises(KeyboardInterrupt):
        run("two")
    assert made == ["one"]
    (work / "one" / "a" / "one").write_text("0ne", "utf-8")
    (tmp_path / ".work-other").mkdir()
    run()
    assert made == ["one", "one", "two"] and not work.exists()
    said = capsys.readouterr().err
    assert "one is damaged and is made again" in said and ".work-other; delete it" in said
    assert sorted(path.name for path in (tmp_path / "whole" / "a").iterdir()) == ["one", "two"]
    with pytest.raises(ValueError, match="stopped"):
        run("two", ValueError)
    assert not work.exists(), "what is refused would be refused again"


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with Steps(tmp_path, "key"), pytest.raises(ValueError, match="another process is at work there"), Steps(tmp_path, "key"):
        pass


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """What tests/indexing/index_kill.py tells of 25 kills of ``build`` and of ``add`` each."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).parent / "index_kill.py"), str(tmp_path_factory.mktemp("killed")), "25"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, list[dict[str, object]]] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["build", "add"])
def test_killed_at_any_point_it_makes_what_it_would_have_made(verb: str, killed: dict[str, list[dict[str, object]]]) -> None:
    trials = killed[verb]
    assert len(trials) == 25 and all(trial["killed"] for trial in trials), trials
    assert [trial for trial in trials if trial["differs"] or trial["left"]] == []
    assert sum(bool(trial["steps"]) for trial in trials) > 10, "most kills leave finished steps"
