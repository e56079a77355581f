"""Encoder + index + BM25 + passages -> hits.

The score of a passage is ``q . d + w * BM25(q, d)``: with ``w`` = 0 DPR's own; a ``w`` tuned on development questions fuses the two,
and the softmax over scores stays differentiable in the question encoder.

Shapes: B questions, K passages, N texts, D width, F features.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medrag import confidence, files, metrics
from medrag.confidence import Calibrator
from medrag.encoder import Encoder
from medrag.index import Index
from medrag.lexical import Lexical, best
from medrag.text import Segmenter, Synonyms, characters_and_pairs
from medrag.types import Example, Hit, Passage
from medrag.vocabulary import Wordpiece

FEATURES = ("dense", "lexical", "ceiling", "known", "margin", "coverage")
FILE = "retrieval.json"


@dataclass
class Config:
    """What the encoders see; kept with their weights."""

    question_tokens: int = 256
    """longest question"""
    passage_tokens: int = 256
    """longest passage"""
    titles: bool = True
    """whether a passage's title is searched along with its text, where it has one"""


@dataclass
class Fusion:
    """How dense and BM25 search are joined; kept with the index."""

    candidates: int = 200
    """passages taken from each of dense and BM25 before their scores are fused"""
    lexical_unit: str = "both"
    """what BM25 counts: words (jieba, search mode), characters (and pairs of them), or both"""
    synonyms: str = "corpora/synonyms.txt"
    """groups of words that mean the same, for questions in everyday words; empty: none"""


class Retriever(nn.Module):
    """Finds passages, says how sure it is, and passes gradients to the question encoder."""

    def __init__(
        self,
        config: Config,
        fusion: Fusion,
        wordpiece: Wordpiece,
        question_encoder: Encoder,
        context_encoder: Encoder | None,
        segmenter: Segmenter,
    ) -> None:
        super().__init__()
        for name, asked in (("question_tokens", config.question_tokens), ("passage_tokens", config.passage_tokens)):
            if not 3 <= asked <= question_encoder.positions_tokens:
                raise ValueError(f"task.options.retriever.{name}={asked}; the encoder allows 3 to {question_encoder.positions_tokens}")
        self.config = config
        self.fusion = fusion
        self.wordpiece = wordpiece
        self.question_encoder = question_encoder
        self.context_encoder = context_encoder
        self.segmenter = segmenter
        self.passages: list[Passage] = []
        self.row: dict[str, int] = {}
        self.index: Index | None = None
        self.lexical: Lexical | None = None
        self.lexical_weight = 0.0
        self.dense_weight = 1.0
        self.calibrator = confidence.uncalibrated(len(FEATURES))
        self.hidden: frozenset[str] = frozenset()

    @property
    def device(self) -> torch.device:
        return next(self.question_encoder.parameters()).device

    # -- remembering ------------------------------------------------------------------------------------------------------------

    def searched(self, passage: Passage) -> str:
        """The text under which a passage is found."""
        return f"{passage.title} {passage.text}" if self.config.titles and passage.title else passage.text

    def remember(self, passages: Sequence[Passage], lexical: bool = True, progress: bool = False) -> None:
        """Encode and index passages in place of what was there. Raises ValueError on an empty list or a doubled id."""
        if not passages:
            raise ValueError("there are no passages to index")
        row = {passage.id: number for number, passage in enumerate(passages)}
        if len(row) != len(passages):
            raise ValueError(f"{len(passages) - len(row)} passages have the id of another")
        texts = [self.searched(passage) for passage in passages]
        x_ND = self.encode_passages(texts, progress)
        self.passages, self.row, self.index = list(passages), row, Index(x_ND.shape[1])
        self.index.add(x_ND)
        self.lexical = None
        if lexical:
            synonyms = Synonyms(Path(self.fusion.synonyms) if self.fusion.synonyms else None)
            self.lexical = Lexical(self.segmenter, self.fusion.lexical_unit, synonyms)
            self.lexical.build(tqdm(texts, desc="BM25", unit=" passages", disable=not progress, file=sys.stderr))

    @torch.no_grad()
    def encode_passages(self, texts: Sequence[str], progress: bool = False, batch_passages: int = 64) -> npt.NDArray[np.float32]:
        """Vectors (N, D) of passages in the order given, encoded from the longest to the shortest so that padding is small."""
        if self.context_encoder is None:
            raise ValueError("this retriever has a fixed index and no passage encoder: passages are encoded by the dense method it came from")
        training = self.training
        self.eval()
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        x_ND = np.empty((len(texts), self.context_encoder.width), np.float32)
        with tqdm(total=len(texts), desc="encoding", unit=" passages", disable=not progress, file=sys.stderr) as bar:
            for start in range(0, len(order), batch_passages):
                rows = order[start : start + batch_passages]
                ids_NL, mask_NL = self.wordpiece.batch([texts[row] for row in rows], self.config.passage_tokens)
                x_ND[rows] = self.context_encoder(ids_NL.to(self.device), mask_NL.to(self.device)).float().cpu().numpy()
                bar.update(len(rows))
        self.train(training)
        return x_ND

    def encode_questions(self, questions: Sequence[str]) -> Tensor:
        """Vectors (B, D) of questions, differentiable."""
        ids_BL, mask_BL = self.wordpiece.batch(questions, self.config.question_tokens)
        q_BD: Tensor = self.question_encoder(ids_BL.to(self.device), mask_BL.to(self.device))
        return q_BD.float()

    # -- finding ----------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def retrieve(self, questions: Sequence[str], k: int, exclude: Sequence[Collection[str]] | None = None) -> list[list[Hit]]:
        """The ``k`` best passages of each question, best first (fewer where the index holds fewer).

        ``exclude`` names, for each question, ids of passages to leave out; ``hidden`` names ids left out for all.
        """
        if not questions:
            return []
        index = self._index()
        left_out = [set() if exclude is None else {self.row[name] for name in exclude[b] if name in self.row} for b in range(len(questions))]
        skip = [self.row[name] for name in self.hidden if name in self.row]
        deep = max(k, self.fusion.candidates if self.lexical else 0) + max(map(len, left_out))
        q_BD = self.encode_questions(questions).cpu().numpy()
        score_BK, row_BK = index.search(q_BD, deep, skip)
        found = []
        for b, question in enumerate(questions):
            rows, scores = self._fuse(question, q_BD[b], row_BK[b], score_BK[b], deep, {*left_out[b], *skip})
            found.append([Hit(self.passages[row], score) for row, score in zip(rows[:k], scores[:k], strict=True)])
        return found

    def _fuse(
        self, question: str, q_D: npt.NDArray[np.float32], rows_K: npt.NDArray[np.int64], dense_K: npt.NDArray[np.float32], deep: int, out: set[int]
    ) -> tuple[list[int], list[float]]:
        """Rows and fused scores of the union of dense and lexical candidates, best first."""
        if self.lexical is None or self.lexical_weight == 0:
            kept = [(int(row), float(score) * self.dense_weight) for row, score in zip(rows_K, dense_K, strict=True) if int(row) not in out]
            return [row for row, _ in kept], [score for _, score in kept]
        lexical_N = self.lexical.scores(question)
        union = np.asarray(sorted(({int(row) for row in rows_K} | set(best(lexical_N, deep))) - out), dtype=np.int64)
        if not len(union):
            return [], []
        score = self.dense_weight * (self._index().vectors(union.tolist()) @ q_D) + self.lexical_weight * lexical_N[union]
        order = np.lexsort((union, -score))
        return [int(row) for row in union[order]], [float(value) for value in score[order]]

    def logp(self, questions: Sequence[str], hits: Sequence[Sequence[Hit]]) -> Tensor:
        """``log softmax_K`` of the scores (B, K), fp32, differentiable in the question encoder; passage vectors come from the index.

        Raises ValueError where questions have different numbers of hits.
        """
        if len({len(row) for row in hits}) != 1:
            raise ValueError(f"each question needs the same number of hits, not {sorted({len(row) for row in hits})}")
        rows = [[self.row[hit.passage.id] for hit in row] for row in hits]
        d_BKD = np.stack([self._index().vectors(row) for row in rows])
        q_BD = self.encode_questions(questions)
        score_BK = self.dense_weight * torch.einsum("bd,bkd->bk", q_BD, torch.from_numpy(d_BKD).to(q_BD.device))
        if self.lexical is not None and self.lexical_weight:
            lexical = [self.lexical.scores(question)[row] for question, row in zip(questions, rows, strict=True)]
            score_BK = score_BK + self.lexical_weight * torch.from_numpy(np.stack(lexical)).to(q_BD.device)
        return torch.log_softmax(score_BK, dim=1)

    # -- being sure -------------------------------------------------------------------------------------------------------------

    def features(self, question: str, hits: Sequence[Hit]) -> list[float]:
        """What the calibrator looks at, in the order of FEATURES."""
        if not hits:
            return [0.0] * len(FEATURES)
        row, top = self.row[hits[0].passage.id], hits[0].score
        lexical, ceiling, known = 0.0, 0.0, 0.0
        if self.lexical is not None:
            lexical = float(self.lexical.scores(question)[row])
            ceiling, known = self.lexical.ceiling(question)
        dense = top - self.lexical_weight * lexical
        rest = [hit.score for hit in hits[1:5]]
        margin = (top - sum(rest) / len(rest)) / (abs(top) + 1e-6) if rest else 0.0
        coverage = self._coverage(question, hits[0].passage)
        return [dense, math.log1p(lexical), lexical / (ceiling + 1e-6), known, margin, coverage]

    def _coverage(self, question: str, passage: Passage) -> float:
        """The share of the question's characters and pairs that stand in the passage, 0..1."""
        asked = set(characters_and_pairs(question))
        return len(asked & set(characters_and_pairs(self.searched(passage)))) / len(asked) if asked else 0.0

    def confidence(self, question: str, hits: Sequence[Hit]) -> float:
        """Calibrated probability, 0..1, that the best hit answers the question; 0 without a hit."""
        return self.calibrator(self.features(question, hits)) if hits else 0.0

    def tune(self, examples: Sequence[Example], batch_questions: int = 32) -> dict[str, Any]:
        """Choose the fusion weight by MRR@10 on development examples, then fit the calibrator on them; return what was found.

        Examples without positives (unanswerable questions) take part in the calibration only.
        """
        answerable = [example for example in examples if example.positives]
        tried: dict[str, float] = {}
        weights: dict[float, float] = {}
        if self.lexical is not None and answerable:
            ratio = self._score_ratio([example.question for example in answerable[:200]])
            tried |= self._tune_synonyms(answerable)
            for share in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0):
                self.lexical_weight = share * ratio
                weights[self.lexical_weight] = self.mean_reciprocal_rank(answerable, batch_questions)
            self.lexical_weight = max(weights, key=lambda weight: weights[weight])
            tried |= {f"BM25 weight {weight:.4g}": found for weight, found in weights.items()}
        features, right = [], []
        for example, hits in self._search(examples, batch_questions):
            features.append(self.features(example.question, hits))
            right.append(bool(hits) and hits[0].passage.id in example.positives)
        if examples:
            self.calibrator = confidence.fit(np.asarray(features), np.asarray(right))
        synonym_weight = self.lexical.synonym_weight if self.lexical else 0.0
        return {
            "lexical_weight": self.lexical_weight,
            "synonym_weight": synonym_weight,
            "mrr_at_10": tried,
            "calibrated_on_questions": len(examples),
            "right": int(sum(right)),
        }

    def _tune_synonyms(self, examples: Sequence[Example]) -> dict[str, float]:
        """Choose how much synonyms count by the MRR@10 of BM25 alone."""
        assert self.lexical is not None
        found: dict[float, float] = {}
        for weight in (0.0, 0.25, 0.5, 1.0) if self.lexical.synonyms.groups else (0.0,):
            self.lexical.synonym_weight = weight
            ranked = ([self.passages[row].id for row in self.lexical.search(example.question, 10)] for example in examples)
            found[weight] = float(
                np.mean([metrics.reciprocal_rank(names, example.positives) for names, example in zip(ranked, examples, strict=True)])
            )
        self.lexical.synonym_weight = max(found, key=lambda weight: found[weight])
        return {f"synonym weight {weight:g}": value for weight, value in found.items()}

    def _score_ratio(self, questions: Sequence[str]) -> float:
        """How many units of inner product one unit of BM25 is worth: the ratio of their spreads over the best candidates."""
        assert self.lexical is not None
        q_BD = self.encode_questions(questions).detach().cpu().numpy()
        dense_BK, _ = self._index().search(q_BD, 100)
        lexical = [np.sort(self.lexical.scores(question))[-100:].std() for question in questions]
        return float(dense_BK.std(1).mean() / max(float(np.mean(lexical)), 1e-6))

    def mean_reciprocal_rank(self, examples: Sequence[Example], batch_questions: int) -> float:
        """MRR@10 of the examples' positives; 0 without examples."""
        ranks = [
            metrics.reciprocal_rank([hit.passage.id for hit in hits], example.positives) for example, hits in self._search(examples, batch_questions)
        ]
        return float(np.mean(ranks)) if ranks else 0.0

    def _search(self, examples: Sequence[Example], batch_questions: int) -> Iterator[tuple[Example, list[Hit]]]:
        """Each example with its ten best hits."""
        for start in range(0, len(examples), batch_questions):
            batch = examples[start : start + batch_questions]
            yield from zip(batch, self.retrieve([example.question for example in batch], 10), strict=True)

    # -- keeping ----------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write vectors, passages, BM25 and what was tuned; the encoders are kept by the method that trained them."""
        self._index().save(folder)
        files.write_jsonl(folder / "passages.jsonl", map(asdict, self.passages))
        if self.lexical is not None:
            self.lexical.save(folder / "bm25")
        tuned = {
            "lexical_weight": self.lexical_weight,
            "synonym_weight": self.lexical.synonym_weight if self.lexical else 0.0,
            "calibrator": asdict(self.calibrator),
            "fusion": asdict(self.fusion),
        }
        files.write_json(folder / FILE, tuned)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote. Raises ValueError where vectors and passages differ in number or the encoder in width."""
        self.index = Index.load(folder)
        self.passages = [Passage(**row) for row in files.read_jsonl(folder / "passages.jsonl")]
        self.row = {passage.id: number for number, passage in enumerate(self.passages)}
        if len(self.index) != len(self.passages):
            raise ValueError(f"{folder}: {len(self.index)} vectors but {len(self.passages)} passages")
        if self.index.width != self.question_encoder.width:
            raise ValueError(f"{folder}: vectors of width {self.index.width}, but the question encoder gives {self.question_encoder.width}")
        tuned = json.loads((folder / FILE).read_text("utf-8"))
        self.fusion = Fusion(**tuned["fusion"])
        self.lexical = None
        if (folder / "bm25").is_dir():
            self.lexical = Lexical.load(folder / "bm25", self.segmenter, self.fusion.lexical_unit, len(self.passages))
            self.lexical.synonym_weight = float(tuned["synonym_weight"])
        self.lexical_weight = float(tuned["lexical_weight"])
        stored = tuned["calibrator"]
        self.calibrator = Calibrator(tuple(stored["mean"]), tuple(stored["deviation"]), tuple(stored["weight"]), float(stored["bias"]))

    def _index(self) -> Index:
        if self.index is None:
            raise ValueError("nothing is indexed yet")
        return self.index
