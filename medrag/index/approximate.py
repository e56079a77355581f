"""Faiss indexes that propose rows: made, trained, and told how far to look. N vectors, D width."""

from __future__ import annotations

import re
from pathlib import Path

import faiss
import numpy as np

from medrag.index.kinds import CODEWORDS, KINDS, POINTS
from medrag.index.vectors import Vectors, check_finite


def empty(kind: str, string: str, width: int) -> faiss.Index:
    """An untrained index by inner product, silent about few training points: ``kinds.recipe`` has counted them."""
    allowed = f"allowed: {', '.join(KINDS)}, or a factory string of Faiss for width {width}"
    try:
        made = faiss.index_factory(width, string, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"index.kind={kind}: {_reason(error)}; {allowed}") from error
    if made.metric_type != faiss.METRIC_INNER_PRODUCT or isinstance(made, faiss.IndexIDMap | faiss.IndexRefine) or "IVF0" in string:
        raise ValueError(f"index.kind={kind}: rows by inner product alone are kept here; {allowed}")
    if isinstance(made, faiss.IndexIVF):
        made.cp.min_points_per_centroid = 1
    if isinstance(made, faiss.IndexIVFPQ):
        made.pq.cp.min_points_per_centroid, made.pq.cp.niter = 1, 10
        # It takes longer than all other training at small sizes, and only orders the codes for a search that is not used here.
        made.do_polysemous_training = False  # type: ignore[attr-defined]
    return made


def trained(kind: str, string: str, vectors: Vectors) -> faiss.Index:
    """A trained index that holds nothing yet. Raises ValueError where Faiss cannot train it on these vectors."""
    made = empty(kind, string, vectors.width)
    count = min(len(vectors), max(POINTS * lists(made), 256 * CODEWORDS if "PQ" in string else CODEWORDS * POINTS))
    sample_ND = vectors.take(np.linspace(0, len(vectors) - 1, count).astype(np.int64))
    check_finite(sample_ND)
    try:
        made.train(sample_ND)
    except RuntimeError as error:
        raise ValueError(f"index.kind={kind}: Faiss could not train {string} on {count} vectors: {_reason(error)}") from error
    return made


def read(path: Path, size: tuple[int, int]) -> faiss.Index:
    """A memory-mapped file. Raises ValueError where it is no index by inner product of so many vectors of that width: ``size`` is (N, D)."""
    try:
        made = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise ValueError(f"{path}: Faiss cannot read it: {_reason(error)}") from error
    if made.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"{path}: an index by inner product is needed, not one by metric {made.metric_type}")
    if (made.ntotal, made.d) != size:
        raise ValueError(f"{path}: holds {made.ntotal} vectors of width {made.d}, but there are {size[0]} of width {size[1]}")
    return made


def lists(index: faiss.Index) -> int:
    """Lists of an IVF, also behind a transform; 0: there are none."""
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return int(getattr(index, "nlist", 0))


def parameters(index: faiss.Index, probes: int) -> faiss.SearchParameters | None:
    """What makes a search look into this many lists, or Faiss' efSearch; None: there is nothing to choose."""
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=parameters(faiss.downcast_index(index.index), probes))  # type: ignore[call-arg]
    if lists(index):
        return faiss.SearchParametersIVF(nprobe=min(probes, lists(index)))  # type: ignore[call-arg]
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=probes)  # type: ignore[attr-defined,no-any-return]
    return None


def _reason(error: Exception) -> str:
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error).strip().splitlines()[0]).split("Error: ")[-1]
