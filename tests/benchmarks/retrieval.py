"""Each choice of the dense retriever switched off or changed in turn, on a prepared corpus: what it does to retrieval from the full pool.

python tests/benchmarks/retrieval.py STORE --out FOLDER --base task.epochs=4 ... [--variant NAME=key=value,key=value ...]

Every variant is trained by `medrag train task=dense` with the base's settings and its own changes, from the same seed; the passages are
encoded, the fusion is tuned on the development questions, and the test questions are searched in all passages. The table shows dense and
fusion, and the difference to the base with the 95% interval of a paired bootstrap over questions. What is trained already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medrag import assemble, config, files, metrics, ranking
from medrag.assemble import trained
from medrag.indexing import tuning
from medrag.retriever import Retriever

BASE = "base"
SYSTEMS = ("dense", ranking.FUSION)
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="a store with a corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder for ranks, one JSON a variant, and the table")
    parser.add_argument("--base", nargs="*", default=[], help="key=value of every run")
    parser.add_argument("--variant", action="append", default=[], help="NAME=key=value,key=value; several may be given")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    variants = {BASE: list[str]()}
    for variant in arguments.variant:
        name, _, changes = variant.partition("=")
        variants[name] = changes.split(",")
    for name, changes in variants.items():
        path = arguments.out / f"{name}.json"
        settings = [f"store={arguments.store}", "task=dense", *arguments.base, *changes]
        if not path.is_file() or json.loads(path.read_text("utf-8"))["settings"] != settings[1:]:
            files.write_json(path, measured(settings, arguments.out))
            print(f"{name}: done", file=sys.stderr)
        text = table(arguments.out, list(variants))
        files.write_text(arguments.out / "table.md", text)
    print(text)


def measured(settings: Sequence[str], folder: Path) -> dict[str, object]:
    """Ranks of the first right passage of every test question, found by each signal and by their fusion."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "medrag", "train", *settings], check=True)
    seconds = time.monotonic() - started
    run = config.compose(settings)
    torch.set_num_threads(2)
    data = assemble.corpus(run)
    method = trained.restore(files.current(Path(run.store), "dense"), None).eval()
    retriever = getattr(method, "retriever", None)
    assert isinstance(retriever, Retriever)
    retriever.search = run.index
    retriever.remember(data.passages, lexical=False, progress=True)
    assert retriever.memory is not None
    for unit in run.index.lexical:
        # BM25 is the same for all variants: counted once
        lexical, kept = retriever.new_lexical(unit), folder / f"bm25-{unit}"
        if kept.is_dir():
            lexical = type(lexical).load(kept, retriever.segmenter, unit)
        else:
            lexical.build([retriever.searched(passage) for passage in data.passages])
            lexical.save(kept)
        retriever.memory.lexicals[unit] = lexical
    tuned = tuning.tune(retriever, data.dev)
    test = [example for example in data.test if example.positives]
    ranks = {ranking.NAMES[name]: ranking.ranked(retriever, name, test) for name in retriever.signals}
    ranks[ranking.FUSION] = ranking.ranked(retriever, None, test)
    return {
        "settings": list(settings[1:]),
        "seconds": round(seconds),
        "weights": tuned["weights"],
        "ranks": {name: [None if np.isinf(rank) else int(rank) for rank in rank_Q] for name, rank_Q in ranks.items()},
    }


def table(folder: Path, names: Sequence[str]) -> str:
    """Markdown: every variant that is measured, and its difference to the base."""
    found = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in names if (folder / f"{name}.json").is_file()}
    lines = []
    for system in SYSTEMS:
        lines += [f"| {system} | " + " | ".join(ranking.MEASURES) + " | MRR@10 less base | minutes |", "|---|" + "---|" * (len(ranking.MEASURES) + 2)]
        for name, row in found.items():
            scores = [f"{100 * of(_ranks(row, system)).mean():.1f}" for of in ranking.MEASURES.values()]
            of = ranking.MEASURES["MRR@10"]
            change = metrics.mean_with_interval(of(_ranks(row, system)) - of(_ranks(found[BASE], system)), RESAMPLES, 0)
            shown = "" if name == BASE else f"{100 * change.mean:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
            lines.append(f"| {name} | " + " | ".join(scores) + f" | {shown} | {row['seconds'] / 60:.0f} |")
        lines.append("")
    return "\n".join(lines)


def _ranks(row: dict[str, dict[str, list[int | None]]], system: str) -> npt.NDArray[np.float64]:
    return np.array([np.inf if rank is None else rank for rank in row["ranks"][system]], dtype=np.float64)


if __name__ == "__main__":
    main()
