"""Processes: started by the ``deepspeed`` launcher, joined into one group, here or on several machines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist

from medrag.hardware import Hardware
from medrag.train.engines import deepspeed


def relaunch(arguments: Sequence[str], hardware: Hardware) -> int:
    """Start the ``deepspeed`` launcher on this machine with the same command line, and return its exit status."""
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        str(hardware.devices),
        "--master_port",
        str(_free_port()),
        "--log_level",
        "error",
    ]
    environment = {"DS_ACCELERATOR": hardware.device, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | os.environ
    command = [*launcher, "--module", "medrag", "train", *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def launched() -> bool:
    """Whether a launcher (deepspeed, torchrun) has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def connect(hardware: Hardware) -> None:
    """Join the other ranks, or be a group of one. Raises ValueError where their number is not ``hardware.devices``."""
    if not launched():
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    world = int(os.environ["WORLD_SIZE"])
    if world != hardware.devices:
        raise ValueError(f"{world} processes were launched, but hardware.devices={hardware.devices}")
    if not dist.is_initialized():
        deepspeed().init_distributed(dist_backend="gloo" if hardware.device == "cpu" else "nccl", verbose=False)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(hardware.threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", world))))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
