"""Encoder + index + BM25 + passages -> hits.

A passage's score is a weighted sum of signals (SIGNALS), ``q . d`` among them: with a weight of 1 on that alone it is DPR's own. The
softmax over scores stays differentiable in the question encoder.

Shapes: B questions, K passages, N all passages, M all questions that passages are found through, P of them, U candidates, D width, S signals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medrag import confidence
from medrag.confidence import LOOKED_AT, RETRIEVAL, Calibrator
from medrag.encoder import Encoder
from medrag.encoding import Encoding
from medrag.fusion import SIGNALS
from medrag.index import Index
from medrag.lexical import Lexical
from medrag.memory import LEXICALS, NONE, Floats, Memory, Numbers, Seen
from medrag.search import Config, Search, check
from medrag.text import Segmenter, Synonyms
from medrag.types import Hit, Passage
from medrag.vocabulary import Wordpiece

FILE = "retrieval.json"


class Retriever(nn.Module):
    """Finds passages, says how sure it is, and passes gradients to the question encoder."""

    def __init__(
        self,
        config: Config,
        search: Search,
        wordpiece: Wordpiece,
        question_encoder: Encoder,
        context_encoder: Encoder | None,
        segmenter: Segmenter,
    ) -> None:
        super().__init__()
        for name, asked in (("question_tokens", config.question_tokens), ("passage_tokens", config.passage_tokens)):
            if not 3 <= asked <= question_encoder.positions_tokens:
                raise ValueError(f"task.options.retriever.{name}={asked}; the encoder allows 3 to {question_encoder.positions_tokens}")
        check(search)
        self.config = config
        self.search = search
        self.wordpiece = wordpiece
        self.question_encoder = question_encoder
        self.context_encoder = context_encoder
        self.segmenter = segmenter
        self.memory: Memory | None = None
        self.hidden: frozenset[str] = frozenset()
        self.weights: dict[str, float] = {"dense": 1.0}
        self.calibrator = confidence.uncalibrated(RETRIEVAL)
        self._seen: dict[str, Seen] = {}

    @property
    def device(self) -> torch.device:
        return next(self.question_encoder.parameters()).device

    @property
    def passages(self) -> Sequence[Passage]:
        return self.memory.passages if self.memory else ()

    @property
    def row(self) -> Mapping[str, int]:
        """The rows of passages by their ids."""
        return self.memory.row if self.memory else {}

    @property
    def index(self) -> Index:
        """Raises ValueError where nothing is remembered yet."""
        return self._memory().index

    @property
    def lexicals(self) -> dict[str, Lexical]:
        """The signals that are BM25."""
        return self.memory.lexicals if self.memory else {}

    @property
    def signals(self) -> tuple[str, ...]:
        """Those that there are, in the order of SIGNALS."""
        return self.memory.signals if self.memory else ()

    @property
    def used(self) -> tuple[str, ...]:
        """The signals that count; ``dense`` is always looked at, since it alone finds something for every question."""
        return tuple(name for name in self.signals if name == "dense" or self.weights.get(name, 0) > 0)

    # -- remembering ------------------------------------------------------------------------------------------------------------

    def searched(self, passage: Passage) -> str:
        """The text under which a passage is found."""
        return f"{passage.title} {passage.text}" if self.config.titles and passage.title else passage.text

    def remember(self, passages: Sequence[Passage], lexical: bool = True, progress: bool = False, questions: Sequence[tuple[int, str]] = ()) -> None:
        """Encode and index passages, in memory, in place of what was there; ``questions`` are ``(row of the passage that answers it, question)``.

        Raises ValueError on an empty list or a doubled id.
        """
        if not passages:
            raise ValueError("there are no passages to index")
        row = {passage.id: number for number, passage in enumerate(passages)}
        if len(row) != len(passages):
            raise ValueError(f"{len(passages) - len(row)} passages have the id of another")
        texts = [self.searched(passage) for passage in passages]
        x_ND = self.encode_passages(texts, progress)
        memory = Memory(list(passages), row, _flat(x_ND))
        for unit in self.search.lexical if lexical else ():
            memory.lexicals[unit] = self.new_lexical(unit)
            memory.lexicals[unit].build(tqdm(texts, desc=f"BM25 {unit}", unit=" passages", disable=not progress, file=sys.stderr))
        if questions:
            memory.owners_M = np.array([owner for owner, _ in questions], dtype=np.int64)
            asked = [question for _, question in questions]
            memory.question_index = _flat(self.question_vectors(asked, progress))
            if lexical and self.search.lexical:
                memory.lexicals["question_characters"] = self.new_lexical("question_characters")
                memory.lexicals["question_characters"].build(asked)
        self.memory, self._seen = memory, {}

    def new_lexical(self, signal: str) -> Lexical:
        """An empty BM25 index for one of LEXICALS."""
        return Lexical(self.segmenter, LEXICALS[signal], Synonyms(Path(self.search.synonyms) if self.search.synonyms else None))

    def encode_passages(self, texts: Sequence[str], progress: bool = False, precision: str = "fp32") -> Floats:
        """Vectors (N, D) of passages in the order given."""
        if self.context_encoder is None:
            raise ValueError("this retriever has a fixed index and no passage encoder: passages are encoded by the dense method it came from")
        return Encoding(self.context_encoder, self.wordpiece, self.config.passage_tokens, precision)(texts, progress)

    def question_vectors(self, questions: Sequence[str], progress: bool = False, precision: str = "fp32") -> Floats:
        """Vectors (M, D) of the questions that passages are found through, in the order given."""
        return Encoding(self.question_encoder, self.wordpiece, self.config.question_tokens, precision)(questions, progress)

    def encode_questions(self, questions: Sequence[str]) -> Tensor:
        """Vectors (B, D) of questions, differentiable."""
        ids_BL, mask_BL = self.wordpiece.batch(questions, self.config.question_tokens)
        q_BD: Tensor = self.question_encoder(ids_BL.to(self.device), mask_BL.to(self.device))
        return q_BD.float()

    # -- finding ----------------------------------------------------------------------------------------------------------------

    def retrieve(self, questions: Sequence[str], k: int, exclude: Sequence[Collection[str]] | None = None) -> list[list[Hit]]:
        """The ``k`` best passages of each question, best first (fewer where the index holds fewer).

        ``exclude`` names, for each question, ids of passages to leave out, ``hidden`` those left out for all; what is nearly equal to them
        (of the same group) is left out with them.
        """
        if not questions:
            return []
        self._seen = dict(zip(questions, seen := self.look(questions, k, self.used, exclude), strict=True))
        weight_S = self._weight_S()
        found = []
        for one in seen:
            score_U = one.signals_US @ weight_S
            order = np.lexsort((one.rows_U, -score_U))[:k]
            found.append([Hit(self.passages[row], score) for row, score in zip(one.rows_U[order].tolist(), score_U[order].tolist(), strict=True)])
        return found

    def _weight_S(self) -> npt.NDArray[np.float64]:
        return np.array([self.weights.get(name, 0.0) for name in SIGNALS])

    @torch.no_grad()
    def look(
        self, questions: Sequence[str], k: int, used: tuple[str, ...], exclude: Sequence[Collection[str]] | None = None, rows: Numbers = NONE
    ) -> list[Seen]:
        """Each question's candidates, at least ``k`` and ``rows`` among them, with the signals that are used.

        Nothing is dropped from the questions, in training neither: with half a bag's units gone, half of what is found would be others'.
        """
        memory = self._memory()
        left_out = [memory.rows(names, with_groups=True) for names in exclude] if exclude is not None else [NONE] * len(questions)
        deep = k if used == ("dense",) else max(k, self.search.candidates)
        drops = self.question_encoder.training
        self.question_encoder.eval()
        q_BD = self.encode_questions(questions).cpu().numpy()
        self.question_encoder.train(drops)
        return memory.look(questions, q_BD, deep, used, memory.hidden_rows(self.hidden), left_out, rows)

    def logp(self, questions: Sequence[str], hits: Sequence[Sequence[Hit]]) -> Tensor:
        """``log softmax_K`` of the scores (B, K), fp32, differentiable in the question encoder; passage vectors come from the index.

        Raises ValueError where questions have different numbers of hits.
        """
        if len({len(row) for row in hits}) != 1:
            raise ValueError(f"each question needs the same number of hits, not {sorted({len(row) for row in hits})}")
        rows_BK = np.array([[self.row[hit.passage.id] for hit in row] for row in hits], dtype=np.int64)
        d_BKD = np.stack([self.index.vectors(row.tolist()) for row in rows_BK])
        q_BD = self.encode_questions(questions)
        score_BK = self.weights.get("dense", 0.0) * torch.einsum("bd,bkd->bk", q_BD, torch.from_numpy(d_BKD).to(q_BD.device))
        if self.used != ("dense",):
            seen = [self._recall(question, row) for question, row in zip(questions, rows_BK, strict=True)]
            fixed_S = self._weight_S() * np.array([name in LEXICALS for name in SIGNALS])
            fixed_BK = np.stack([one.of(row) @ fixed_S for one, row in zip(seen, rows_BK, strict=True)])
            score_BK = score_BK + torch.from_numpy(fixed_BK).to(score_BK)
            if "questions" in self.used:
                above = [self._above(q_D, row, one.floor) for q_D, row, one in zip(q_BD, rows_BK, seen, strict=True)]
                score_BK = score_BK + self.weights["questions"] * torch.stack(above)
        return torch.log_softmax(score_BK, dim=1)

    def _above(self, q_D: Tensor, row_K: Numbers, floor: float) -> Tensor:
        """The signal ``questions`` (K,) of some passages, differentiable."""
        memory = self._memory()
        assert memory.question_index is not None
        number_P = np.flatnonzero(np.isin(memory.owners_M, row_K))
        near_P = (torch.from_numpy(memory.question_index.vectors(number_P.tolist())).to(q_D.device) @ q_D - floor).clamp(min=0)
        own_KP = torch.from_numpy(row_K[:, None] == memory.owners_M[number_P][None]).to(q_D.device)
        return torch.cat([near_P.new_zeros(len(row_K), 1), near_P * own_KP], dim=1).amax(1)

    def _recall(self, question: str, rows: Numbers) -> Seen:
        """What was seen of the question when it was asked last, if that covers these rows, or a new look."""
        seen = self._seen.get(question)
        if seen is None or seen.used != self.used or not np.isin(rows, seen.rows_U).all():
            (seen,) = self.look([question], 1, self.used, rows=rows)
        return seen

    # -- being sure -------------------------------------------------------------------------------------------------------------

    def features(self, question: str, hits: Sequence[Hit]) -> list[float]:
        """What the calibrator looks at, in the order of ``confidence.RETRIEVAL``; how many hits were asked for does not matter."""
        if not hits:
            return [0.0] * len(RETRIEVAL)
        seen = self._recall(question, np.array([self.row[hits[0].passage.id]]))
        if len(seen.rows_U) < min(LOOKED_AT, len(self.passages)):
            (seen,) = self.look([question], LOOKED_AT, self.used)
        return confidence.retrieval((seen.signals_US @ self._weight_S()).tolist(), seen.known)

    def confidence(self, question: str, hits: Sequence[Hit]) -> float:
        """Calibrated probability, 0..1, that the best hit answers the question; 0 without a hit."""
        return self.calibrator(self.features(question, hits)) if hits else 0.0

    # -- keeping ----------------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What ``load`` reads from retrieval.json."""
        return {
            "search": asdict(self.search),
            "weights": self.weights,
            "synonym_weights": {name: lexical.synonym_weight for name, lexical in self.lexicals.items()},
            "calibrator": self.calibrator.state(),
            "passages": len(self.passages),
            "removed": len(self._memory().removed_R),
            "questions": len(self._memory().owners_M),
        }

    def load(self, folder: Path) -> None:
        """Map an index artifact. Raises ValueError where its parts do not fit each other or the encoder."""
        kept = json.loads((folder / FILE).read_text("utf-8"))
        self.search = Search(**kept["search"])
        self.attach(folder)
        self.weights = {name: float(weight) for name, weight in kept["weights"].items()}
        for name, weight in kept["synonym_weights"].items():
            self.lexicals[name].synonym_weight = float(weight)
        self.calibrator = Calibrator.load(kept["calibrator"], RETRIEVAL, "medrag index build")

    def attach(self, folder: Path) -> None:
        """Map an index artifact that lacks nothing but what ``tune`` finds out. Raises ValueError where its parts do not fit."""
        memory = Memory.load(folder, self.segmenter)
        if memory.index.width != self.question_encoder.width:
            raise ValueError(f"{folder}: vectors of width {memory.index.width}, but the question encoder gives {self.question_encoder.width}")
        self.memory, self._seen = memory, {}

    def _memory(self) -> Memory:
        if self.memory is None:
            raise ValueError("nothing is indexed yet")
        return self.memory


def _flat(x_ND: Floats) -> Index:
    index = Index(x_ND.shape[1])
    index.add(x_ND)
    return index
