"""Launched by itself, by the ``deepspeed`` command and on two machines: the same losses and weights; and one line where it cannot be."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import DENSE, ROOT, TINY, copy_of, losses, medrag

from medrag.hardware import Hardware
from medrag.train import launching

RUN = ["task.global_batch=16", "task.epochs=2", *DENSE, *TINY, "task.options.negatives=0", "task.options.title_share=1"]
"""nothing in it is drawn for each rank"""
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in RANKS} | {"OMP_NUM_THREADS": "1"}
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical"]


def deepspeed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The ``deepspeed`` command."""
    return subprocess.run([*DEEPSPEED, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)


def complaints(words: str) -> list[str]:
    return [line for line in words.splitlines() if "medrag: " in line]


def manifest(store: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(store.glob("dense/v*/MANIFEST.json")).read_text("utf-8"))
    return found


def test_both_ways_of_launching_make_the_same_artifact(corpus: Path, tmp_path: Path) -> None:
    ours, theirs = copy_of(corpus, tmp_path / "ours"), copy_of(corpus, tmp_path / "theirs")
    done = medrag("train", f"store={ours}", "hardware.devices=2", *RUN)
    assert done.returncode == 0, done.stderr
    assert "deepspeed" not in done.stdout + done.stderr, "the launcher is not heard"
    hosts = tmp_path / "hosts"
    hosts.write_text("# this machine alone\nlocalhost slots=2\n", "utf-8")
    where = ["--hostfile", str(hosts), "--no_ssh_check", "--master_addr", "127.0.0.1", "--master_port", str(launching.free_port())]
    done = deepspeed(*where, "--module", "medrag", "train", f"store={theirs}", "hardware.devices=2", *RUN)
    assert done.returncode == 0, done.stderr
    assert len(losses(ours)) == 10 and losses(ours) == losses(theirs)
    assert manifest(ours)["key"] == manifest(theirs)["key"]
    assert manifest(ours)["files"]["weights.safetensors"] == manifest(theirs)["files"]["weights.safetensors"]


def test_what_is_wrong_is_said_once(corpus: Path, tmp_path: Path) -> None:
    store = copy_of(corpus, tmp_path / "store")
    settings = [f"store={store}", "hardware.devices=2", *RUN, "task.options.negatives=-1"]
    words = "medrag: task.options.negatives=-1; it must be 0 or more"
    done = medrag("train", *settings)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", [words])
    done = deepspeed("--num_gpus", "2", "--master_port", str(launching.free_port()), "--module", "medrag", "train", *settings)
    assert done.returncode == 2 and complaints(done.stdout + done.stderr) == [words]
    assert not list(store.glob("dense/v*")) and not list(store.glob("runs/*"))


def test_before_ranks_are_connected_the_first_of_each_machine_complains(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launching.first_to_say()
    for rank, local, speaks in (("0", "0", True), ("1", "1", False), ("2", "0", True), ("3", "1", False)):
        for name, value in {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        assert launching.first_to_say() is speaks
        assert launching.processes_here(Hardware(devices=4)) == 2
        with pytest.raises(ValueError, match=r"4 processes were launched, but hardware\.devices=3"):
            launching.connect(Hardware(devices=3))


@contextlib.contextmanager
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, 10.77.0.1 and 10.77.0.2, as two machines that share their disks."""
    names = [f"medrag-{uuid.uuid4().hex[:6]}-{end}" for end in "ab"]
    cables = [f"mr{uuid.uuid4().hex[:8]}{end}" for end in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
            for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
                ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", cable)
                for device in ("lo", cable):
                    ip("-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not allowed here: {error}")
        yield names[0], names[1]
    finally:
        for name in names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                ip("netns", "delete", name)


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip of iproute2")
def test_two_machines_learn_what_one_does(corpus: Path, tmp_path: Path) -> None:
    """Each with a launcher of its own and one process; and where one process is killed, the other one ends and says so."""
    alone, shared = copy_of(corpus, tmp_path / "alone"), copy_of(corpus, tmp_path / "shared")
    hosts = tmp_path / "hosts"
    hosts.write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n", "utf-8")
    settings = [f"store={shared}", "hardware.devices=2", *RUN]

    def start(names: tuple[str, str], *changes: str) -> list[subprocess.Popen[str]]:
        where = ["--hostfile", str(hosts), "--no_ssh", "--master_addr", "10.77.0.1", "--master_port", "29500", "--module", "medrag", "train"]
        return [
            subprocess.Popen(
                ["ip", "netns", "exec", name, *DEEPSPEED, "--node_rank", str(number), *where, *settings, *changes],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for number, name in enumerate(names)
        ]

    def heard(launchers: list[subprocess.Popen[str]]) -> list[str]:
        return ["".join(launcher.communicate(timeout=240)) for launcher in launchers]

    with machines() as names:
        launchers: list[subprocess.Popen[str]] = []
        try:
            launchers += start(names)
            said = heard(launchers)
            assert [launcher.returncode for launcher in launchers] == [0, 0], said
            launchers = start(names, "task.epochs=400", "task.save_every_minutes=0")
            while not list(shared.glob("runs/dense-*/checkpoints/step-00000030")):
                assert all(launcher.poll() is None for launcher in launchers), heard(launchers)
                time.sleep(0.02)
            second = next(rank for rank in ranks(shared) if rank.environ()["RANK"] == "1")
            second.kill()
            said = heard(launchers)
            assert complaints("".join(said)) == [
                "medrag: another process of this run has ended; run the same command again to go on from the last checkpoint"
            ]
            assert not ranks(shared)
        finally:
            for process in ranks(shared):
                process.kill()
            for launcher in launchers:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()
    assert medrag("train", f"store={alone}", "hardware.devices=1", *RUN).returncode == 0
    finished = next(path for path in shared.glob("runs/dense-*") if not list(path.glob("checkpoints/step-00000030")))
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text("utf-8").splitlines()]
    assert {row["step"]: row["loss"] for row in rows if "loss" in row} == pytest.approx(losses(alone), abs=2e-4)


def ranks(store: Path) -> list[psutil.Process]:
    """The processes that train in a store: those that started no other."""
    found = [process for process in psutil.process_iter(["cmdline"]) if f"store={store}" in (process.info["cmdline"] or ())]
    return [process for process in found if not any(other.ppid() == process.pid for other in found)]


def test_cards_are_those_that_the_environment_names() -> None:
    two = Hardware(device="cuda", devices=2)
    assert launching.cards({}, two) == [0, 1]
    assert launching.cards({"CUDA_VISIBLE_DEVICES": "3, 1,0"}, two) == ["3", "1"]
    assert launching.cards({"CUDA_VISIBLE_DEVICES": "3,1"}, Hardware(devices=2)) == [0, 1]
