"""medrag's MinHash beside datasketch's, in one run: ``python tests/benchmarks/minhash.py [DATA]`` (needs ``pip install datasketch``)."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import grow
import numpy as np
import scale

from medrag import duplicates, text

PEER_ANSWERS, PEER_PAIRS, PEER_RUNS = 20_000, 2_000, 3


def peer(data: Path) -> dict[str, Any]:
    """``duplicates.sketch`` and datasketch's MinHash on the same character pairs: seconds, and the error of both estimates.

    Pairs of texts of every similarity: an answer, and one made of its beginning and half of another. Both are timed from the texts on, the
    median of three runs; datasketch hashes with its default (SHA-1 of every pair) and makes no bands, ``sketch`` does. Raises ValueError where
    datasketch is not installed.
    """
    try:
        datasketch = import_module("datasketch")
    except ImportError as error:
        raise ValueError("datasketch is not installed: pip install datasketch") from error
    made = grow.grower(data)
    keys = [text.key(made.row(number)[1]) for number in range(PEER_ANSWERS)]
    load = os.getloadavg()[0]
    times: dict[str, list[float]] = {"medrag": [], "splitting": [], "datasketch": []}
    for _ in range(PEER_RUNS):
        start = time.perf_counter()
        duplicates.sketch(keys)
        times["medrag"].append(time.perf_counter() - start)
        start = time.perf_counter()
        sets = [_pairs(key) for key in keys]
        times["splitting"].append(time.perf_counter() - start)
        datasketch.MinHash.bulk(sets, num_perm=duplicates.PERMUTATIONS)
        times["datasketch"].append(time.perf_counter() - start)
    ours, splitting, theirs = (median(times[name]) for name in ("medrag", "splitting", "datasketch"))

    random = Random(0)
    long = [key for key in keys if len(key) >= 40]
    first = random.sample(long, PEER_PAIRS)
    others = random.sample(long, PEER_PAIRS)
    second = [key[: int(len(key) * random.random())] + other[: len(other) // 2] for key, other in zip(first, others, strict=True)]
    exact = np.array([duplicates.jaccard(*map(duplicates.character_pairs, pair)) for pair in zip(first, second, strict=True)])
    signatures, _ = duplicates.sketch([*first, *second])
    rows = np.arange(PEER_PAIRS)
    one, other = (datasketch.MinHash.bulk([_pairs(key) for key in some], num_perm=duplicates.PERMUTATIONS) for some in (first, second))
    estimates = {
        "medrag": duplicates.similarity(signatures, rows, rows + PEER_PAIRS),
        "datasketch": np.array([left.jaccard(right) for left, right in zip(one, other, strict=True)]),
    }
    return {
        "answers": PEER_ANSWERS,
        "permutations": duplicates.PERMUTATIONS,
        "datasketch": datasketch.__version__,
        "medrag_seconds": round(ours, 2),
        "datasketch_seconds": round(theirs, 2),
        "datasketch_seconds_splitting": round(splitting, 2),
        "runs": PEER_RUNS,
        "ratio": round(theirs / ours, 2),
        "pairs": PEER_PAIRS,
        "exact_similarity_quartiles": [round(float(value), 3) for value in np.quantile(exact, (0.25, 0.5, 0.75))],
        "error": {
            name: {
                "mean": round(float((found - exact).mean()), 4),
                "root_mean_square": round(float(np.sqrt(((found - exact) ** 2).mean())), 4),
                "largest": round(float(np.abs(found - exact).max()), 3),
            }
            for name, found in estimates.items()
        },
        "expected_root_mean_square": round(float(np.sqrt((exact * (1 - exact)).mean() / duplicates.PERMUTATIONS)), 4),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "machine": scale.machine(),
    }


def _pairs(key: str) -> list[bytes]:
    return [pair.encode() for pair in duplicates.character_pairs(key)]


if __name__ == "__main__":
    print(json.dumps(peer(Path(sys.argv[1]) if len(sys.argv) > 1 else grow.DATA), indent=2))
