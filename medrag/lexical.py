"""BM25 (Robertson & Zaragoza 2009, in Lucene's form) over jieba words, or over characters and pairs of them.

What is kept is how often each unit stands in each document, shard by shard, and the documents' lengths: new documents are a new shard,
and nothing of the old ones is counted again. The shards are memory-mapped once they are saved.

Shapes: N documents, n documents of a shard, P postings of a shard, V units known when the shard was made.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from medrag import text
from medrag.text import Segmenter, Synonyms

UNITS = ("words", "characters")
RUN = 64
SHARD_DOCUMENTS = 50_000
"""documents whose units are held in memory at once: about 2 GiB at 500 units each"""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shard:
    """``rows_P[start_V[u]:start_V[u + 1]]`` are the shard's documents (from 0) that hold unit ``u``, ``counts_P`` says how often."""

    start_V: npt.NDArray[np.int64]
    """V + 1"""
    rows_P: npt.NDArray[np.int32]
    counts_P: npt.NDArray[np.uint16]
    lengths_n: npt.NDArray[np.int32]
    """units of each document"""
    units: list[str]
    """those that no earlier shard had, in the order of their numbers"""
    folder: Path | None = None
    """where it is saved"""

    ARRAYS: ClassVar[tuple[str, ...]] = ("start_V", "rows_P", "counts_P", "lengths_n")

    def save(self, folder: Path, number: int) -> None:
        """Write ``00012.start_V.npy``, ... and, last, ``00012.units.json``; hard links where the shard is saved elsewhere already."""
        for part in (*(f"{name}.npy" for name in self.ARRAYS), "units.json"):
            target = folder / self.file(number, part)
            if self.folder is not None:
                _link(self.folder / target.name, target)
            elif part == "units.json":
                target.write_text(json.dumps(self.units, ensure_ascii=False), "utf-8")
            else:
                np.save(target, getattr(self, part.removesuffix(".npy")), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, number: int) -> Shard:
        start_V, rows_P, counts_P, lengths_n = (
            np.asarray(np.load(folder / cls.file(number, f"{name}.npy"), mmap_mode="r", allow_pickle=False)) for name in cls.ARRAYS
        )
        return cls(start_V, rows_P, counts_P, lengths_n, json.loads((folder / cls.file(number, "units.json")).read_text("utf-8")), folder)

    @staticmethod
    def file(number: int, part: str) -> str:
        return f"{number:05d}.{part}"


@dataclass(frozen=True, slots=True)
class Found:
    """What BM25 says of one question."""

    own_N: Floats
    """scores from the question's own units"""
    synonyms_N: Floats
    """scores from units of their synonyms that the question lacks; to be weighted"""
    known: float
    """the share of the question's units that some document has, 0..1"""


class Lexical:
    """BM25 scores of all documents for a question."""

    SYNONYMS = "synonyms.txt"

    def __init__(self, segmenter: Segmenter, unit: str = "words", synonyms: Synonyms | None = None, k1: float = 1.5, b: float = 0.75) -> None:
        if unit not in UNITS:
            raise ValueError(f"index.lexical={unit!r}; allowed: {', '.join(UNITS)}")
        self.segmenter = segmenter
        self.unit = unit
        self.synonyms = synonyms or Synonyms()
        self.synonym_weight = 0.25
        self.k1, self.b = k1, b
        self.shards: list[Shard] = []
        self._number: dict[str, int] = {}
        self._prepare()

    def __len__(self) -> int:
        return len(self._norm_N)

    def tokens(self, document: str) -> list[str]:
        """The units that BM25 counts."""
        return self.segmenter.words(document) if self.unit == "words" else text.characters_and_pairs(document)

    # -- counting ---------------------------------------------------------------------------------------------------------------

    def build(self, documents: Iterable[str]) -> None:
        """Index the documents in place of what was there; their rows are numbered in this order."""
        self.shards, self._number = [], {}
        self.add(documents)

    def add(self, documents: Iterable[str]) -> None:
        """Append documents, a new shard for every ``SHARD_DOCUMENTS``: scores are as if all documents had been built at once.

        In memory are one shard's units (about 20 bytes each while they are sorted), the postings (6 bytes each) of shards not yet saved,
        and the dictionary of all units.
        """
        rest = iter(documents)
        while some := list(islice(rest, SHARD_DOCUMENTS)):
            self.shards.append(self._shard(some))
        self._prepare()

    def _shard(self, documents: Sequence[str]) -> Shard:
        numbers, lengths, known = array("i"), array("i"), len(self._number)
        for document in documents:
            tokens = self.tokens(document)
            numbers.extend(self._number.setdefault(token, len(self._number)) for token in tokens)
            lengths.append(len(tokens))
        lengths_n = np.array(lengths, dtype=np.int32)
        holder = np.repeat(np.arange(len(lengths_n)), lengths_n)
        posting_P, count_P = np.unique(np.array(numbers, dtype=np.int64) * len(lengths_n) + holder, return_counts=True)
        unit_P, row_P = np.divmod(posting_P, len(lengths_n))
        start_V = np.searchsorted(unit_P, np.arange(len(self._number) + 1)).astype(np.int64)
        counts_P = np.minimum(count_P, np.iinfo(np.uint16).max).astype(np.uint16)
        return Shard(start_V, row_P.astype(np.int32), counts_P, lengths_n, list(islice(self._number, known, None)))

    def _prepare(self) -> None:
        """What all shards together say: the length norm of every document, and in how many documents each unit stands."""
        length_N = np.concatenate([np.zeros(0, np.int32), *(shard.lengths_n for shard in self.shards)])
        mean = max(float(length_N.mean()), 1.0) if len(length_N) else 1.0
        self._norm_N: Floats = (self.k1 * (1 - self.b + self.b * length_N / mean)).astype(np.float32)
        self._holders_V: npt.NDArray[np.int64] = np.zeros(len(self._number), np.int64)
        for shard in self.shards:
            self._holders_V[: len(shard.start_V) - 1] += np.diff(shard.start_V)

    # -- asking -----------------------------------------------------------------------------------------------------------------

    def find(self, question: str) -> Found:
        """``sum_u idf_u f_ud / (f_ud + k1 (1 - b + b |d| / mean |d|))`` over the question's units u, for every row."""
        tokens = self.tokens(question)
        own = [self._number[token] for token in tokens if token in self._number]
        extra = [self._number[token] for token in self._extra(question, tokens) if token in self._number]
        own_N = self._sum(own)
        return Found(own_N, self._sum(extra) if extra else np.zeros_like(own_N), len(own) / max(len(tokens), 1))

    def weighted(self, found: Found) -> Floats:
        """A question's own scores, and those of its synonyms ``synonym_weight`` times."""
        return found.own_N + np.float32(self.synonym_weight) * found.synonyms_N

    def scores(self, question: str) -> Floats:
        """The BM25 score of every row, zero where no unit is shared."""
        return self.weighted(self.find(question))

    def search(self, question: str, k: int) -> list[int]:
        """The ``k`` best rows, best first, those without a shared unit left out."""
        return best(self.scores(question), k)

    def _sum(self, units: Sequence[int]) -> Floats:
        """Scores; all postings of a shard are added up at once."""
        unit_U, times_U = np.unique(np.array(units, dtype=np.int64), return_counts=True)
        holders_U = self._holders_V[unit_U]
        weight_U = times_U * np.log(1 + (len(self) - holders_U + 0.5) / (holders_U + 0.5))
        total_N, first = np.zeros(len(self), np.float32), 0
        for shard in self.shards:
            here = slice(first, first := first + len(shard.lengths_n))
            known = int(np.searchsorted(unit_U, len(shard.start_V) - 1))
            start_U, end_U = shard.start_V[unit_U[:known]], shard.start_V[unit_U[:known] + 1]
            held = np.flatnonzero(end_U > start_U)
            if len(held):
                spans = [slice(start, end) for start, end in zip(start_U[held].tolist(), end_U[held].tolist(), strict=True)]
                rows_P = np.concatenate([shard.rows_P[span] for span in spans])
                counts_P = np.concatenate([shard.counts_P[span] for span in spans]).astype(np.float32)
                counts_P /= counts_P + self._norm_N[here][rows_P]
                size_U = (end_U - start_U)[held]
                total_N[here] = np.bincount(rows_P, counts_P * np.repeat(weight_U[held], size_U), len(shard.lengths_n))
        return total_N

    def _extra(self, question: str, tokens: list[str]) -> list[str]:
        if not self.synonyms.groups:
            return []
        own = set(tokens)
        return list(dict.fromkeys(token for word in self.synonyms.of(question) for token in self.tokens(word) if token not in own))

    # -- keeping ----------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write what ``folder`` lacks of the shards (hard links where they are saved elsewhere) and map them from there from now on."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(self.shards):
            if shard.folder != folder:
                shard.save(folder, number)
                self.shards[number] = Shard.load(folder, number)
        self.synonyms.save(folder / self.SYNONYMS)

    @classmethod
    def load(cls, folder: Path, segmenter: Segmenter, unit: str) -> Lexical:
        """Map what ``save`` wrote, or the whole shards of what it was writing when it was killed."""
        lexical = cls(segmenter, unit, Synonyms(folder / cls.SYNONYMS) if (folder / cls.SYNONYMS).exists() else None)
        while (folder / Shard.file(len(lexical.shards), "units.json")).exists():
            shard = Shard.load(folder, len(lexical.shards))
            lexical.shards.append(shard)
            lexical._number.update(zip(shard.units, count(len(lexical._number)), strict=False))
        lexical._prepare()
        return lexical


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def best(scores_N: npt.NDArray[np.float32], k: int) -> list[int]:
    """Rows of the ``k`` highest scores above zero, best first; ties in row order.

    The k-th highest of the maxima of runs of ``RUN`` rows is a lower bound of the k-th highest score: few rows reach it, and only they are sorted.
    """
    runs = len(scores_N) // RUN
    least = np.float32(0)
    if 0 < k <= runs:
        least = np.partition(scores_N[: runs * RUN].reshape(runs, RUN).max(axis=1), -k)[-k]
    chosen = np.flatnonzero(scores_N >= least if least > 0 else scores_N > 0)
    if k < len(chosen):
        some = scores_N[chosen]
        limit = np.partition(some, -k)[-k] if k else np.inf
        above = np.flatnonzero(some > limit)
        chosen = chosen[np.concatenate([above, np.flatnonzero(some == limit)[: k - len(above)]])]
    return [int(row) for row in chosen[np.lexsort((chosen, -scores_N[chosen]))]]
