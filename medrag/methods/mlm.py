"""A masked language model (Devlin et al. 2019) over bare texts: it teaches an encoder the corpus's language before it learns to retrieve.

Answers with the question's blanks filled in. Shapes: B texts, L tokens, D width, M masked tokens, E embedding, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medrag.encoder import Encoder
from medrag.methods import Batch, Method, Parts, bare_texts
from medrag.types import Answer, Example, Passage
from medrag.vocabulary import Wordpiece

KEPT, RANDOM = 0.1, 0.1
"""shares of the chosen tokens that stay as they are, and that become any token; the others become [MASK]"""
BLANK = re.compile(r"\[MASK\]|【\s*】")
_TOGETHER = 32
"""texts that are filled in at once"""


@dataclass
class Config:
    """How the masked language model learns."""

    tokens: int = 128
    """longest piece of a text; longer texts are cut into several pieces of like length"""
    masked_share: float = 0.15
    """of a piece's tokens, at least one"""
    span: int = 3
    """longest run of neighbouring tokens chosen together (n of them with a share of 1/n: Lan et al. 2020, equation 1); 1: each token alone"""


@final
class MaskedLanguageModel(Method):
    """An encoder with a head over the vocabulary that ties the token embedding; the head stays behind when the encoder goes on to retrieve."""

    needs: ClassVar[frozenset[str]] = frozenset({"encoder"})

    def __init__(self, config: Config, encoder: Encoder, wordpiece: Wordpiece, mask: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.wordpiece = wordpiece
        self.mask = mask
        albert = encoder.transformer
        words = albert.embeddings.word_embeddings
        self.dense = nn.Linear(albert.config.hidden_size, words.embedding_dim)
        self.norm = nn.LayerNorm(words.embedding_dim)
        self.bias_V = nn.Parameter(torch.zeros(words.num_embeddings))
        nn.init.normal_(self.dense.weight, std=albert.config.initializer_range)
        nn.init.zeros_(self.dense.bias)

    def index(self, passages: Sequence[Passage]) -> None:
        """Nothing: what it answers from are its weights."""

    def learns_from(self, examples: Sequence[Example], passages: Iterable[Passage]) -> list[Example]:
        """The questions' and the passages' texts, in pieces, as the answers of examples without a question."""
        return bare_texts(examples, passages, lambda text: self.wordpiece.pieces(text, self.config.tokens))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Corrupted texts (B, L), where their masked tokens stand among the B * L places, and which tokens they were (both M).

        An example's text is its first answer. Raises ValueError where it has none, or one without any token.
        """
        return self._masked(examples, [None] * len(examples))

    def forward(self, batch: Batch) -> Tensor:
        """Minus the mean log-probability in nats of the tokens that were masked (Devlin et al. 2019, section 3.1)."""
        logits_MV = self._logits(batch.tensors["ids_BL"], batch.tensors["mask_BL"], batch.tensors["place_M"])
        return F.cross_entropy(logits_MV, batch.tensors["token_M"])

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """The question with each of its blanks (``[MASK]`` or ``【】``) filled in by the most probable token, all at once; one without a blank
        is continued by a token. ``confidence`` is the geometric mean of the tokens' probabilities, 0 where no blank is within reach.
        """
        answers = []
        for start in range(0, len(questions), _TOGETHER):
            asked = [question if BLANK.search(question) else question + "[MASK]" for question in questions[start : start + _TOGETHER]]
            answers += self._filled(asked)
        return answers

    def validate(self, examples: Sequence[Example], batch_examples: int) -> Mapping[str, float]:
        """``minus_nats``, minus the mean loss of the masked tokens, and the share of them that are guessed right, with the same masks each time."""
        device = self.bias_V.device
        nats, right, units = 0.0, 0, 0
        with torch.no_grad():
            for start in range(0, len(examples), batch_examples):
                some = examples[start : start + batch_examples]
                batch = self._masked(some, [torch.Generator().manual_seed(start + number) for number in range(len(some))]).to(device)
                logits_MV = self._logits(batch.tensors["ids_BL"], batch.tensors["mask_BL"], batch.tensors["place_M"])
                nats += float(F.cross_entropy(logits_MV, batch.tensors["token_M"], reduction="sum"))
                right += int((logits_MV.argmax(-1) == batch.tensors["token_M"]).sum())
                units += batch.weight
        return {"minus_nats": -nats / max(units, 1), "masked_accuracy": right / max(units, 1)}

    def _masked(self, examples: Sequence[Example], draws: Sequence[torch.Generator | None]) -> Batch:
        if missing := [example.id for example in examples if not example.answers]:
            raise ValueError(f"examples without a text cannot be learned from: {missing[:5]}")
        ids_BL, mask_BL = self.wordpiece.batch([example.answers[0] for example in examples], self.config.tokens)
        lengths = [int(length) - 2 for length in mask_BL.sum(1)]
        if missing := [example.id for example, length in zip(examples, lengths, strict=True) if length < 1]:
            raise ValueError(f"examples without a token in their text cannot be learned from: {missing[:5]}")
        chosen = [1 + _choose(length, self.config, draw) for length, draw in zip(lengths, draws, strict=True)]
        place_M = torch.cat([number * ids_BL.shape[1] + places for number, places in enumerate(chosen)])
        token_M = ids_BL.flatten()[place_M]
        chance_M = torch.cat([torch.rand(len(places), generator=draw) for places, draw in zip(chosen, draws, strict=True)])
        other_M = torch.cat([torch.randint(self.wordpiece.size, (len(places),), generator=draw) for places, draw in zip(chosen, draws, strict=True)])
        shown_M = torch.where(chance_M < RANDOM, other_M, torch.full_like(token_M, self.mask))
        ids_BL.view(-1)[place_M] = torch.where(chance_M >= 1 - KEPT, token_M, shown_M)
        return Batch(tuple(examples), {"ids_BL": ids_BL, "mask_BL": mask_BL, "place_M": place_M, "token_M": token_M}, len(place_M))

    def _logits(self, ids_BL: Tensor, mask_BL: Tensor, place_M: Tensor) -> Tensor:
        """Scores (M, V) of the places asked for alone: all (B * L, V) would be most of the memory."""
        albert = self.encoder.transformer
        state_BLD = albert(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        x_ME = self.norm(F.gelu(self.dense(state_BLD.flatten(0, 1)[place_M]), approximate="tanh"))
        logits_MV: Tensor = F.linear(x_ME, albert.embeddings.word_embeddings.weight, self.bias_V)
        return logits_MV.float()

    @torch.no_grad()
    def _filled(self, questions: Sequence[str]) -> list[Answer]:
        """Special tokens fill no blank; a blank beyond the encoder's longest text stays."""
        ids_BL, mask_BL = self.wordpiece.batch([BLANK.sub("[MASK]", question) for question in questions], self.encoder.positions_tokens)
        place_M = (ids_BL == self.mask).flatten().nonzero().squeeze(1)
        device = self.bias_V.device
        logits_MV = self._logits(ids_BL.to(device), mask_BL.to(device), place_M.to(device))
        logits_MV[:, [token for token in self.wordpiece.tokenizer.get_added_tokens_decoder() if token < logits_MV.shape[1]]] = -math.inf
        best_M = F.log_softmax(logits_MV, dim=-1).max(-1)
        row_M, answers = place_M // ids_BL.shape[1], []
        for number, question in enumerate(questions):
            mine_M = (row_M == number).to(device)
            tokens = [str(self.wordpiece.tokenizer.id_to_token(token)).removeprefix("##") for token in best_M.indices[mine_M].tolist()]
            logprobs = best_M.values[mine_M].tolist()
            words = [*tokens, *BLANK.findall(question)[len(tokens) :], ""]
            text = "".join(part + word for part, word in zip(BLANK.split(question), words, strict=True))
            answers.append(Answer(text, (), math.fsum(logprobs), math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else 0.0))
        return answers


def check(config: Config) -> None:
    """Raise ValueError where a value is out of range."""
    if not 0 < config.masked_share < 1:
        raise ValueError(f"task.options.masked_share={config.masked_share}; it must lie between 0 and 1")
    if config.span < 1:
        raise ValueError(f"task.options.span={config.span}; it must be 1 or more")


def build(config: Config, parts: Parts) -> MaskedLanguageModel:
    """Raises ValueError where an option is out of range or does not fit the encoder, or the vocabulary has no [MASK]."""
    check(config)
    encoder, wordpiece = parts.need_encoder()
    if not 3 <= config.tokens <= encoder.positions_tokens:
        raise ValueError(f"task.options.tokens={config.tokens}; allowed: 3 to model.encoder.positions_tokens={encoder.positions_tokens}")
    if wordpiece.mask is None:
        raise ValueError("model.encoder.pretrained brings a vocabulary without [MASK], which task.method=mlm needs")
    return MaskedLanguageModel(config, encoder, wordpiece, wordpiece.mask)


def _choose(length: int, config: Config, draw: torch.Generator | None) -> Tensor:
    """Sorted places of a row of tokens to be masked: runs that do not overlap, the last one cut where it would be too many."""
    wanted = max(1, round(config.masked_share * length))
    if config.span == 1:
        return torch.randperm(length, generator=draw)[:wanted].sort().values
    shares = 1 / torch.arange(1, config.span + 1)
    starts = torch.randperm(length, generator=draw).tolist()
    sizes = (1 + torch.multinomial(shares, length, replacement=True, generator=draw)).tolist()
    chosen: set[int] = set()
    for start, size in zip(starts, sizes, strict=True):
        if len(chosen) == wanted:
            break
        run = range(start, min(start + size, length))
        if chosen.isdisjoint(run):
            chosen.update(run[: wanted - len(chosen)])
    free = (place for place in starts if place not in chosen)
    chosen.update(place for place, _ in zip(free, range(wanted - len(chosen)), strict=False))
    return torch.tensor(sorted(chosen))
