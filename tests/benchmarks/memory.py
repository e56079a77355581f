"""Memory of a training step: what is predicted without allocating it beside what a real step of the real engine allocates on a CPU.

    python tests/benchmarks/memory.py [--methods dense closed_book rag_token fid] [--sizes tiny small medium] [--settings]

Every row is full, weights are random. A JSON line for each case, then a table by part in MiB. ``--settings``: the settings beside fp32 without ZeRO
(bf16, recomputing, ZeRO 1 to 3, accumulation), for the generator at the tiny size. Each case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[2]
METHODS = ("dense", "closed_book", "rag_token", "fid")
MIB = 2**20
TINY = {"layers": 2, "width": 128, "heads": 2, "feed_forward": 256, "vocabulary_tokens": 8000}
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {"generator": TINY, "encoder": {"layers": 2, "width": 64, "heads": 4, "feed_forward": 128, "vocabulary_tokens": 2000}},
    "small": {"generator": {"layers": 4, "width": 256, "heads": 4, "feed_forward": 768, "vocabulary_tokens": 20_000}, "encoder": {"layers": 4}},
    "medium": {"generator": {}, "encoder": {}},
}
TOKENS = {"tiny": 64, "small": 128, "medium": 256}
BATCH = {"tiny": 4, "small": 8, "medium": 8}
MICRO = {"rag_token": {"tiny": 2, "small": 2, "medium": 2}, "fid": {"tiny": 2, "small": 2, "medium": 2}}
SETTINGS = {
    "fp32": [],
    "bf16": ["hardware.precision=bf16"],
    "recomputed": ["hardware.checkpointing=true"],
    "accumulated": ["hardware.micro_batch.default=2"],
    **{f"ZeRO {stage}": [f"hardware.zero_stage={stage}"] for stage in (1, 2, 3)},
    **{f"ZeRO {stage}, accumulated": [f"hardware.zero_stage={stage}", "hardware.micro_batch.default=2"] for stage in (1, 2, 3)},
    "ZeRO 2, offloaded": ["hardware.zero_stage=2", "hardware.offload=true"],
}


def arguments(method: str, size: str) -> list[str]:
    shapes = [f"model.{part}.{name}={value}" for part, shape in SIZES[size].items() for name, value in shape.items()]
    tokens = ("retriever.question_tokens", "retriever.passage_tokens") if method == "dense" else ("source_tokens", "answer_tokens")
    most = MICRO.get(method, BATCH)[size]
    texts = [f"task.options.{name}={TOKENS[size]}" for name in tokens]
    batch = [f"task.global_batch={BATCH[size]}", f"hardware.micro_batch.default={most}", "hardware.devices=1"]
    return ["model=reference", f"task={method}", *shapes, *texts, *batch]


def compared(case: list[str]) -> dict[str, Any]:
    started = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    script = HOME / "tests" / "plan" / "measuring.py"
    done = subprocess.run([sys.executable, script], input=json.dumps(case), capture_output=True, text=True, env=environment, cwd=HOME, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(lines[0])
    return found | {"ratio": round(found["predicted_bytes"] / found["measured_bytes"], 4), "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--settings", action="store_true")
    asked = parser.parse_args()
    cases = {f"{method}, {size}": arguments(method, size) for size in asked.sizes for method in asked.methods}
    if asked.settings:
        cases = {f"closed_book, {name}": [*arguments("closed_book", "tiny"), *setting] for name, setting in SETTINGS.items()}
    rows = {}
    for name, case in cases.items():
        rows[name] = compared(case)
        print(json.dumps({"case": name} | rows[name]), flush=True)
    parts = [part for part in next(iter(rows.values()))["parts"] if any(row["parts"][part] for row in rows.values())]
    print("".join(["\n| case | moment | ", *(f"{part} | " for part in parts), "predicted | measured | ratio |"]))
    print("|" + "---|" * (len(parts) + 5))
    for name, row in rows.items():
        figures = [row["parts"][part] / MIB for part in parts] + [row["predicted_bytes"] / MIB, row["measured_bytes"] / MIB]
        print(f"| {name} | {row['moment']} | " + "".join(f"{figure:.1f} | " for figure in figures) + f"{row['ratio']:.3f} |")


if __name__ == "__main__":
    main()
