"""Equal and nearly equal texts among millions: 64-bit hashes of their keys, MinHash signatures, bands and groups.

Two texts are near duplicates where the Jaccard similarity of their sets of character pairs (of ``text.key``) reaches a threshold. MinHash
estimates it (Broder 1997); bands find the candidates without comparing all with all (Leskovec, Rajaraman & Ullman 2014, section 3.4). A pair
of similarity s is a candidate with probability ``1 - (1 - s^6)^16``: 0.99 at 0.8, 0.87 at 0.7, 0.22 at 0.5. Whole signatures (standard error
0.04 at 0.8) then rule out most candidates, and the sets themselves decide: a near pair is near without doubt, one in a hundred is missed.

Shapes: N texts, P permutations, S bands, M character pairs of all texts, E pairs of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

PERMUTATIONS = 96
BANDS = 16
PAIRS_AT_ONCE = 8192
DOUBT = 0.12
"""three standard errors of an estimate: a candidate estimated so far below the threshold is not looked at"""

U8: TypeAlias = npt.NDArray[np.uint8]
U32: TypeAlias = npt.NDArray[np.uint32]
U64: TypeAlias = npt.NDArray[np.uint64]
Rows: TypeAlias = npt.NDArray[np.int64]
_draw = np.random.default_rng(20211).integers(0, 2**32, (2, PERMUTATIONS), np.uint32)
_FACTOR_P, _OFFSET_P = _draw[0] | np.uint32(1), _draw[1]


def hashes(keys: Sequence[str]) -> U64:
    """(N,) 64-bit hashes; zero for an empty key and for no other. Two of 26 million texts collide with probability 2e-5."""
    found = (int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") if key else 0 for key in keys)
    return np.fromiter(found, np.uint64, len(keys))


def sketch(keys: Sequence[str]) -> tuple[U8, U32]:
    """Signatures (N, P), one byte a permutation, and bands (N, S) of texts' keys; those of an empty key are zero."""
    codes_M, starts_N = _character_pairs(keys)
    least_NP = np.zeros((len(keys), PERMUTATIONS), np.uint32)
    filled = np.flatnonzero(np.diff(starts_N))
    first = 0
    while first < len(filled):
        low = starts_N[filled[first]]
        last = max(first + 1, int(np.searchsorted(starts_N[filled + 1], low + PAIRS_AT_ONCE, "right")))
        some = filled[first:last]
        values_PM = codes_M[None, low : starts_N[some[-1] + 1]] * _FACTOR_P[:, None] + _OFFSET_P[:, None]
        least_NP[some] = np.minimum.reduceat(values_PM, starts_N[some] - low, axis=1).T
        first = last
    rows = PERMUTATIONS // BANDS
    bands_NS = np.zeros((len(keys), BANDS), np.uint32)
    for row in range(rows):
        bands_NS = _mixed(bands_NS * np.uint32(31) + least_NP.reshape(-1, BANDS, rows)[:, :, row])
    return (least_NP >> np.uint32(24)).astype(np.uint8) ^ (least_NP & np.uint32(255)).astype(np.uint8), bands_NS


def _character_pairs(keys: Sequence[str]) -> tuple[U32, Rows]:
    """A hash for every pair of neighbouring characters, text after text, and where each text's begin: (M,), (N + 1,). One character is a pair."""
    lengths_N = np.fromiter(map(len, keys), np.int64, len(keys))
    points = np.frombuffer("".join(keys).encode("utf-32-le", "surrogatepass"), np.uint32)
    if len(points) == 0:
        return np.zeros(0, np.uint32), np.zeros(len(keys) + 1, np.int64)
    ends_N = np.cumsum(lengths_N)
    following = np.append(points[1:], np.uint32(0))
    following[ends_N[lengths_N == 1] - 1] = 0
    hashed = _mixed(_mixed(points) * np.uint32(0x9E3779B1) + following)
    across = np.zeros(len(points), bool)
    across[ends_N[lengths_N > 1] - 1] = True
    return hashed[~across], np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(lengths_N - 1, np.minimum(lengths_N, 1)))])


def _mixed(values: U32) -> U32:
    """The finaliser of MurmurHash3: every bit depends on every bit."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


def similarity(signatures_NP: U8, first_E: Rows, second_E: Rows) -> npt.NDArray[np.float64]:
    """The estimated Jaccard similarity of pairs of rows (E,); chance agreement of bytes (1 in 256) is taken off."""
    found_E = np.empty(len(first_E))
    for start in range(0, len(first_E), 100_000):
        some = slice(start, start + 100_000)
        found_E[some] = (signatures_NP[first_E[some]] == signatures_NP[second_E[some]]).mean(axis=1)
    return np.clip((found_E - 1 / 256) / (1 - 1 / 256), 0, 1)


def character_pairs(key: str) -> frozenset[str]:
    """The set whose Jaccard similarity is meant: pairs of neighbouring characters, or the one character."""
    return frozenset(map("".join, pairwise(key))) if len(key) > 1 else frozenset(key)


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """0..1; two empty sets have nothing in common."""
    both = len(first & second)
    return both / (len(first) + len(second) - both) if both else 0.0


def near_pairs(band_N: U32, rows_N: Rows, signatures: U8, threshold: float) -> tuple[Rows, Rows, int]:
    """Pairs of rows that share a band's value and may reach the threshold, and how many were compared.

    ``band_N`` are the values of one band for ``rows_N``, whose signatures stand in those rows of ``signatures``. In a run of equal values each
    row is compared with the one before it and with the first: chains and stars hold a group together without all pairs.
    """
    order = np.argsort(band_N, kind="stable")
    values, rows = band_N[order], rows_N[order]
    new = np.append(True, values[1:] != values[:-1])[: len(values)]
    begin = np.flatnonzero(new)
    first_of = begin[np.cumsum(new) - 1] if len(values) else begin
    follows = np.flatnonzero(~new)
    far = follows[follows - first_of[follows] > 1]
    first_E = np.concatenate([rows[follows - 1], rows[first_of[far]]])
    second_E = np.concatenate([rows[follows], rows[far]])
    near = similarity(signatures, first_E, second_E) >= threshold - DOUBT
    return first_E[near], second_E[near], len(first_E)


def components(count: int, first_E: Rows, second_E: Rows) -> Rows:
    """(N,) the smallest row of each row's connected component."""
    graph = coo_array((np.ones(len(first_E), bool), (first_E, second_E)), shape=(count, count))
    labels: npt.NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return smallest(labels)


def smallest(labels_N: npt.NDArray[np.integer] | U64) -> Rows:
    """(N,) the first row that has the same label."""
    _, first, where = np.unique(labels_N, return_index=True, return_inverse=True)
    found: Rows = first[where].astype(np.int64)
    return found
