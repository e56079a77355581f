"""Runs that are asked to stop, or killed, as real processes: saved, left by all, and gone on with as if undisturbed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from commands import DENSE, ROOT, TINY, copy_of, losses, medrag

from medrag.train import launching
from medrag.train.stopping import Watch

RUN = ["task.global_batch=16", "task.epochs=30", "task.validate_every_steps=50", *DENSE, *TINY]
STOPPED = r"medrag: stopped at step (\d+) of 150, which is saved; run the same command again to go on"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


class Started:
    """A command in a session of its own, as a terminal has it, and what it says."""

    def __init__(self, store: Path, told: Path, *command: str) -> None:
        self.store, self.told, self.begun = store, told, saved(store)
        with open(told, "w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=stream, stderr=stream, start_new_session=True)

    def all(self) -> list[psutil.Process]:
        """The processes of the run: all that name its store."""
        return [process for process in psutil.process_iter(["cmdline"]) if f"store={self.store}" in (process.info["cmdline"] or ())]

    def ranks(self) -> list[psutil.Process]:
        """Those that train: they have started no other of them."""
        found = self.all()
        return [process for process in found if not any(other.ppid() == process.pid for other in found)]

    def wait(self, until: Callable[[], bool], seconds: float = 200) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, self.told.read_text("utf-8")
            time.sleep(0.05)

    def trained(self, steps: int) -> bool:
        """Whether that many steps have been taken since this start."""
        return last_step(self.store) >= self.begun + steps

    def said(self) -> str:
        return self.told.read_text("utf-8")

    def lines(self) -> list[str]:
        """What medrag itself complained of."""
        return [line for line in self.said().splitlines() if line.startswith("medrag:")]

    def gone(self) -> bool:
        return self.process.poll() is not None and not self.all()

    def end(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        for process in self.all():
            process.kill()
        self.process.wait()


def last_step(store: Path) -> int:
    logs = list(store.glob("runs/dense-*/log.jsonl"))
    rows = logs[0].read_text("utf-8").splitlines() if logs else []
    return int(json.loads(rows[-2])["step"]) if len(rows) > 1 else 0


def saved(store: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in store.glob("runs/*/checkpoints/step-*")), default=0)


def group(number: int) -> Callable[[Started], None]:
    return lambda run: os.killpg(run.process.pid, number)


def alone(number: int) -> Callable[[Started], None]:
    return lambda run: run.process.send_signal(number)


def weights(store: Path) -> str:
    return str(json.loads(next(store.glob("dense/v*/MANIFEST.json")).read_text())["files"]["weights.safetensors"])


def test_one_process_stops_and_goes_on(corpus: Path, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM within a step, then Ctrl-C when only the artifact is left to be made."""
    whole, broken = copy_of(corpus, tmp_path / "whole"), copy_of(corpus, tmp_path / "broken")
    settings = ["hardware.devices=1", *RUN]
    assert medrag("train", f"store={whole}", *settings).returncode == 0
    command = [sys.executable, "-m", "medrag", "train", f"store={broken}", *settings]
    before = 0
    for number, ask in enumerate((group(signal.SIGINT), alone(signal.SIGTERM))):
        run = Started(broken, tmp_path / f"told {number}", *command)
        try:
            run.wait(lambda run=run: run.trained(10))  # type: ignore[misc]
            ask(run)
            run.wait(run.gone)
        finally:
            run.end()
        assert run.process.returncode == 130
        (line,) = run.lines()
        found = re.fullmatch(STOPPED, line)
        assert found and before < int(found[1]) == saved(broken) < 150
        assert "Traceback" not in run.said()
        before = int(found[1])
    run = Started(broken, tmp_path / "told", *command)
    try:
        run.wait(lambda: "best at step" in run.said())
        run.process.send_signal(signal.SIGINT)
        run.wait(run.gone)
    finally:
        run.end()
    assert run.process.returncode == 130, run.said()
    assert run.lines() == ["medrag: interrupted; run the same command again to go on"]
    assert not (broken / "dense" / "CURRENT").exists()
    done = medrag("train", f"store={broken}", *settings)
    assert done.returncode == 0, done.stderr
    assert losses(broken) == losses(whole) and weights(broken) == weights(whole)


def test_two_processes_stop_together_however_they_were_launched(corpus: Path, tmp_path: Path) -> None:
    """Through each of the two ways: SIGTERM to the command alone, Ctrl-C as a terminal sends it; then one rank killed. The last start finishes."""
    whole, broken = copy_of(corpus, tmp_path / "whole"), copy_of(corpus, tmp_path / "broken")
    settings = ["hardware.devices=2", *RUN]
    assert medrag("train", f"store={whole}", *settings).returncode == 0
    words = ["medrag", "train", f"store={broken}", *settings]
    ours = [sys.executable, "-m", *words]
    deepspeed = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "0", "--module", *words]
    for name, command, ask in (
        ("medrag, SIGTERM", ours, alone(signal.SIGTERM)),
        ("medrag, Ctrl-C", ours, group(signal.SIGINT)),
        ("deepspeed, SIGTERM", deepspeed, alone(signal.SIGTERM)),
        ("deepspeed, Ctrl-C", deepspeed, group(signal.SIGINT)),
    ):
        before = saved(broken)
        run = Started(broken, tmp_path / name, *(str(launching.free_port()) if word == "0" else word for word in command))
        try:
            run.wait(lambda run=run: run.trained(5))  # type: ignore[misc]
            assert len(run.ranks()) == 2
            ask(run)
            run.wait(run.gone)
        finally:
            run.end()
        (line,) = run.lines()
        found = re.fullmatch(STOPPED, line)
        assert found and before < int(found[1]) == saved(broken) < 150, name
        if command is ours:
            assert run.process.returncode == 130 and "Traceback" not in run.said(), name
    before = saved(broken)
    run = Started(broken, tmp_path / "killed", *ours, "task.save_every_minutes=0")
    try:
        run.wait(lambda: run.trained(5))
        rank = max(run.ranks(), key=lambda process: process.environ()["RANK"])
        rank.kill()
        run.wait(run.gone)
    finally:
        run.end()
    assert run.process.returncode == 2
    assert run.lines() == ["medrag: a process of this run was ended by SIGKILL; run the same command again to go on from the last checkpoint"]
    assert before < saved(broken) < 150
    done = medrag("train", f"store={broken}", *settings)
    assert done.returncode == 0, done.stderr
    assert losses(broken) == losses(whole) and weights(broken) == weights(whole)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_signal_before_training_ends_with_one_line(devices: int, corpus: Path, tmp_path: Path) -> None:
    store = copy_of(corpus, tmp_path / "store")
    run = Started(store, tmp_path / "told", sys.executable, "-m", "medrag", "train", f"store={store}", f"hardware.devices={devices}", *RUN)
    try:
        run.wait(lambda: sum(any("torch" in library.path for library in process.memory_maps()) for process in run.ranks()) == devices)
        run.process.send_signal(signal.SIGTERM)
        run.wait(run.gone)
    finally:
        run.end()
    assert run.process.returncode == 130
    assert run.said().splitlines() == ["medrag: interrupted; run the same command again to go on"]


def test_a_second_ctrl_c_ends_at_once() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Watch() as watch:
        assert not watch.asked
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
