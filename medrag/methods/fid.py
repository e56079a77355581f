"""Fusion-in-Decoder: each passage is encoded with the question by itself, one decoder reads them all (Izacard & Grave 2021).

The passages' vectors come from a fixed index. The reader alone is trained, unless ``retriever_loss`` has the question encoder learn from
what the reader makes of each passage; questions are retrieved for anew at every step, so what is read moves as the encoder does.

Shapes: B questions, K passages, N = B x K, L source tokens, P places of a question's passages joined, D width, T target tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
from torch import Tensor

from medrag import losses, ranking, reader
from medrag.generator import Generator
from medrag.generator.stepping import Stepper
from medrag.methods import Batch, Method, Parts
from medrag.reader import Reading
from medrag.retriever import Retriever
from medrag.types import Answer, Example, Passage

TARGET_TEMPERATURES = {"fid_kd": 1.0, "pdist": 0.01, "loop": 0.01}
"""Izacard & Grave 2021, "Distilling Knowledge from Reader to Retriever" (they divide by nothing), and the code of Atlas (Izacard et al. 2022)"""
RETRIEVER_LOSSES = ("none", "fid_kd", "emdr2", "pdist", "loop")


@dataclass
class Config(reader.Config):
    """How passages are read, and what the retriever learns from that."""

    retriever_loss: str = "none"
    """what trains the question encoder. none: nothing does; fid_kd: the reader's attention; pdist: how well each passage alone tells the answer;
    loop: how much worse it is told without the passage; emdr2: the likelihood of the answer with passages summed out"""
    retriever_weight: float = 1.0
    """of that loss, beside the reader's own (Atlas: 1)"""
    student_temperature: float = 1.0
    """what the retriever's fused scores are divided by; they are scaled to be likely when the index is built, so 1 suits. Where ``q . d`` alone
    counts, with a weight of 1, FiD-KD's and EMDR2's is sqrt(D), and Atlas's is 0.01 sqrt(D), 0.28 for its 768"""
    target_temperature: float = 0.0
    """what the reader's scores are divided by; 0: as published, 1 for fid_kd, 0.01 nats a token for pdist and loop. emdr2 has none"""


def check(config: Config) -> None:
    """Raise ValueError where a value is out of range."""
    reader.check(config)
    if config.retriever_loss not in RETRIEVER_LOSSES:
        raise ValueError(f"task.options.retriever_loss={config.retriever_loss!r}; allowed: {', '.join(RETRIEVER_LOSSES)}")
    if config.retriever_weight <= 0:
        raise ValueError(f"task.options.retriever_weight={config.retriever_weight}; it must be above 0 (retriever_loss=none leaves it out)")
    if config.student_temperature <= 0:
        raise ValueError(f"task.options.student_temperature={config.student_temperature}; it must be above 0")
    if config.target_temperature < 0 or (config.target_temperature and config.retriever_loss not in TARGET_TEMPERATURES):
        raise ValueError(
            f"task.options.target_temperature={config.target_temperature}; it must be above 0, or 0 for the published one, "
            f"and counts with retriever_loss={', '.join(TARGET_TEMPERATURES)} only"
        )
    if config.retriever_loss != "none" and config.passages < 2:
        raise ValueError(f"task.options.passages={config.passages}; retriever_loss={config.retriever_loss} compares passages: 2 or more")


@dataclass(frozen=True, slots=True)
class Joined:
    """The encoder's states of each question's passages in one row, without the padding between them."""

    state_BPD: Tensor
    mask_BP: Tensor
    own_BKP: Tensor
    """the places of each passage"""


def join(state_NLD: Tensor, mask_NL: Tensor, passages: int) -> Joined:
    """``(B*K, L, D) -> (B, P, D)``. Cross-attention knows no positions, so only what stands in a row matters, not where."""
    mask_BP = mask_NL.view(-1, passages * mask_NL.shape[1])
    most = int(mask_BP.sum(1).max())
    place_BP = mask_BP.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    state_BPD = state_NLD.reshape(*mask_BP.shape, -1).gather(1, place_BP.unsqueeze(-1).expand(-1, -1, state_NLD.shape[-1]))
    mask_BP = mask_BP.gather(1, place_BP)
    owner_BP = place_BP // mask_NL.shape[1]
    own_BKP = (owner_BP.unsqueeze(1) == torch.arange(passages, device=owner_BP.device)[:, None]) & mask_BP.unsqueeze(1)
    return Joined(state_BPD, mask_BP, own_BKP)


@final
class Fid(Method):
    """A retriever and a reader of all passages at once."""

    needs: ClassVar[frozenset[str]] = frozenset({"index", "generator"})

    def __init__(self, config: Config, retriever: Retriever, generator: Generator) -> None:
        super().__init__()
        self.config = config
        self.retriever = retriever
        self.generator = generator
        retriever.requires_grad_(config.retriever_loss != "none")

    def train(self, mode: bool = True) -> Self:
        """A retriever that is not trained finds in training what it will find later: without dropout."""
        super().train(mode)
        if self.config.retriever_loss == "none":
            self.retriever.eval()
        return self

    def index(self, passages: Sequence[Passage]) -> None:
        self.retriever.remember(passages)

    def collate(self, examples: Sequence[Example]) -> Batch:
        target_BT = reader.targets(self.generator, examples, self.config.answer_tokens)
        return Batch(tuple(examples), {"target_BT": target_BT}, int((target_BT != self.generator.pad).sum()))

    def forward(self, batch: Batch) -> Tensor:
        """Mean negative log-likelihood in nats per target token, and the retriever's loss times its weight."""
        read_B, taught_B = self._nats(batch)
        return (read_B + self.config.retriever_weight * taught_B).sum() / batch.weight

    def _nats(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The reader's loss (B,), summed over target tokens, and the retriever's, as often as there are target tokens.

        EMDR2 is such a sum; a divergence, one value for a question, counts once for each of its target tokens. So both are means over tokens in the
        end, whatever the accumulation and the ranks.
        """
        target_BT = batch.tensors["target_BT"]
        reading = reader.study(self.retriever, self.generator, batch.examples, self.config)
        joined = join(reading.state_NLD, reading.mask_NL, reading.passages)
        read_B = -self.generator.decode(joined.state_BPD, joined.mask_BP, target_BT).sum(1)
        if self.config.retriever_loss == "none" or reading.passages == 1:
            return read_B, torch.zeros_like(read_B)
        student_BK = reading.prior_BK / self.config.student_temperature
        return read_B, self._taught(student_BK, reading, joined, target_BT)

    def _taught(self, student_BK: Tensor, reading: Reading, joined: Joined, target_BT: Tensor) -> Tensor:
        """The retriever's loss (B,). The reader is asked without dropout, and nothing is drawn; its encoder's states are those of the main pass."""
        kind, mask_BT = self.config.retriever_loss, target_BT != self.generator.pad
        temperature = self.config.target_temperature or TARGET_TEMPERATURES.get(kind, 1.0)
        training = self.generator.training
        self.generator.eval()
        with torch.no_grad():
            if kind == "fid_kd":
                said = self.generator.first_attention(joined.state_BPD, joined.mask_BP)
            elif kind == "loop":
                said = torch.stack([self._without(joined, k, target_BT) for k in range(reading.passages)], dim=1)
            else:
                said = reader.target_logp(self.generator, reading, target_BT)
        self.generator.train(training)
        if kind == "emdr2":
            return losses.emdr2(student_BK, said, mask_BT)
        if kind == "fid_kd":
            each_B = losses.fid_kd(student_BK, said, joined.own_BKP, temperature)
        elif kind == "pdist":
            each_B = losses.pdist(student_BK, said, mask_BT, temperature)
        else:
            each_B = losses.loop(student_BK, said, mask_BT, temperature)
        return each_B * mask_BT.sum(1)

    def _without(self, joined: Joined, k: int, target_BT: Tensor) -> Tensor:
        """Log-probability of each target token (B, T) where passage ``k`` is not looked at."""
        return self.generator.decode(joined.state_BPD, joined.mask_BP & ~joined.own_BKP[:, k], target_BT)

    @torch.no_grad()
    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """The best hypothesis of a search that looks at all passages at once."""
        return reader.answers(self.retriever, self.generator, questions, self.config, self.decoding, self._past)

    @torch.no_grad()
    def stream(self, question: str) -> Iterator[str | Answer]:
        yield from reader.stream(self.retriever, self.generator, question, self.config, self.decoding, self._past)

    def _past(self, reading: Reading) -> Stepper:
        joined = join(reading.state_NLD, reading.mask_NL, reading.passages)
        return self.generator.stepper(joined.state_BPD, joined.mask_BP, self.decoding.width)

    @torch.no_grad()
    def validate(self, examples: Sequence[Example], batch_examples: int) -> Mapping[str, float]:
        """``minus_nats`` of the reader alone, ``retriever_loss`` where there is one, both per target token, and how varied what is found is."""
        device = next(self.parameters()).device
        read, taught, units = 0.0, 0.0, 0
        for start in range(0, len(examples), batch_examples):
            batch = self.collate(examples[start : start + batch_examples]).to(device)
            read_B, taught_B = self._nats(batch)
            read, taught, units = read + float(read_B.sum()), taught + float(taught_B.sum()), units + batch.weight
        measured = {"minus_nats": -read / max(units, 1)}
        if self.config.retriever_loss != "none":
            measured["retriever_loss"] = taught / max(units, 1)
        return measured | ranking.variety(self.retriever, [example.question for example in examples], self.config.passages)


def build(config: Config, parts: Parts) -> Fid:
    """Raises ValueError where an option is out of range."""
    check(config)
    return Fid(config, parts.need_retriever(), parts.need_generator())
