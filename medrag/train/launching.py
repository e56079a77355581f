"""Processes: started by DeepSpeed's launcher, joined into one group, on this machine or on several.

On one machine ``medrag train ... hardware.devices=2`` launches them itself. On several, the ``deepspeed`` command does, once for all of them (it
needs pdsh, and ssh without a password), with ``hardware.devices`` the processes of all machines together::

    # hosts: a line for each machine, with as many slots as it has cards
    gpu-a slots=2
    gpu-b slots=1

    deepspeed --hostfile hosts --module medrag train task=dense hardware=1080ti hardware.devices=3 store=/shared/store

or, without ssh, once on each machine, the first of the file being rank 0 and the address of the others' meeting::

    deepspeed --hostfile hosts --no_ssh --node_rank 0 --master_addr gpu-a --master_port 29500 --module medrag train ...
    deepspeed --hostfile hosts --no_ssh --node_rank 1 --master_addr gpu-a --master_port 29500 --module medrag train ...

All machines need the same medrag at the same path and the same store (NFS will do): the first process alone writes, the others read. Where a
machine has several networks, GLOO_SOCKET_IFNAME (CPU) and NCCL_SOCKET_IFNAME (CUDA) name the one to use.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from medrag import hardware as machine
from medrag.hardware import Hardware
from medrag.train.engines import deepspeed
from medrag.train.stopping import Watch

STOPPED = 130
"""exit status of a process that was asked to stop"""
PARTED = re.compile(r"gloo.*(clos|reset|broken pipe)|remote process exited|NCCL communicator was aborted", re.IGNORECASE | re.DOTALL)
"""what a collective says when a rank is gone"""
PATIENCE_SECONDS = 10
"""how long a process whose fellow is gone waits for the launcher, which knows why, to end it"""


def relaunch(arguments: Sequence[str], hardware: Hardware) -> int:
    """Train with ``hardware.devices`` processes on this machine through DeepSpeed's launcher, and return the exit status.

    They form a session of their own, so that Ctrl-C reaches this process alone: it passes the wish to stop on to all ranks and waits for
    however long their last step and its saving take; a second Ctrl-C kills them. Raises KeyboardInterrupt where they were asked to stop before
    they could say so themselves, and ValueError where one was killed.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": cards(os.environ, hardware)}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}", f"--master_port={free_port()}"]
    command = [*launcher, "--log_level=critical", "--module", "medrag", "train", *arguments]
    environment = {"DS_ACCELERATOR": hardware.device} | os.environ
    with Watch() as watch:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            told = False
            while process.poll() is None:
                if watch.asked and not told:
                    _ask(process)
                    told = True
                time.sleep(0.1)
        except KeyboardInterrupt:
            _kill(process)
            raise KeyboardInterrupt("ended at once; run the same command again to go on from the last checkpoint") from None
        asked = watch.asked
    if process.returncode < 0:
        _kill(process)  # the launcher was killed: nobody else would end what it started
    if asked and process.returncode not in (0, 2, STOPPED):
        raise KeyboardInterrupt
    if process.returncode < 0 or process.returncode > STOPPED:
        number = abs(process.returncode) if process.returncode < 0 else 256 - process.returncode
        raise ValueError(f"a process of this run was ended by {_name(number)}; run the same command again to go on from the last checkpoint")
    return process.returncode


def launched() -> bool:
    """Whether a launcher (deepspeed, torchrun) has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def processes_here(hardware: Hardware) -> int:
    """How many of the run's processes this machine has."""
    if not launched():
        return hardware.devices
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or os.environ["WORLD_SIZE"])


def connect(hardware: Hardware) -> None:
    """Join the other ranks, or be a group of one. Raises ValueError where their number is not ``hardware.devices``, or they cannot meet."""
    machine.check(hardware)
    alone = not launched()
    if alone:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    world, here = int(os.environ["WORLD_SIZE"]), processes_here(hardware)
    if world != hardware.devices:
        raise ValueError(f"{world} processes were launched, but hardware.devices={hardware.devices}")
    os.environ.setdefault("DS_ACCELERATOR", hardware.device)
    if world > here and "GLOO_SOCKET_IFNAME" not in os.environ:
        os.environ["GLOO_SOCKET_IFNAME"] = _interface(os.environ["MASTER_ADDR"])
    if not dist.is_initialized():
        with contextlib.nullcontext() if alone else _ended_by_signals():
            try:
                deepspeed().init_distributed(dist_backend="gloo" if hardware.device == "cpu" else "nccl", verbose=False)
            except dist.DistNetworkError as error:
                place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                raise ValueError(f"the processes could not meet at {place}: {str(error).splitlines()[0]}") from error
    if hardware.threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(hardware.threads or max(1, len(os.sched_getaffinity(0)) // here))


def first_to_say() -> bool:
    """Whether it falls to this process to tell why the run ends, so that a person reads it once.

    Of connected ranks the first one that asks, rank 0 with a lead, below whose line it will stand; before, when all would say the same, the first
    one of each machine.
    """
    if not launched():
        return True
    if not dist.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    if dist.get_rank():
        time.sleep(0.5)
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=2)
        )
        return int(store.add("medrag: said", 1)) == 1
    except RuntimeError:
        return False  # the first rank is gone, which keeps the store: it spoke itself, or its launcher knows what killed it


def parted(error: RuntimeError) -> ValueError:
    """The error to raise in place of ``error``, if that comes from a rank that is gone; else ``error`` is raised again.

    Its launcher knows more, and ends this process meanwhile; this returns only where the rank was another machine's.
    """
    if not launched() or not PARTED.search(str(error)):
        raise error
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(PATIENCE_SECONDS)
    return ValueError("another process of this run has ended; run the same command again to go on from the last checkpoint")


def cards(environment: Mapping[str, str], hardware: Hardware) -> list[int | str]:
    """The cards to use: the first that CUDA_VISIBLE_DEVICES names, or that there are."""
    named = [word.strip() for word in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return [*named[: hardware.devices]] if hardware.device == "cuda" and named else [*range(hardware.devices)]


def _ask(launcher: subprocess.Popen[bytes]) -> None:
    """Ask the ranks to stop; where there are none yet, end the launcher."""
    if ranks := psutil.Process(launcher.pid).children():
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.terminate()
    else:
        os.killpg(launcher.pid, signal.SIGTERM)


def _kill(launcher: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Signals end the process at once: Python's own handlers would wait as long as the ranks wait for each other."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _interface(address: str) -> str:
    """The network interface that leads to ``address``: gloo's own guess, that of the host's name, is often the loopback."""
    family, kind, protocol, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        own = probe.getsockname()[0]
    names: dict[str, str] = {one.address: name for name, addresses in psutil.net_if_addrs().items() for one in addresses}
    return names[own]


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
