"""One DeepSpeed loop for every method.

What is asked for (``schedule.Task``) and what it runs on (``Hardware``) are kept apart: the number of devices, the micro batch and the
precision change speed and memory, never the optimisation. Everything random is seeded by step and rank, and which examples make up a step is a
function of its number, so that a resumed run goes on as if it had not been interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch
import torch.distributed as dist

from medrag import files, schedule
from medrag import hardware as machine
from medrag.hardware import Hardware
from medrag.methods import Method
from medrag.schedule import Sampler, Shares, Task, rate, shares
from medrag.train import checkpoints, guard, stopping
from medrag.train.checkpoints import BEST, State
from medrag.train.engines import Engine, deepspeed_config
from medrag.train.launching import connect, launched, parted, processes_here, relaunch
from medrag.train.progress import BOARD, LOG, Progress, count_tokens, peak_memory_gib
from medrag.types import Example

__all__ = ["BEST", "BOARD", "LOG", "State", "connect", "deepspeed_config", "fit", "launched", "parted", "processes_here", "relaunch"]


def fit(method: Method, train: Sequence[Example], dev: Sequence[Example], task: Task, hardware: Hardware, seed: int, folder: Path) -> State:
    """Train ``method`` in place and return where the run ended; its best weights stand in ``folder / BEST``.

    ``folder`` holds the run's checkpoints, its ``log.jsonl`` and TensorBoard's files as well; a run that finds a whole checkpoint there goes on
    from it. ``connect`` must have been called. Afterwards ``method`` is of no more use: make another and load the best weights into it.
    Raises KeyboardInterrupt where it was asked to stop, after saving, and ValueError where the loss stays bad.
    """
    machine.check(hardware)
    schedule.check(task)
    cut = shares(task, hardware, method.whole_batch)
    world, rank = dist.get_world_size(), dist.get_rank()
    sampler = Sampler([len(example.question) + len(example.answers[0]) for example in train], task.global_batch, seed)
    steps = max(1, round(task.epochs * sampler.steps_per_epoch))
    every = task.validate_every_steps or sampler.steps_per_epoch
    device = torch.device(hardware.device, int(os.environ.get("LOCAL_RANK", "0")) if hardware.device == "cuda" else 0)
    folder.mkdir(parents=True, exist_ok=True)

    engine = Engine(method, task, hardware, cut)
    method.room = cut.room
    renews = type(method).renew is not Method.renew
    state = _resume(engine, folder)
    progress = Progress(folder, task, state, steps, every, device, shown=rank == 0)
    saved = time.monotonic()
    with stopping.Watch() as watch, closing(engine), progress:
        while not _over(state, steps):
            if renews:
                with engine.whole():
                    method.renew(train, folder, state.step / sampler.steps_per_epoch, checkpoints.oldest_step(folder) / sampler.steps_per_epoch)
            method.train()
            _seed(seed, state.step, rank)
            mine = sampler.batch(state.step)[rank * task.global_batch // world : (rank + 1) * task.global_batch // world]
            batches = [method.collate([train[number] for number in mine[at : at + cut.micro]]) for at in range(0, len(mine), cut.micro)]
            units, tokens = _sums(device, sum(batch.weight for batch in batches), sum(map(count_tokens, batches)))
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
            taken = False
            if reason := guard.bad_loss(mean, state, task):
                engine.discard()
            elif not (taken := engine.step()):
                reason = guard.bad_gradient(state, hardware)
            guard.learn(mean, reason, state)
            state.step += 1
            progress.step(mean, learning_rate, units, tokens, taken)
            if reason:
                progress.note(guard.write(folder, state.step, rank, mean, reason, [train[number] for number in mine]))
                guard.stop_if_hopeless(reason, state, task, hardware, folder)
            if (state.step % every == 0 or state.step == steps) and guard.worth_validating(state, steps):
                _validate(engine, dev, task, cut, state, folder, progress)
            elapsed, asked = _sums(device, time.monotonic() - saved, watch.asked)
            due = elapsed / world > 60 * task.save_every_minutes and not state.skipped_in_a_row  # the weights may be what is bad
            if due or asked or _over(state, steps):
                _save(engine, folder, state)
                saved = time.monotonic()
            if asked:
                raise KeyboardInterrupt(f"stopped at step {state.step} of {steps}, which is saved; run the same command again to go on")
    state.peak_memory_gib = round(max(state.peak_memory_gib, peak_memory_gib(device)), 2)
    guard.check_result(state, folder)
    return state


def _over(state: State, steps: int) -> bool:
    return state.step >= steps or state.stopped


def _resume(engine: Engine, folder: Path) -> State:
    found = checkpoints.newest(folder, shown=dist.get_rank() == 0)
    step = found[1].step if found else 0
    seen = torch.tensor([step, -step], device=next(engine.method.parameters()).device)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    latest, earliest = int(seen[0]), -int(seen[1])
    if latest != earliest:
        raise ValueError(f"the processes find checkpoints of steps {earliest} to {latest} in {folder}; it must be one folder that all machines share")
    if found is None:
        return State()
    path, state, tensors = found
    checkpoints.check(path, tensors, {name: parameter.requires_grad for name, parameter in engine.method.named_parameters()})
    engine.restore(tensors)
    if dist.get_rank() == 0:
        print(f"going on from {path}", file=sys.stderr)
    return state


def _save(engine: Engine, folder: Path, state: State) -> None:
    tensors = engine.state()

    def write() -> None:
        files.sync(folder / LOG)  # a power cut must not take rows of steps that the checkpoint is past
        checkpoints.save(folder, state, tensors)

    _first_writes(engine, write)


def _validate(engine: Engine, dev: Sequence[Example], task: Task, cut: Shares, state: State, folder: Path, progress: Progress) -> None:
    """All ranks measure alike, each with all of the weights; the criterion is the first rank's first measure."""
    method = engine.method
    started = time.monotonic()
    method.eval()
    answerable = [example for example in dev if example.answers][: task.validate_examples]
    with engine.whole():
        if not all(bool(parameter.isfinite().all()) for parameter in method.parameters()):
            return  # a ranking would have a score all the same
        measured = method.validate(answerable, max(min(cut.micro, cut.room.examples or cut.micro), 8)) if answerable else {"steps": state.step}
    found = torch.tensor([next(iter(measured.values()))], dtype=torch.float64, device=next(method.parameters()).device)
    dist.broadcast(found, 0)
    score = float(found)
    if score > state.best:
        state.best, state.best_step, state.bad_validations = score, state.step, 0
        best = engine.weights()
        _first_writes(engine, lambda: checkpoints.save_best(folder, best))
    else:
        state.bad_validations += 1
        state.stopped = 0 < task.patience <= state.bad_validations
    progress.validated(score, measured, time.monotonic() - started)


def _first_writes(engine: Engine, write: Callable[[], object]) -> None:
    """Have the first rank write while the others wait. Where it cannot, it raises its OSError; the others only end, since that says it all."""
    failure = None
    if dist.get_rank() == 0:
        try:
            write()
        except OSError as error:
            failure = error
    (failed,) = _sums(next(engine.method.parameters()).device, failure is not None)
    if failure:
        raise failure
    if failed:
        raise SystemExit(2)


def _seed(seed: int, step: int, rank: int) -> None:
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)


def _sums(device: torch.device, *values: float) -> list[float]:
    """Each value summed over all ranks."""
    totals = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return [float(total) for total in totals]
