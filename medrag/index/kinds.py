"""Kinds of index: which one suits so many vectors, and what Faiss calls it.

Measured on mixtures of Gaussians of width 256, on one core: see tests/benchmarks/index.py. N vectors, D width.
"""

from __future__ import annotations

import math
import re

KINDS = ("auto", "flat", "sq8", "ivf", "ivfpq", "hnsw")
FLAT_COMPONENTS = 1 << 26
"""auto scans exactly up to this many components (262,144 vectors of width 256): about 13 ms for one question on one core, 1.6 ms in a batch"""
LISTS = 2048
"""lists of an IVF at most: with the cap a vector costs the same to train and to add at every size, so that a build is linear in the vectors"""
POINTS = 39
"""training vectors a centroid: what Faiss asks for at least"""
CODEWORDS = 256
"""centroids of each piece of a PQ code"""
LINKS = 32
PROBED_VECTORS = 12_288
"""vectors in the lists that a search looks into, and the fewest lists"""
LEAST_PROBES = 16


def automatic(count: int, width: int, memory_gib: float) -> str:
    """The kind for ``count`` vectors (N), the first of these that holds:

    - ``flat`` up to ``FLAT_COMPONENTS`` components (N D) that fit into ``memory_gib`` GiB: exact, no build, quick; also where PQ has too few;
    - ``ivf`` where its N (D + 8) bytes fit, one byte a component and eight for the row;
    - ``ivfpq``, N (D / 4 + 8) bytes.

    The float32 vectors themselves stay in memory-mapped files for every kind. Raises ValueError where no memory is allowed.
    """
    if memory_gib <= 0:
        raise ValueError(f"index.memory_gib={memory_gib}: more than 0 is needed")
    memory_bytes = memory_gib * 2**30
    if count < CODEWORDS * POINTS or (count * width <= FLAT_COMPONENTS and count * width * 4 <= memory_bytes):
        return "flat"
    return "ivf" if count * (width + 8) <= memory_bytes else "ivfpq"


def recipe(kind: str, count: int, width: int) -> str:
    """Faiss' factory string of a kind for ``count`` vectors; "" for ``flat``. Raises ValueError where they are too few to train it.

    IVF has 4 sqrt(N) lists, but at most ``LISTS`` and one for ``POINTS`` vectors. A piece of a PQ code stands for up to four components.
    """
    lists = max(1, min(round(4 * math.sqrt(count)), LISTS, count // POINTS))
    pieces = next(width // size for size in (4, 3, 2, 1) if width % size == 0)
    named = {
        "flat": ("", 0),
        "sq8": ("SQ8", 1),
        "ivf": (f"IVF{lists},SQ8", 1),
        "ivfpq": (f"IVF{lists},PQ{pieces}", CODEWORDS),
        "hnsw": (f"HNSW{LINKS},SQ8", 1),
    }
    asked = re.search(r"IVF(\d+)", kind)
    centroids = max(1, int(asked[1]) if asked else 1, CODEWORDS if "PQ" in kind else 1)
    string, least = named.get(kind, (kind, POINTS * centroids))
    if count < least:
        raise ValueError(f"index.kind={kind}: {count} vectors are too few to train it, {least} are needed; allowed for every number: auto, flat")
    return string


def usual_probes(lists: int, count: int) -> int:
    """IVF lists to look into, or HNSW's efSearch (``lists`` = 0), for a recall@10 of about .97 on clustered vectors.

    What has to be looked at is a number of vectors, not of lists: recall .974 took 128 lists of 87 vectors at 120 thousand, .976 took 16 lists of
    586 at 1.2 million.
    """
    return min(lists, max(LEAST_PROBES, math.ceil(PROBED_VECTORS * lists / count))) if lists else 128
