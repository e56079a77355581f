"""One DeepSpeed loop for every method. The only importer of deepspeed.

What is asked for (``schedule.Task``) and what it runs on (``Hardware``) are kept apart: the number of devices, the micro batch and the
precision change speed and memory, never the optimisation. Everything random is seeded by step and rank, so that a resumed run goes
on as if it had not been interrupted.
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from medrag import checkpoints, files, weights
from medrag import hardware as machine
from medrag.checkpoints import State
from medrag.hardware import Hardware
from medrag.methods import Method
from medrag.schedule import Sampler, Shares, Task, rate, shares
from medrag.types import Example


def deepspeed_config(task: Task, hardware: Hardware, cut: Shares) -> dict[str, Any]:
    """DeepSpeed's JSON. Buckets are small: the default would take 2 GB of an 11 GB card."""
    return {
        "train_batch_size": task.global_batch,
        "train_micro_batch_size_per_gpu": cut.micro,
        "gradient_accumulation_steps": cut.accumulation,
        "gradient_clipping": task.clip,
        "optimizer": {"type": "AdamW", "params": {"lr": task.learning_rate, "betas": [0.9, 0.999], "eps": 1e-8, "torch_adam": True}},
        "zero_optimization": {"stage": hardware.zero_stage, "reduce_bucket_size": 5_000_000, "allgather_bucket_size": 5_000_000},
        "fp16": {"enabled": hardware.precision == "fp16", "initial_scale_power": 12},
        "bf16": {"enabled": hardware.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
    }


def relaunch(arguments: Sequence[str], hardware: Hardware) -> int:
    """Start the ``deepspeed`` launcher on this machine with the same command line, and return its exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        str(hardware.devices),
        "--master_port",
        str(port),
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
    deepspeed = _deepspeed()
    if not launched():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    world = int(os.environ["WORLD_SIZE"])
    if world != hardware.devices:
        raise ValueError(f"{world} processes were launched, but hardware.devices={hardware.devices}")
    if not dist.is_initialized():
        deepspeed.init_distributed(dist_backend="gloo" if hardware.device == "cpu" else "nccl", verbose=False)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(hardware.threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", world))))


def _deepspeed() -> Any:
    """DeepSpeed without its chatter and, on machines without a compiler, without its compiled extensions."""
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def fit(method: Method, train: Sequence[Example], dev: Sequence[Example], task: Task, hardware: Hardware, seed: int, folder: Path) -> State:
    """Train ``method`` in place, to its best validation, and return where the run ended.

    ``folder`` holds the run's checkpoints, its ``log.jsonl``, TensorBoard's files and ``best.safetensors``; a run that finds a whole
    checkpoint there goes on from it. ``connect`` must have been called. Raises ValueError where a loss is not finite.
    """
    machine.check(hardware)
    cut = shares(task, hardware, method.whole_batch)
    world, rank = dist.get_world_size(), dist.get_rank()
    sampler = Sampler([len(example.question) + len(example.answers[0]) for example in train], task.global_batch, seed)
    steps = max(1, round(task.epochs * sampler.steps_per_epoch))
    every = task.validate_every_steps or sampler.steps_per_epoch
    device = torch.device(hardware.device, int(os.environ.get("LOCAL_RANK", "0")) if hardware.device == "cuda" else 0)
    folder.mkdir(parents=True, exist_ok=True)

    engine, *_ = _deepspeed().initialize(
        model=method, model_parameters=_groups(method, task.weight_decay), config=deepspeed_config(task, hardware, cut)
    )
    settings = {"devices": hardware.devices, "zero_stage": hardware.zero_stage, "precision": hardware.precision}
    method.room = cut.room
    state = checkpoints.resume(engine, folder, settings)
    log = _Log(folder, state.step) if rank == 0 else None
    saved = time.monotonic()
    bar = tqdm(total=steps, initial=state.step, desc=f"training {task.method}", unit=" steps", disable=rank != 0, file=sys.stderr, mininterval=1)
    while state.step < steps and not state.stopped:
        method.renew(train, folder, state.step / sampler.steps_per_epoch, checkpoints.oldest_step(folder) / sampler.steps_per_epoch)
        method.train()
        _seed(seed, state.step, rank)
        mine = sampler.batch(state.step)[rank * task.global_batch // world : (rank + 1) * task.global_batch // world]
        batches = [method.collate([train[number] for number in mine[at : at + cut.micro]]) for at in range(0, len(mine), cut.micro)]
        units = _sum(sum(batch.weight for batch in batches), device)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate(task, state.step, steps)
        nats = 0.0
        for batch in batches:
            loss = engine(batch.to(device))
            nats += float(loss.detach()) * batch.weight
            engine.backward(loss * (batch.weight * world * cut.accumulation / units))
            if batch is batches[-1]:
                _stop_unless_finite(mean := _sum(nats, device) / units, state.step, task)
            engine.step()
        state.step += 1
        bar.update()
        if log:
            log.write(state.step, loss=mean, learning_rate=rate(task, state.step - 1, steps), units=units)
            bar.set_postfix(loss=f"{mean:.3f}", best="-" if state.best == -math.inf else f"{state.best:.3f}")
        if state.step % every == 0 or state.step == steps:
            _validate(method, dev, task, cut, state, folder, log)
        elapsed = _sum(time.monotonic() - saved, device) / world
        if elapsed > 60 * task.save_every_minutes or state.step == steps or state.stopped:
            checkpoints.save(engine, folder, state, settings)
            saved = time.monotonic()
    bar.close()
    state.peak_memory_gib = round(max(state.peak_memory_gib, _peak_memory_gib(device)), 2)
    if log:
        log.close()
    method.float()
    weights.load(method, folder / "best.safetensors")
    return state


def _stop_unless_finite(loss: float, step: int, task: Task) -> None:
    if not math.isfinite(loss):
        raise ValueError(f"the loss of step {step} is {loss}; lower task.learning_rate={task.learning_rate}, or use hardware.precision=fp32")


def _validate(method: Method, dev: Sequence[Example], task: Task, cut: Shares, state: State, folder: Path, log: _Log | None) -> None:
    """Rank 0 measures; all ranks learn the criterion, which is the first of the measures."""
    found = torch.zeros(1, dtype=torch.float64)
    measured: Mapping[str, float] = {}
    started = time.monotonic()
    if dist.get_rank() == 0:
        method.eval()
        answerable = [example for example in dev if example.answers][: task.validate_examples]
        measured = method.validate(answerable, max(min(cut.micro, cut.room.examples or cut.micro), 8)) if answerable else {"steps": state.step}
        found[0] = next(iter(measured.values()))
    device = next(method.parameters()).device
    found = found.to(device)
    dist.broadcast(found, 0)
    score = float(found)
    if score > state.best:
        state.best, state.best_step, state.bad_validations = score, state.step, 0
        if log:
            _write_weights(method, folder / "best.safetensors")
    else:
        state.bad_validations += 1
        state.stopped = 0 < task.patience <= state.bad_validations
    if log:
        curves = {f"validation/{name}": value for name, value in measured.items()}
        log.write(state.step, validation=score, validation_seconds=round(time.monotonic() - started, 2), **curves)


def _write_weights(method: Method, path: Path) -> None:
    partial = path.with_suffix(".partial")
    weights.save(method, partial)
    os.replace(partial, path)


def _groups(method: Method, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _seed(seed: int, step: int, rank: int) -> None:
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)


def _sum(value: float, device: torch.device) -> float:
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


class _Log:
    """``log.jsonl`` and TensorBoard; a resumed run drops what was logged after its checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        kept = [row for row in files.read_jsonl(path) if row["step"] <= step] if path.is_file() else []
        files.write_jsonl(path, kept)
        self.stream = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self.started = time.monotonic()

    def write(self, step: int, **values: float) -> None:
        row = {"step": step, "seconds": round(time.monotonic() - self.started, 2), **values}
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.stream.close()
        self.board.close()
