"""One DeepSpeed loop for every method.

What is asked for (``schedule.Task``) and what it runs on (``Hardware``) are kept apart: the number of devices, the micro batch and the
precision change speed and memory, never the optimisation. Everything random is seeded by step and rank, and which examples make up a step is a
function of its number, so that a resumed run goes on as if it had not been interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from medrag import hardware as machine
from medrag import weights
from medrag.hardware import Hardware
from medrag.methods import Method
from medrag.schedule import Sampler, Shares, Task, rate, shares
from medrag.train import checkpoints, guard, stopping
from medrag.train.checkpoints import State
from medrag.train.engines import Engine, deepspeed_config
from medrag.train.launching import connect, launched, relaunch
from medrag.train.progress import Progress, peak_memory_gib
from medrag.types import Example

__all__ = ["BEST", "State", "connect", "deepspeed_config", "fit", "launched", "relaunch"]
BEST = "best.safetensors"


def fit(method: Method, train: Sequence[Example], dev: Sequence[Example], task: Task, hardware: Hardware, seed: int, folder: Path) -> State:
    """Train ``method`` in place and return where the run ended; its best weights stand in ``folder / BEST``.

    ``folder`` holds the run's checkpoints, its ``log.jsonl`` and TensorBoard's files as well; a run that finds a whole checkpoint there goes on
    from it. ``connect`` must have been called. Afterwards ``method`` is of no more use: make another and load the best weights into it.
    Raises KeyboardInterrupt where it was asked to stop, after saving, and ValueError where the loss stays bad.
    """
    machine.check(hardware)
    cut = shares(task, hardware, method.whole_batch)
    world, rank = dist.get_world_size(), dist.get_rank()
    sampler = Sampler([len(example.question) + len(example.answers[0]) for example in train], task.global_batch, seed)
    steps = max(1, round(task.epochs * sampler.steps_per_epoch))
    every = task.validate_every_steps or sampler.steps_per_epoch
    device = torch.device(hardware.device, int(os.environ.get("LOCAL_RANK", "0")) if hardware.device == "cuda" else 0)
    folder.mkdir(parents=True, exist_ok=True)

    engine = Engine(method, task, hardware, cut)
    method.room = cut.room
    state = _resume(engine, folder)
    progress = Progress(folder, task, state, steps, device, shown=rank == 0)
    saved = time.monotonic()
    with stopping.Watch() as watch:
        while not _over(state, steps):
            method.renew(train, folder, state.step / sampler.steps_per_epoch, checkpoints.oldest_step(folder) / sampler.steps_per_epoch)
            method.train()
            _seed(seed, state.step, rank)
            mine = sampler.batch(state.step)[rank * task.global_batch // world : (rank + 1) * task.global_batch // world]
            batches = [method.collate([train[number] for number in mine[at : at + cut.micro]]) for at in range(0, len(mine), cut.micro)]
            (units,) = _sums(device, sum(batch.weight for batch in batches))
            learning_rate = rate(task, state.step, steps)
            engine.set_rate(learning_rate)
            nats = 0.0
            for place, batch in enumerate(batches):
                if place:
                    engine.more()
                loss = engine.forward(batch.to(device))
                nats += float(loss.detach()) * batch.weight
                engine.backward(loss * (batch.weight * world * cut.accumulation / units))
            mean = _sums(device, nats)[0] / units
            if reason := guard.bad(mean, state, task):
                engine.discard()
                guard.write(folder, state.step, rank, mean, [train[number] for number in mine])
                progress.note(reason)
                guard.stop_if_hopeless(reason, state, task)
            else:
                engine.step()
            state.step += 1
            progress.step(mean, learning_rate, units)
            if state.step % every == 0 or state.step == steps:
                _validate(engine, dev, task, cut, state, folder, progress)
            elapsed, asked = _sums(device, time.monotonic() - saved, watch.asked)
            if elapsed / world > 60 * task.save_every_minutes or asked or _over(state, steps):
                _save(engine, folder, state)
                saved = time.monotonic()
            if asked and not _over(state, steps):
                progress.close()
                raise KeyboardInterrupt(f"stopped at step {state.step} of {steps}, which is saved; run the same command again to go on")
    state.peak_memory_gib = round(max(state.peak_memory_gib, peak_memory_gib(device)), 2)
    progress.close()
    engine.close()
    return state


def _over(state: State, steps: int) -> bool:
    return state.step >= steps or state.stopped


def _resume(engine: Engine, folder: Path) -> State:
    found = checkpoints.newest(folder)
    if found is None:
        return State()
    path, state, tensors = found
    engine.restore(tensors)
    if dist.get_rank() == 0:
        print(f"going on from {path}", file=sys.stderr)
    return state


def _save(engine: Engine, folder: Path, state: State) -> None:
    tensors = engine.state()
    if dist.get_rank() == 0:
        checkpoints.save(folder, state, tensors)
    dist.barrier()


def _validate(engine: Engine, dev: Sequence[Example], task: Task, cut: Shares, state: State, folder: Path, progress: Progress) -> None:
    """All ranks measure alike, since ZeRO 3 may need them all for each layer; the criterion is the first rank's first measure."""
    method = engine.method
    started = time.monotonic()
    method.eval()
    answerable = [example for example in dev if example.answers][: task.validate_examples]
    measured = method.validate(answerable, max(min(cut.micro, cut.room.examples or cut.micro), 8)) if answerable else {"steps": state.step}
    found = torch.tensor([next(iter(measured.values()))], dtype=torch.float64, device=next(method.parameters()).device)
    dist.broadcast(found, 0)
    score = float(found)
    if score > state.best:
        state.best, state.best_step, state.bad_validations = score, state.step, 0
        _write_weights(engine, folder / BEST)
    else:
        state.bad_validations += 1
        state.stopped = 0 < task.patience <= state.bad_validations
    curves = {f"validation/{name}": value for name, value in measured.items()}
    progress.write(validation=score, validation_seconds=round(time.monotonic() - started, 2), **curves)


def _write_weights(engine: Engine, path: Path) -> None:
    tensors = engine.weights()
    if dist.get_rank() == 0:
        partial = path.with_suffix(".partial")
        weights.write(tensors, partial)
        os.replace(partial, path)


def _seed(seed: int, step: int, rank: int) -> None:
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)


def _sums(device: torch.device, *values: float) -> list[float]:
    """Each value summed over all ranks."""
    totals = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return [float(total) for total in totals]
