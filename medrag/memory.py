"""What was remembered, and what each signal says of it: passages, vectors, BM25, and the questions that passages are found through.

No encoder: questions come as vectors and as texts. The signals are those of ``fusion.SIGNALS``:

- ``dense``: ``q . d``
- ``words``, ``characters``: BM25 over jieba words, and over characters and pairs of them
- ``questions``: the highest ``q . q'`` of the passage's questions q', counted from that of the last candidate (the floor), so that it is 0
  for a passage none of whose questions is near, and for one that has none
- ``question_characters``: the highest BM25 over characters and pairs of the passage's questions

Shapes: B questions, K candidates of one signal, U candidates of all signals, N all passages, M all questions that passages are found
through, R passages removed, D width, S signals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medrag import metrics
from medrag.fusion import SIGNALS
from medrag.index import Index
from medrag.index.vectors import Vectors
from medrag.lexical import Found, Lexical, best
from medrag.passages import Passages, Rows
from medrag.text import Segmenter
from medrag.types import Passage

LEXICALS = {"words": "words", "characters": "characters", "question_characters": "characters"}
"""the signals that are BM25, and their units"""
FOLDERS = {"words": "bm25/words", "characters": "bm25/characters", "question_characters": "bm25/questions"}
"""where they are within an index artifact"""
SYNONYM_WEIGHTS = (0.0, 0.25, 0.5, 1.0)

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
NONE: Numbers = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Seen:
    """One question's candidates, and what the signals say of them."""

    used: tuple[str, ...]
    rows_U: Numbers
    """in rising order"""
    signals_US: Floats
    """in the order of SIGNALS; 0 where a signal is not used"""
    known: float
    """the share of the question's units that the passages know, 0..1"""
    floor: float
    """``q . q'`` that the signal ``questions`` counts from"""

    def of(self, rows_K: Numbers) -> Floats:
        """The signals (K, S) of some of the candidates."""
        signals_KS: Floats = self.signals_US[np.searchsorted(self.rows_U, rows_K)]
        return signals_KS


class Memory:
    """Passages, numbered from 0, and the ways to find them."""

    def __init__(self, passages: Sequence[Passage], row: Mapping[str, int], index: Index, removed_R: Numbers = NONE) -> None:
        self.passages = passages
        self.row = row
        self.index = index
        self.removed_R = removed_R
        """rows never to be found"""
        self.lexicals: dict[str, Lexical] = {}
        self.question_index: Index | None = None
        self.owners_M: Numbers = NONE
        """the row of the passage that answers each question"""
        self._members: dict[str, list[int]] | None = None
        self._hidden: tuple[frozenset[str], Numbers] = (frozenset(), NONE)

    @property
    def signals(self) -> tuple[str, ...]:
        """Those that there are, in the order of SIGNALS."""
        return tuple(
            name for name in SIGNALS if name == "dense" or name in self.lexicals or (name == "questions" and self.question_index is not None)
        )

    def rows(self, names: Collection[str], with_groups: bool = False) -> Numbers:
        """Rows, in rising order, of the passages of these ids that there are; ``with_groups``: and of those nearly equal to them."""
        rows = {self.row[name] for name in names if name in self.row}
        groups = {self.passages[row].group for row in rows} - {""} if with_groups else set()
        if groups and self._members is None:
            self._members = {}
            for row, passage in enumerate(self.passages):
                if passage.group:
                    self._members.setdefault(passage.group, []).append(row)
        return np.array(sorted(rows.union(*((self._members or {})[group] for group in groups))), dtype=np.int64)

    def hidden_rows(self, names: frozenset[str]) -> Numbers:
        """``rows`` of these passages and those nearly equal to them, looked up once for as long as the names stay the same."""
        if self._hidden[0] != names:
            self._hidden = names, self.rows(names, with_groups=True)
        return self._hidden[1]

    def look(
        self,
        questions: Sequence[str],
        q_BD: Floats,
        deep: int,
        used: tuple[str, ...],
        hidden: Numbers,
        left_out: Sequence[Numbers],
        rows: Numbers = NONE,
    ) -> list[Seen]:
        """For each question the union of the ``deep`` best candidates of all signals used (and ``rows``), with every one of these signals.

        Rows that are ``hidden``, or ``left_out`` for this question, are no candidates. ``dense`` is always looked at.
        """
        hidden = np.union1d(self.removed_R, hidden)
        row_BK = self.index.search(q_BD, deep + max(map(len, left_out)), hidden.tolist())[1]
        near = self._near(q_BD, deep, hidden, left_out) if "questions" in used else []
        seen = []
        for b, question in enumerate(questions):
            out = np.union1d(hidden, left_out[b])
            scored, known = self._lexical(question, used, out)
            owners, above, floor = near[b] if near else (NONE, q_BD[b, :0], 0.0)
            pools = [row_BK[b][~np.isin(row_BK[b], out)][:deep], owners, rows, *(best(score_N, deep) for score_N in scored.values())]
            rows_U = np.unique(np.concatenate(pools)).astype(np.int64)
            signals_US = np.zeros((len(rows_U), len(SIGNALS)), np.float32)
            if len(rows_U):
                signals_US[:, SIGNALS.index("dense")] = self.index.vectors(rows_U.tolist()) @ q_BD[b]
                np.maximum.at(signals_US[:, SIGNALS.index("questions")], np.searchsorted(rows_U, owners), above)
            for name, score_N in scored.items():
                signals_US[:, SIGNALS.index(name)] = score_N[rows_U]
            seen.append(Seen(used, rows_U, signals_US, known, floor))
        return seen

    def by_passage(self, name: str, found: Found) -> Floats:
        """A BM25 signal of every passage (N,)."""
        score = self.lexicals[name].weighted(found)
        if name != "question_characters":
            return score
        score_N = np.zeros(len(self.passages), np.float32)
        np.maximum.at(score_N, self.owners_M, score)
        return score_N

    def _lexical(self, question: str, used: Sequence[str], out: Numbers) -> tuple[dict[str, Floats], float]:
        """BM25 signals of every passage (N,), 0 for those that are ``out``; and the share of known units."""
        scored, told = {}, []
        for name in used:
            if name in LEXICALS:
                found = self.lexicals[name].find(question)
                scored[name] = self.by_passage(name, found)
                scored[name][out] = 0
                told += [found] if name != "question_characters" else []
        return scored, sum(found.known for found in told) / max(len(told), 1)

    def _near(self, q_BD: Floats, deep: int, hidden: Numbers, left_out: Sequence[Numbers]) -> list[tuple[Numbers, Floats, float]]:
        """For each question the owners of the ``deep`` nearest questions, how far these are above the floor, and the floor."""
        assert self.question_index is not None
        most = max(int(np.isin(self.owners_M, rows).sum()) for rows in left_out)
        skip = np.flatnonzero(np.isin(self.owners_M, hidden))
        found = []
        for score_K, number_K, rows in zip(*self.question_index.search(q_BD, deep + most, skip.tolist()), left_out, strict=True):
            kept_K = np.flatnonzero(~np.isin(self.owners_M[number_K], rows))[:deep]
            floor = float(score_K[kept_K[-1]]) if len(kept_K) else 0.0
            found.append((self.owners_M[number_K[kept_K]], score_K[kept_K] - np.float32(floor), floor))
        return found

    def tune_synonyms(self, name: str, asked: Sequence[tuple[str, Numbers]]) -> dict[float, float]:
        """Choose how much synonyms count in one BM25 signal by the MRR@10 of that signal alone, given questions and their right rows.

        Returns the MRR@10 of every weight tried; none where there are no synonyms.
        """
        lexical = self.lexicals[name]
        tried = dict.fromkeys(SYNONYM_WEIGHTS if lexical.synonyms.groups else (), 0.0)
        for question, right in asked if tried else ():
            found = lexical.find(question)
            for weight in tried:
                lexical.synonym_weight = weight
                score_N = self.by_passage(name, found)
                score_N[self.removed_R] = 0
                tried[weight] += metrics.reciprocal_rank(best(score_N, 10), right.tolist()) / len(asked)
        if tried:
            lexical.synonym_weight = max(tried, key=lambda weight: tried[weight])
        return tried

    @classmethod
    def load(cls, folder: Path, segmenter: Segmenter) -> Memory:
        """Map an index artifact. Raises ValueError where its parts differ in number."""
        passages = Passages(folder)
        index = Index.load(folder / "search", Vectors.load(folder / "shards"))
        memory = cls(passages, Rows(folder, passages), index, np.load(folder / "removed.npy", allow_pickle=False))
        counts = {"search": (len(index), len(passages))}
        if (folder / "question_search").is_dir():
            memory.owners_M = np.load(folder / "questions" / "owners.npy", allow_pickle=False)
            memory.question_index = Index.load(folder / "question_search", Vectors.load(folder / "questions"))
            counts["question_search"] = (len(memory.question_index), len(memory.owners_M))
        for name, place in FOLDERS.items():
            if (folder / place).is_dir():
                memory.lexicals[name] = Lexical.load(folder / place, segmenter, LEXICALS[name])
                counts[place] = (len(memory.lexicals[name]), len(memory.owners_M) if name == "question_characters" else len(passages))
        for place, (found, wanted) in counts.items():
            if found != wanted:
                raise ValueError(f"{folder / place} has {found} rows, but there are {wanted}")
        return memory
