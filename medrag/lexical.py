"""BM25 (Robertson & Zaragoza 2009, Lucene's form) over jieba words or over characters and pairs. The only importer of bm25s."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import bm25s
import numpy as np
import numpy.typing as npt

from medrag import text
from medrag.text import Segmenter

UNITS = ("words", "characters")


class Lexical:
    """BM25 scores of all documents for a question."""

    def __init__(self, segmenter: Segmenter, unit: str = "words", k1: float = 1.5, b: float = 0.75) -> None:
        if unit not in UNITS:
            raise ValueError(f"index.lexical_unit={unit!r}; allowed: {', '.join(UNITS)}")
        self.segmenter = segmenter
        self.unit = unit
        self.bm25 = bm25s.BM25(k1=k1, b=b, method="lucene")
        self.count = 0

    def tokens(self, document: str) -> list[str]:
        """The units that BM25 counts."""
        return self.segmenter.words(document) if self.unit == "words" else text.characters_and_pairs(document)

    def build(self, documents: Iterable[str]) -> None:
        """Index the documents; their rows are numbered in this order."""
        tokens = [self.tokens(document) for document in documents]
        self.count = len(tokens)
        self.bm25.index(tokens, show_progress=False)

    def scores(self, question: str) -> npt.NDArray[np.float32]:
        """The BM25 score of every row, zero where no word is shared."""
        ids = self.bm25.get_tokens_ids(self.tokens(question))
        if not ids:
            return np.zeros(self.count, np.float32)
        found: npt.NDArray[np.float32] = self.bm25.get_scores_from_ids(ids)[: self.count].astype(np.float32)
        return found

    def search(self, question: str, k: int) -> list[int]:
        """The ``k`` best rows, best first, those without a shared word left out."""
        return best(self.scores(question), k)

    def save(self, folder: Path) -> None:
        self.bm25.save(str(folder), show_progress=False)

    @classmethod
    def load(cls, folder: Path, segmenter: Segmenter, unit: str, count: int) -> Lexical:
        """Read what ``save`` wrote for ``count`` documents."""
        lexical = cls(segmenter, unit)
        lexical.bm25 = bm25s.BM25.load(str(folder), show_progress=False)
        lexical.count = count
        return lexical


def best(scores_N: npt.NDArray[np.float32], k: int) -> list[int]:
    """Rows of the ``k`` highest scores above zero, best first; ties in row order."""
    k = min(k, len(scores_N))
    if k == 0:
        return []
    chosen = np.argpartition(-scores_N, k - 1)[:k]
    chosen = chosen[scores_N[chosen] > 0]
    return [int(row) for row in chosen[np.lexsort((chosen, -scores_N[chosen]))]]
