"""What a real training step allocates on a CPU, by torch's own count, beside what was predicted.

    python tests/plan/measuring.py < CASES        a JSON list of arguments of the command on each line; one process, or one of several ranks

Prints a JSON line for each: ``predicted_bytes``, ``measured_bytes``, ``parts``, ``moment``.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from medrag import config, methods, schedule, train
from medrag.assemble import rehearsal
from medrag.config import Run
from medrag.methods.dense import Dense
from medrag.train.engines import Engine

MEASURED = "the step that is measured"


def measured_bytes(run: Run) -> int:
    """The most that is held in the second step of the method that ``rehearsal`` rehearses, made in earnest; ``train.connect`` comes first.

    All is counted from before it is made: weights, gradients, optimizer, what DeepSpeed holds. On a card it is torch's own count of it.
    """
    gc.collect()
    if run.hardware.device == "cuda":
        take_steps(run, torch.cuda.reset_peak_memory_stats)
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        take_steps(run, lambda: None)
    return most_held(found, MEASURED)


def take_steps(run: Run, between: Callable[[], None]) -> None:
    """Two steps; the second, before which ``between`` is called, is recorded under a name."""
    cut = schedule.shares(run.task, run.hardware, methods.the_class(run.task.method).whole_batch)
    method = rehearsal.stand_in(run)
    engine = Engine(method, run.task, run.hardware, cut)
    method.room = cut.room
    method.train()
    examples = rehearsal.examples(run)
    if isinstance(method, Dense):  # a question and a passage are a token short, so that there is padding, which costs an encoder a mask
        asked = method.retriever.config
        examples[0] = replace(examples[0], question=examples[0].question[: asked.question_tokens - 3])
        short = replace(method.library["right 0"], text=method.library["right 0"].text[: asked.passage_tokens - 3])
        method.library = {**method.library, "right 0": short}
    for name in ("step before", MEASURED):
        between()
        with record_function(name):
            for place in range(cut.accumulation):
                if place:
                    engine.more()
                batch = method.collate(examples[place * cut.micro : (place + 1) * cut.micro])
                engine.backward(engine.forward(batch.to(torch.device(run.hardware.device))))
            engine.step()
    engine.close()


def most_held(found: profile, within: str = "") -> int:
    """Bytes of the memory that was allocated since the profile began, when there was most of it; ``within`` what was recorded under this name."""
    with tempfile.TemporaryDirectory() as folder:
        found.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text("utf-8"))["traceEvents"]
    window = [(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("name") == within and event.get("cat") == "user_annotation"]
    held = most = 0
    for at, size in sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"):
        held += size
        if not within or window[0][0] <= at <= window[0][1]:
            most = max(most, held)
    return int(most)


def compare(arguments: Sequence[str]) -> dict[str, Any]:
    """Prediction and measurement of the run that these arguments make."""
    run = config.compose(arguments)
    train.connect(run.hardware)
    found = rehearsal.rehearse(run)
    return {
        "predicted_bytes": found.memory.total_bytes,
        "measured_bytes": measured_bytes(run),
        "parts": found.memory.parts,
        "moment": found.memory.moment,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(compare(json.loads(line))), flush=True)
