"""Seconds that `medrag plan` predicts beside those that the same steps take on this CPU, as JSON lines.

    python tests/benchmarks/seconds.py [--steps 2] [--tasks dense closed_book rag_token fid] [--sizes tiny small reference] [--precision fp32]
    python tests/benchmarks/seconds.py --ways [--steps 2] [--tasks closed_book rag_token] [--sizes reference]

A step is the training engine's: forward, backward, clipping and AdamW, one process with one thread, every row full, random weights. Measured is the
processor time of the fastest step after a first one, so that other programs of the machine count as little as can be; the machine's speed is
measured anew for each line. The last line has the ratio predicted / measured over all: geometric mean, smallest and largest.

``--ways``: what less memory costs in speed: the same step of four examples at once, one at a time, and at once but recomputed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time

import torch

from medrag import methods, schedule, train
from medrag.assemble import rehearsal
from medrag.config import Run, compose
from medrag.plan import seconds
from medrag.train.engines import Engine

MICRO = {"tiny": 8, "small": 8, "reference": 1}
"""examples of a forward pass, two of which make a step; dense takes both at once"""


def run_of(task: str, size: str, precision: str) -> Run:
    micro = MICRO[size]
    words = [f"task={task}", f"model={size}", "hardware=cpu", "hardware.devices=1", "hardware.threads=1", f"hardware.precision={precision}"]
    return compose([*words, f"hardware.micro_batch.{task}={2 * micro if task == 'dense' else micro}", f"task.global_batch={2 * micro}"])


WAYS = {
    "at once": ["hardware.micro_batch.default=4"],
    "one at a time": ["hardware.micro_batch.default=1"],
    "recomputed": ["hardware.micro_batch.default=4", "hardware.checkpointing=true"],
}


def compare_ways(task: str, size: str, steps: int) -> None:
    first = 0.0
    for name, words in WAYS.items():
        start = [f"task={task}", f"model={size}", "hardware=cpu", "hardware.devices=1", "hardware.threads=1", "task.global_batch=4"]
        taken = measured(compose([*start, *words]), steps)
        first = first or taken
        print(json.dumps({"task": task, "model": size, "way": name, "seconds": round(taken, 2), "times": round(taken / first, 3)}), flush=True)


def measured(run: Run, steps: int) -> float:
    """Processor seconds of the fastest step."""
    torch.manual_seed(0)
    cut = schedule.shares(run.task, run.hardware, methods.the_class(run.task.method).whole_batch)
    method = rehearsal.stand_in(run)
    method.room = cut.room
    engine = Engine(method, run.task, run.hardware, cut)
    method.train()
    batches = [method.collate(rehearsal.examples(run)[: cut.micro]) for _ in range(cut.accumulation)]
    found = []
    for _ in range(1 + steps):
        started = time.process_time()
        for place, batch in enumerate(batches):
            if place:
                engine.more()
            engine.backward(engine.forward(batch))
        engine.step()
        found.append(time.process_time() - started)
    engine.close()
    return min(found[1:])


def predicted(run: Run) -> tuple[seconds.Seconds, seconds.Speed]:
    speed = seconds.measured(run.hardware.precision, 1)
    told = rehearsal.rehearse(run)
    return seconds.seconds(told.work, told.accumulation, told.trained_parameters, run.hardware, speed), speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", default=["dense", "closed_book", "rag_token", "fid"])
    parser.add_argument("--sizes", nargs="+", default=list(MICRO), choices=list(MICRO))
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--ways", action="store_true")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    train.connect(run_of("dense", "tiny", "fp32").hardware)
    if asked.ways:
        for size in asked.sizes:
            for task in asked.tasks:
                compare_ways(task, size, asked.steps)
        return
    ratios = []
    for size in asked.sizes:
        for task in asked.tasks:
            run = run_of(task, size, asked.precision)
            told, speed = predicted(run)
            taken = measured(run, asked.steps)
            ratios.append(told.step / taken)
            row = {"task": task, "model": size, "precision": asked.precision, "predicted": told.step, "measured": taken, "ratio": ratios[-1]}
            row |= {"optimizer": told.optimizer, "GFLOP/s": speed.flops_a_second / 1e9, "GB/s": speed.bytes_a_second / 1e9}
            print(json.dumps({name: value if isinstance(value, str) else float(f"{value:.3g}") for name, value in row.items()}), flush=True)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(json.dumps({"steps": len(ratios), "mean": round(mean, 3), "smallest": round(min(ratios), 3), "largest": round(max(ratios), 3)}))


if __name__ == "__main__":
    main()
