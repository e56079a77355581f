"""What joint training does to the retriever: the retrieval of trained artifacts beside that of the index they were trained with.

python tests/benchmarks/joint.py STORE/fid/v000001-... STORE/rag_token/v000001-... [--json FILE]

For every artifact the test questions are searched in all passages by its own question encoder, alone (dense) and fused with BM25 under the index's
weights. The table shows recall and MRR@10, the difference to the index's encoder with the 95% interval of a paired bootstrap over questions, and how
varied the first hits are (a retriever that collapses finds the same passages for all).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medrag import files, metrics, prepare, ranking
from medrag.assemble import trained
from medrag.retriever import Retriever
from medrag.types import Example

SYSTEMS = ("dense", None)
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+", help="trained methods that retrieve, of one index")
    parser.add_argument("--json", type=Path, help="where every question's ranks go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    artifacts = [files.open_artifact(path) for path in arguments.artifacts]
    index = artifacts[0].parent("index")
    if any(artifact.parent("index").hash != index.hash for artifact in artifacts):
        raise SystemExit("the artifacts were trained with different indexes")
    test = [example for example in prepare.read(index.parent("corpus")).test if example.positives]
    measured = {"as indexed": ranks(trained.restore(index.parent("dense"), index), test)}
    for artifact in artifacts:
        measured[told(artifact)] = ranks(trained.restore(artifact, index), test)
    print(table(measured))
    if arguments.json:
        kept = {name: {key: np.asarray(value).tolist() for key, value in row.items()} for name, row in measured.items()}
        arguments.json.write_text(json.dumps(kept), "utf-8")


def told(artifact: files.Artifact) -> str:
    """The method, and its options that bear on the retriever."""
    task = artifact.manifest["config"]["task"]
    options = [f"{name}={task['options'][name]}" for name in ("retriever_loss", "leave_out_own") if name in task["options"]]
    return " ".join([task["method"], *options])


def ranks(method: torch.nn.Module, test: list[Example]) -> dict[str, npt.NDArray[np.float64]]:
    """Ranks of the first right passage (infinite: not found), and the variety of the first hits."""
    retriever = getattr(method.eval(), "retriever", None)
    assert isinstance(retriever, Retriever)
    found = {str(system): ranking.ranked(retriever, system, test) for system in SYSTEMS}
    return found | {"distinct": np.array([ranking.variety(retriever, [example.question for example in test], 5)["distinct_first_hits"]])}


def table(measured: dict[str, dict[str, npt.NDArray[np.float64]]]) -> str:
    """Markdown."""
    lines = [
        "| | " + " | ".join(f"{name} R@1 / R@10 / R@100 | MRR@10 | less as indexed" for name in ("dense", "fusion")) + " | distinct first hits |"
    ]
    lines.append("|---" * 8 + "|")
    first = next(iter(measured.values()))
    reciprocal = ranking.MEASURES["MRR@10"]
    for name, row in measured.items():
        cells = []
        for system in map(str, SYSTEMS):
            recalls = " / ".join(f"{100 * ranking.MEASURES[f'recall@{depth}'](row[system]).mean():.1f}" for depth in (1, 10, 100))
            change = metrics.mean_with_interval(reciprocal(row[system]) - reciprocal(first[system]), RESAMPLES, 0)
            less = "" if row is first else f"{100 * change.mean:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
            cells += [recalls, f"{100 * reciprocal(row[system]).mean():.1f}", less]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {row['distinct'][0]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
