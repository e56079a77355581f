"""BM25 (Robertson & Zaragoza 2009, Lucene's form) over jieba words, characters and pairs, or both. The only importer of bm25s."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import bm25s
import numpy as np
import numpy.typing as npt

from medrag import text
from medrag.text import Segmenter, Synonyms

UNITS = ("words", "characters", "both")
RUN = 64


class Lexical:
    """BM25 scores of all documents for a question."""

    SYNONYMS = "synonyms.txt"

    def __init__(self, segmenter: Segmenter, unit: str = "words", synonyms: Synonyms | None = None, k1: float = 1.5, b: float = 0.75) -> None:
        if unit not in UNITS:
            raise ValueError(f"index.lexical_unit={unit!r}; allowed: {', '.join(UNITS)}")
        self.segmenter = segmenter
        self.unit = unit
        self.synonyms = synonyms or Synonyms()
        self.synonym_weight = 1.0
        self.bm25 = bm25s.BM25(k1=k1, b=b, method="lucene")
        self.count = 0

    def tokens(self, document: str) -> list[str]:
        """The units that BM25 counts."""
        words = self.segmenter.words(document) if self.unit != "characters" else []
        return words + (text.characters_and_pairs(document) if self.unit != "words" else [])

    def build(self, documents: Iterable[str]) -> None:
        """Index the documents; their rows are numbered in this order."""
        tokens = [self.tokens(document) for document in documents]
        self.count = len(tokens)
        self.bm25.index(tokens, show_progress=False)

    def scores(self, question: str) -> npt.NDArray[np.float32]:
        """The BM25 score of every row, zero where no word is shared; synonyms of the question's words count ``synonym_weight`` times."""
        tokens = self.tokens(question)
        total = self._sum(tokens)
        extra = self._extra(question, tokens) if self.synonym_weight and self.synonyms.groups else []
        return total + self.synonym_weight * self._sum(extra) if extra else total

    def _sum(self, tokens: list[str]) -> npt.NDArray[np.float32]:
        ids = self.bm25.get_tokens_ids(tokens)
        if not ids:
            return np.zeros(self.count, np.float32)
        found: npt.NDArray[np.float32] = self.bm25.get_scores_from_ids(ids)[: self.count].astype(np.float32)
        return found

    def _extra(self, question: str, tokens: list[str]) -> list[str]:
        own = set(tokens)
        return list(dict.fromkeys(token for word in self.synonyms.of(question) for token in self.tokens(word) if token not in own))

    def ceiling(self, question: str) -> tuple[float, float]:
        """The score of a passage that would hold every unit of the question at its best, and the share of its units that the corpus knows."""
        tokens = self.tokens(question)
        ids = self.bm25.get_tokens_ids(tokens)
        return float(self._column_best[ids].sum()), len(ids) / max(len(tokens), 1)

    @cached_property
    def _column_best(self) -> npt.NDArray[np.float32]:
        data, start = self.bm25.scores["data"], self.bm25.scores["indptr"]
        filled = np.append(data, np.float32(0))
        found: npt.NDArray[np.float32] = np.maximum.reduceat(filled, np.minimum(start[:-1], len(data)).astype(np.int64))
        return found

    def search(self, question: str, k: int) -> list[int]:
        """The ``k`` best rows, best first, those without a shared word left out."""
        return best(self.scores(question), k)

    def save(self, folder: Path) -> None:
        self.bm25.save(str(folder), show_progress=False)
        self.synonyms.save(folder / self.SYNONYMS)

    @classmethod
    def load(cls, folder: Path, segmenter: Segmenter, unit: str, count: int) -> Lexical:
        """Read what ``save`` wrote for ``count`` documents."""
        lexical = cls(segmenter, unit, Synonyms(folder / cls.SYNONYMS))
        lexical.bm25 = bm25s.BM25.load(str(folder), show_progress=False)
        lexical.count = count
        return lexical


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
