"""How long an index takes to build, and how many questions a second it answers at which recall.

    python tests/benchmarks/index.py build  [--sizes 12000 120000 1200000 3000000] [--kinds auto ivf ...] --work FOLDER --out FILE.json
    python tests/benchmarks/index.py search [--sizes 120000 1200000] [--kinds flat ivf ...] --work FOLDER --out FILE.json [--picture FILE.png]

Vectors: a mixture of Gaussians in two levels (topics, and clusters within a topic) whose sizes follow a power law and whose components fall off
as 1/sqrt(i), about 20 dimensions in effect; all of length 1, questions from the same mixture. ``--vectors FILE.npy`` takes real ones instead: rows
drawn at random, each moved by a tenth of the components' deviation; every hundredth is held back and moved in the same way for questions.

- Each measurement is a process of its own. *vectors* is the writing of the float32 shards with fsync, *build* is ``Index.build`` (training, adding)
  from the memory-mapped shards, *save* is ``Index.save`` with fsync. ``seconds`` by the wall, ``cpu_seconds`` over all threads.
- *memory*: the most anonymous memory seen (sampled every 20 ms), and the most of all that was resident, mapped files included.
- The exponent is the slope of a least-squares line through log seconds over log sizes; ``pairs`` are the slopes between neighbouring sizes. Where
  ``auto`` takes another kind at another size, its exponent joins unlike things.
- *questions_per_second*: 1,000 questions in one call, best of three; *milliseconds*: one question in one call, median of fifty. Recall@10 counts
  rows that exact search finds, too. Threads: as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medrag.index import Index
from medrag.index.vectors import Vectors

Floats = npt.NDArray[np.float32]
T = TypeVar("T")

SIZES = {"build": (12_000, 120_000, 1_200_000, 3_000_000), "search": (120_000, 1_200_000)}
KINDS = {"build": ("auto", "ivf"), "search": ("flat", "sq8", "ivf", "ivfpq", "hnsw")}
SHARD_ROWS = 50_000
QUESTIONS = 1000
MEMORY_GIB = 4.0
SWEEP = {"ivf": (4, 8, 16, 32, 64, 128, 256, 512), "ivfpq": (4, 8, 16, 32, 64, 128, 256, 512), "hnsw": (16, 32, 64, 128, 256, 512)}
"""probes, or HNSW's efSearch; a kind that is not named here has one point"""


class Mixture:
    """Blocks of vectors that depend on the seed and their number alone: a smaller set is the beginning of every larger one."""

    def __init__(self, width: int, topics: int, clusters: int, real: Path | None) -> None:
        world = np.random.default_rng(7)
        self._fall = (1.0 + np.arange(width)) ** -0.5
        self._fall /= np.linalg.norm(self._fall)
        self._topic = world.standard_normal((topics, width)) * self._fall
        self._cluster = world.standard_normal((topics * clusters, width)) * self._fall * 0.8 + np.repeat(self._topic, clusters, axis=0)
        share = (1.0 + np.arange(topics * clusters)) ** -0.7
        self._share = world.permutation(share / share.sum())
        self._real = None if real is None else np.load(real, mmap_mode="r")
        self.width = width if self._real is None else self._real.shape[1]

    def draw(self, number: int, rows: int, questions: bool = False) -> Floats:
        """Block ``number`` (rows, width) of the vectors, or of the questions."""
        rng = np.random.default_rng((1, number, questions))
        if self._real is None:
            chosen = rng.choice(len(self._share), rows, p=self._share)
            x_ND = self._cluster[chosen] + rng.standard_normal((rows, self.width)) * self._fall * 0.7
            return np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), np.float32)
        held = np.arange(len(self._real)) % 100 == 0
        chosen = np.sort(rng.choice(np.flatnonzero(held == questions), rows))
        x_ND = np.asarray(self._real[chosen], np.float32)
        return np.asarray(x_ND + 0.1 * x_ND.std(axis=0) * rng.standard_normal(x_ND.shape), np.float32)


class Meter:
    """Wall and CPU seconds of parts, and the most memory over all of them."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self.anonymous_bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def measure(self, name: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.parts[name] = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        return result

    def stop(self) -> dict[str, Any]:
        self._stopped.set()
        self._thread.join()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return self.parts | {"anonymous_bytes": self.anonymous_bytes, "resident_bytes": most}

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
            self.anonymous_bytes = max(self.anonymous_bytes, found)


def flush(folder: Path) -> None:
    """fsync every file, so that the page cache hides no writing."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write_vectors(mixture: Mixture, rows: int, folder: Path) -> dict[str, float]:
    """Shards 00000.npy, ...; the seconds are those of writing, not of drawing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wall = cpu = 0.0
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        x_ND = mixture.draw(number, min(SHARD_ROWS, rows - start))
        wall, cpu = wall - time.perf_counter(), cpu - time.process_time()
        with (folder / f"{number:05d}.npy").open("wb") as file:
            np.save(file, x_ND)
            file.flush()
            os.fsync(file.fileno())
        wall, cpu = wall + time.perf_counter(), cpu + time.process_time()
    return {"seconds": wall, "cpu_seconds": cpu}


def build_one(shards: Path, kind: str, work: Path) -> dict[str, Any]:
    """One build of one kind from mapped shards."""
    folder = work / "built"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    meter = Meter()
    vectors = Vectors.load(shards)
    index = meter.measure("build", lambda: Index.build(vectors, kind, MEMORY_GIB))

    def save() -> None:
        index.save(folder)
        flush(folder)

    meter.measure("save", save)
    size = sum(path.stat().st_size for path in folder.iterdir())
    shutil.rmtree(folder)
    return {"kind": index.kind, "factory": index.factory, "file_bytes": size} | meter.stop()


def search_one(shards: Path, kind: str, q_BD: Floats, work: Path) -> list[dict[str, Any]]:
    """Recall and speed of one kind over its sweep, searched as it is served: from the mapped files."""
    folder = work / "built"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    vectors = Vectors.load(shards)
    Index.build(vectors, kind, MEMORY_GIB).save(folder)
    exact_BK = Index.build(vectors, "flat", MEMORY_GIB).search(q_BD, 10)[1]
    index = Index.load(folder, vectors)
    points = []
    for probes in (*SWEEP.get(kind, ()), 0):
        index.probes = probes
        found_BK = index.search(q_BD, 10)[1]
        recall = np.mean([np.isin(want_K, row_K).mean() for row_K, want_K in zip(found_BK, exact_BK, strict=True)])
        batch = [_seconds(lambda: index.search(q_BD, 10)) for _ in range(3)]
        single = [_seconds(lambda at=at: index.search(q_BD[at : at + 1], 10)) for at in range(50)]  # type: ignore[misc]
        points.append(
            {
                "kind": kind,
                "factory": index.factory,
                "probes": probes,
                "recall": float(recall),
                "questions_per_second": len(q_BD) / min(batch),
                "milliseconds": 1000 * statistics.median(single),
            }
        )
    shutil.rmtree(folder)
    return points


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def exponents(sizes: Sequence[int], seconds: Sequence[float]) -> dict[str, Any]:
    """Slope by least squares, and between neighbouring sizes."""
    x, y = np.log(sizes), np.log(np.maximum(seconds, 1e-6))
    if len(x) < 2:
        return {}
    return {"exponent": float(np.polyfit(x, y, 1)[0]), "pairs": [float(slope) for slope in np.diff(y) / np.diff(x)]}


def slopes(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The exponents of each kind, part and clock."""
    made: dict[str, Any] = {}
    for kind in dict.fromkeys(row["asked"] for row in rows):
        own = [row for row in rows if row["asked"] == kind]
        sizes = [row["rows"] for row in own]
        made[kind] = {
            part: {clock: exponents(sizes, [row[part][clock] for row in own]) for clock in ("seconds", "cpu_seconds")}
            for part in ("vectors", "build", "save", "total")
        }
    return made


def alone(function: Callable[..., Any], *given: object) -> Any:
    """In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def builds(mixture: Mixture, sizes: Sequence[int], kinds: Sequence[str], work: Path) -> Iterator[dict[str, Any]]:
    """One row a size and kind; the shards of a size are written once and removed after it."""
    for size in sizes:
        written = write_vectors(mixture, size, work / "shards")
        for kind in kinds:
            row = {"asked": kind, "rows": size, "vectors": written} | alone(build_one, work / "shards", kind, work)
            row["total"] = {unit: sum(row[part][unit] for part in ("vectors", "build", "save")) for unit in ("seconds", "cpu_seconds")}
            yield row
        shutil.rmtree(work / "shards")


def searches(mixture: Mixture, sizes: Sequence[int], kinds: Sequence[str], work: Path) -> Iterator[dict[str, Any]]:
    """One row a point."""
    for size in sizes:
        write_vectors(mixture, size, work / "shards")
        for kind in kinds:
            for point in alone(search_one, work / "shards", kind, mixture.draw(0, QUESTIONS, questions=True), work):
                yield {"rows": size} | point
        shutil.rmtree(work / "shards")


def draw_picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Questions a second (log) over recall, a panel a size; a ring marks what ``probes`` = 0 chooses."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    sizes = sorted({row["rows"] for row in rows})
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4), squeeze=False, layout="constrained")
    for panel, size in zip(panels[0], sizes, strict=True):
        for number, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
            points = sorted((row["recall"], row["questions_per_second"], row["probes"]) for row in rows if (row["rows"], row["kind"]) == (size, kind))
            panel.plot([x for x, _, _ in points], [y for _, y, _ in points], marker=".", color=f"C{number}", label=kind)
            usual = [(x, y) for x, y, probes in points if probes == 0]
            panel.scatter(*zip(*usual, strict=True), s=90, facecolors="none", edgecolors=f"C{number}")
        panel.set(yscale="log", xlabel="recall@10", ylabel="questions a second", title=f"{size:,} vectors of width {rows[0]['width']}")
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "search"))
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--kinds", nargs="+")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--topics", type=int, default=2000)
    parser.add_argument("--clusters", type=int, default=4, help="in a topic")
    parser.add_argument("--vectors", type=Path, help="real vectors, .npy of float32")
    parser.add_argument("--work", type=Path, required=True, help="folder for temporary files; its shards/ and built/ are removed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="PNG of a search run")
    args = parser.parse_args()
    mixture = Mixture(args.width, args.topics, args.clusters, args.vectors)
    sizes, kinds = args.sizes or SIZES[args.what], args.kinds or KINDS[args.what]
    found: list[dict[str, Any]] = []
    about = {"width": mixture.width, "vectors": str(args.vectors or "mixture"), "topics": args.topics, "clusters": args.clusters}
    about |= {"processors": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS"), "machine": platform.machine()}
    for row in (builds if args.what == "build" else searches)(mixture, sizes, kinds, args.work):
        found.append(row | {"width": mixture.width})
        print(json.dumps(row), flush=True)
        report: dict[str, Any] = {"about": about, "rows": found}
        if args.what == "build":
            report["exponents"] = slopes(found)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.picture and args.what == "search":
        draw_picture(found, args.picture)


if __name__ == "__main__":
    main()
