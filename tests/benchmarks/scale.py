"""How long ``medrag prepare`` takes for how many rows, and what it takes of memory and disk.

    python tests/benchmarks/scale.py [20000 200000 2000000] --work FOLDER [--picture FILE.png] [--json FILE.json] [--real ROWS] [--keep]

For each size: ``grow.py`` writes the rows, then ``python -m medrag prepare`` runs as a process of its own on all cores, in a fresh store. A
size that the JSON file holds is not measured again: a run that was stopped goes on with the next one. A store is removed after its run.

- *seconds* are those of the whole process, from its start to its end; a stage ends when the last file was put into its folder. ``read``
  includes the start of Python and the hashing of the source, ``publish`` everything after hard negatives were found. Bands of the near
  duplicates of both sides are ``near``; ``gather`` and ``plan`` run on one core.
- *memory* is sampled every half second over the tree of processes: the sum of PSS (what is shared counts once), and the largest of one process.
  Mapped files count as far as they are resident, so that the sum is more than what must be there.
- *disk* is sampled every two seconds: the store (work folder, and the artifact as it grows), without the source.
- Sizes are not alike in everything: medical terms are counted in about 10,000 passages of any corpus (most of ``write`` at 20,000 rows, nothing
  at 2 million), and a file of 20,000 rows holds real rows alone, the longer ones mostly grown ones; ``--real 0`` makes them alike in that.
- The exponent is the slope of a least-squares line through log seconds over log rows. Fixed costs (start, dictionary) make small sizes slow and
  the exponent small: so figures are extrapolated twice, along that line, and from the largest size with the exponent of the two largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import grow
import numpy as np

ROOT = Path(__file__).parents[2]
SIZES = (20_000, 200_000, 2_000_000)
WANTED = (6_000_000, 26_000_000)
STAGES = (
    ("read", "read"),
    ("clean", "clean"),
    ("boilerplate", "boilerplate.json"),
    ("sign", "sign"),
    ("gather", "base.npy"),
    ("near", "near"),
    ("plan", "plan"),
    ("write", "write"),
    ("index", "index"),
    ("mine", "mine"),
)
"""each stage, and what in the work folder is last touched at its end"""
MEASURES = ("seconds", "memory_bytes", "process_bytes", "disk_bytes", "index_bytes")
MEMORY_SECONDS = 0.5
DISK_SECONDS = 2.0
STAGE_SECONDS = 0.05
"""shorter than publishing takes: the end of the stage before it must be seen"""
GIB = 2**30


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "cores_allowed": len(os.sched_getaffinity(0)), "memory_gib": round(memory / GIB, 1)}


def measure(rows: int, work: Path, made: grow.Grower, keep: bool = False) -> dict[str, Any]:
    """Grow, prepare and watch. Raises ValueError where ``prepare`` failed; its messages stand in ``WORK/prepare-ROWS.log``."""
    source, store, log = work / f"rows-{rows}.jsonl", work / f"store-{rows}", work / f"prepare-{rows}.log"
    start = time.perf_counter()
    if not source.exists():
        grow.grow(source, rows, made)
    grown = time.perf_counter() - start
    shutil.rmtree(store, ignore_errors=True)
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "medrag", "prepare", str(source.resolve()), f"store={store.resolve()}", "workers.processes=0"]
    with open(log, "w", encoding="utf-8") as stream:
        start, clock = time.perf_counter(), time.time()
        with subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream) as process:
            try:
                peaks, ends = _watch(process, store)
            except BaseException:
                process.terminate()
                raise
        seconds = time.perf_counter() - start
    if process.returncode:
        raise ValueError(f"prepare of {rows} rows ended with {process.returncode}; see {log}")
    statistics = json.loads(next((store / "corpus").glob("v*/statistics.json")).read_text("utf-8"))
    stages, before = {}, clock
    for stage, _ in STAGES:
        stages[stage] = round(max(0.0, ends.get(stage, before) - before), 2)
        before = max(before, ends.get(stage, before))
    stages["publish"] = round(clock + seconds - before, 2)
    found = {
        "rows": rows,
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds, 1),
        "stages_seconds": stages,
        **peaks,
        "index_bytes": statistics["duplicates"]["index_bytes"],
        "source_bytes": source.stat().st_size,
        "artifact_bytes": _size(store),
        "passages": statistics["passages"],
        "grow_seconds": round(grown, 1),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "machine": machine(),
    }
    if not keep:
        shutil.rmtree(store)
        source.unlink()
    return found


def _watch(process: subprocess.Popen[bytes], store: Path) -> tuple[dict[str, int], dict[str, float]]:
    """Peaks in bytes, and when each stage ended, in seconds since the epoch."""
    peaks = {"memory_bytes": 0, "process_bytes": 0, "disk_bytes": 0}
    ends: dict[str, float] = {}
    sampled = looked = 0.0
    while process.poll() is None:
        if time.monotonic() - sampled > MEMORY_SECONDS:
            sizes = _memory(process.pid)
            peaks["memory_bytes"] = max(peaks["memory_bytes"], sum(sizes))
            peaks["process_bytes"] = max(peaks["process_bytes"], max(sizes, default=0))
            sampled = time.monotonic()
        now = {}
        for folder in (store / "corpus").glob(".work-*"):
            for stage, name in STAGES:
                with suppress(FileNotFoundError):
                    now[stage] = (folder / name).stat().st_mtime
        # Once the artifact is there, the work folder is being removed: times of change say nothing any more.
        if not (store / "corpus" / "CURRENT").exists():
            ends |= now
        if time.monotonic() - looked > DISK_SECONDS:
            peaks["disk_bytes"] = max(peaks["disk_bytes"], _size(store))
            looked = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STAGE_SECONDS)
    return peaks, ends


def _memory(root: int) -> list[int]:
    """PSS of a process and all below it, in bytes."""
    psutil = import_module("psutil")
    sizes: list[int] = []
    try:
        family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return sizes
    for each in family:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError):
            sizes.append(int(each.memory_full_info().pss))
    return sizes


def _size(folder: Path) -> int:
    """Bytes of all files below a folder that is being written to."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size  # noqa: PTH118, PTH116
    return total


def fit(rows: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """(exponent, factor) of ``value = factor * rows ** exponent``, by least squares of the logarithms. Needs two sizes or more."""
    exponent, constant = np.polyfit(np.log(rows), np.log(np.maximum(values, 1e-9)), 1)
    return float(exponent), float(np.exp(constant))


def extrapolate(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each measure: its exponents, and what it comes to for ``WANTED`` rows. Empty with fewer than two sizes."""
    if len(measured) < 2:
        return {}
    found: dict[str, Any] = {}
    rows = [size["rows"] for size in measured]
    for name in MEASURES:
        values = [size[name] for size in measured]
        exponent, factor = fit(rows, values)
        last, _ = fit(rows[-2:], values[-2:])
        found[name] = {
            "exponent": round(exponent, 3),
            "exponent_of_the_two_largest": round(last, 3),
            "by_fit": {str(wanted): factor * wanted**exponent for wanted in WANTED},
            "from_largest": {str(wanted): values[-1] * (wanted / rows[-1]) ** last for wanted in WANTED},
        }
    return found


def table(measured: Sequence[dict[str, Any]], found: dict[str, Any]) -> str:
    """Markdown: what was measured, the stages, and what is extrapolated."""
    lines = [
        "| rows | seconds | rows/s | memory, all processes | memory, largest process | disk | duplicate index | load |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for size in measured:
        bytes_of = " | ".join(_shown(name, size[name]) for name in MEASURES[1:])
        load = f"{size['load_before']} to {size['load_after']}"
        lines.append(f"| {size['rows']:,} | {size['seconds']:,.0f} | {size['rows_per_second']:,.0f} | {bytes_of} | {load} |")
    names = list(measured[0]["stages_seconds"]) if measured else []
    lines += ["", f"| seconds of stages | {' | '.join(names)} |", "|--:" * (len(names) + 1) + "|"]
    lines += [f"| {size['rows']:,} | {' | '.join(format(size['stages_seconds'][name], ',.1f') for name in names)} |" for size in measured]
    if found:
        heads = [f"{wanted:,} rows" for wanted in WANTED]
        lines += ["", f"| extrapolated | exponent (two largest) | {' | '.join(heads)} |", "|---|--:|" + "--:|" * len(heads)]
        for name, what in found.items():
            both = " | ".join(f"{_shown(name, what['by_fit'][str(wanted)])} ({_shown(name, what['from_largest'][str(wanted)])})" for wanted in WANTED)
            lines.append(f"| {name.replace('_bytes', '')} | {what['exponent']:.2f} ({what['exponent_of_the_two_largest']:.2f}) | {both} |")
        lines += ["", "By the line through all sizes; in brackets, from the largest size with the exponent of the two largest."]
    return "\n".join(lines)


def _shown(name: str, value: float) -> str:
    if name == "seconds":
        return f"{value / 3600:,.1f} h" if value > 7200 else f"{value / 60:,.1f} min" if value > 300 else f"{value:,.0f} s"
    return f"{value / GIB:,.2f} GiB"


def draw(measured: Sequence[dict[str, Any]], found: dict[str, Any], path: Path) -> None:
    """Time, memory and disk over rows, all axes logarithmic; the extrapolation is dashed."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    rows = [size["rows"] for size in measured]
    panels = (
        (left, 1.0, {"seconds": "in all"}, "seconds"),
        (right, GIB, {"memory_bytes": "memory, all processes", "disk_bytes": "disk", "index_bytes": "duplicate index"}, "GiB"),
    )
    for axis, unit, names, label in panels:
        for name, said in names.items():
            (line,) = axis.plot(rows, [size[name] / unit for size in measured], "o-", label=said)
            if found:
                ahead = [found[name]["from_largest"][str(wanted)] / unit for wanted in WANTED]
                axis.plot([rows[-1], *WANTED], [measured[-1][name] / unit, *ahead], "o--", color=line.get_color(), markerfacecolor="white")
        axis.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
        axis.grid(alpha=0.3)
    for stage in sorted(measured[-1]["stages_seconds"], key=lambda stage: -measured[-1]["stages_seconds"][stage])[:5]:
        left.plot(rows, [max(size["stages_seconds"][stage], 0.05) for size in measured], ".:", linewidth=1, label=stage)
    left.set_title("medrag prepare: time, and its five longest stages")
    right.set_title("peak memory and disk (dashed: extrapolated)")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="time, memory and disk of medrag prepare for growing numbers of rows")
    parser.add_argument("sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--work", type=Path, required=True, help="where rows and stores are made; 2 million rows need some 10 GiB")
    parser.add_argument("--data", type=Path, default=grow.DATA)
    parser.add_argument("--real", type=int, default=None, help="how many real rows stand at the beginning of every file (all)")
    parser.add_argument("--json", type=Path, help="figures measured so far (WORK/scale.json)")
    parser.add_argument("--picture", type=Path, help="WORK/scale.png")
    parser.add_argument("--keep", action="store_true", help="leave rows and stores where they are")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    path: Path = given.json or given.work / "scale.json"
    about = machine()
    print(f"{about['cpu']}, {about['cores_allowed']} of {about['cores']} cores, {about['memory_gib']} GiB; load {os.getloadavg()[0]:.2f} at start")
    try:
        held = json.loads(path.read_text("utf-8")) if path.exists() else {"real": given.real, "sizes": []}
        if held["real"] != given.real:
            raise ValueError(f"--real {given.real}: the sizes in {path} were measured with {held['real']}; name another file")
        made = None
        for rows in sorted(set(given.sizes)):
            if all(size["rows"] != rows for size in held["sizes"]):
                made = made or grow.grower(given.data, real_first=given.real)
                held["sizes"] = sorted([*held["sizes"], measure(rows, given.work, made, given.keep)], key=lambda size: int(size["rows"]))
                _put(path, held)
        found = extrapolate(held["sizes"])
        _put(path, held | {"extrapolated": found})
        print(path.read_text("utf-8"))
        print(table(held["sizes"], found))
        draw(held["sizes"], found, given.picture or given.work / "scale.png")
    except ValueError as error:
        print(f"scale: {error}", file=sys.stderr)
        return 2
    print(f"load {os.getloadavg()[0]:.2f} at end")
    return 0


def _put(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
