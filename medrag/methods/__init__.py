"""The contract: remember, see, learn, answer. One file a method; ``load`` finds it by its name, so there is no list to edit.

A method's module holds a ``Config`` dataclass, one final subclass of ``Method``, and ``build(config, parts)``; where a value can be wrong
whatever the parts are, ``check(config)`` as well, which ``build`` calls: so it is found before anything is read or launched.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from medrag.confidence import Calibrator
from medrag.encoder import Encoder
from medrag.generator import Generator
from medrag.generator.decoding import Decoding
from medrag.retriever import Retriever
from medrag.schedule import Room
from medrag.types import Answer, Example, Passage
from medrag.vocabulary import Wordpiece


@dataclass(frozen=True, slots=True)
class Batch:
    """What ``collate`` made of examples: tensors by name, and how many units (target tokens, questions) the loss is a mean over."""

    examples: tuple[Example, ...]
    tensors: dict[str, Tensor]
    weight: int

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on ``device``."""
        return Batch(self.examples, {name: tensor.to(device) for name, tensor in self.tensors.items()}, self.weight)


@dataclass(frozen=True, slots=True)
class Parts:
    """What methods are made from; ``assemble`` fills in those that a method's ``needs`` names."""

    retriever: Retriever | None = None
    generator: Generator | None = None
    library: Mapping[str, Passage] = field(default_factory=dict)
    """all passages of the corpus by id"""
    teacher: Retriever | None = None
    """an index's retriever that proposes and scores passages; not trained"""
    encoder: Encoder | None = None
    wordpiece: Wordpiece | None = None

    def need_retriever(self) -> Retriever:
        if self.retriever is None:
            raise ValueError("this method needs a retriever")
        return self.retriever

    def need_generator(self) -> Generator:
        if self.generator is None:
            raise ValueError("this method needs a generator")
        return self.generator

    def need_encoder(self) -> tuple[Encoder, Wordpiece]:
        if self.encoder is None or self.wordpiece is None:
            raise ValueError("this method needs an encoder")
        return self.encoder, self.wordpiece


class Method(nn.Module, ABC):
    """Everything trainable. Subclasses are final."""

    needs: ClassVar[frozenset[str]]
    """of ``encoder`` (one, without a retriever), ``context_encoder``, ``index`` and ``generator``"""
    whole_batch: ClassVar[bool] = False
    """the loss is over the joined batch of all devices, so that gradient accumulation would change it"""
    decoding: Decoding = Decoding()
    """how answers are written; not part of what is trained"""
    calibrator: Calibrator | None = None
    """what turns what is seen of a written answer into its confidence; None: the confidence that ``answer`` gives stands"""
    room: Room = Room()
    """what a forward pass may hold activations of at once, for methods with ``whole_batch``"""

    @abstractmethod
    def index(self, passages: Sequence[Passage]) -> None:
        """Remember: make these passages, in place of others, what answers are drawn from."""

    def learns_from(self, examples: Sequence[Example], passages: Iterable[Passage]) -> Sequence[Example]:
        """What is trained on: the corpus's examples as they are; a method that reads bare texts makes its own of these and of its passages."""
        return examples

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """See: tensors of the examples, made on the CPU without a call of a model. Draws come from torch's generator."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Learn: the mean loss in nats per unit of ``batch.weight``."""

    @abstractmethod
    def answer(self, questions: Sequence[str]) -> list[Answer]:
        """Answer, in the order asked."""

    def stream(self, question: str) -> Iterator[str | Answer]:
        """Pieces of the answer's text as soon as they are certain, and the answer last; the pieces joined are its text. Here in one piece."""
        (answer,) = self.answer([question])
        if answer.text:
            yield answer.text
        yield answer

    def renew(self, examples: Sequence[Example], folder: Path, epoch: float, since: float) -> None:
        """Called on every rank before each step, at ``epoch`` (examples seen / examples): the time to draw from something new.

        What is kept in ``folder`` must make a resumed run go on as if undisturbed; it may go back to epoch ``since``, but no further.
        """

    def validate(self, examples: Sequence[Example], batch_examples: int) -> Mapping[str, float]:
        """How good the method is on development examples, by name; the first is the criterion, higher is better.

        Here ``minus_nats``, minus the mean loss.
        """
        device = next(self.parameters()).device
        total, units = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(examples), batch_examples):
                batch = self.collate(examples[start : start + batch_examples]).to(device)
                total += float(self(batch)) * batch.weight
                units += batch.weight
        return {"minus_nats": -total / max(units, 1)}


def bare_texts(examples: Sequence[Example], passages: Iterable[Passage], pieces: Callable[[str], Iterable[str]]) -> list[Example]:
    """The questions' and the passages' texts, cut by ``pieces``, as the answers of examples without a question: what language is learned from."""
    # titles are left out: a passage's may be the question it answered, which may be one that is kept for testing
    questions = ((example.id, example.question) for example in examples)
    texts = ((f"passage {passage.id}", passage.text) for passage in passages)
    return [
        Example(f"{name} {number}" if number else name, "", (piece,), ())
        for named in (questions, texts)
        for name, text in named
        for number, piece in enumerate(pieces(text))
    ]


def names() -> list[str]:
    """Every method there is, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def plain(name: str) -> str:
    """The method's name without the version that may stand behind it (``fid@v000002``)."""
    return name.partition("@")[0]


def load(name: str) -> ModuleType:
    """The module of a method. Raises ValueError that lists the methods there are."""
    if name not in names():
        raise ValueError(f"task.method={name!r}; allowed: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def check(module: ModuleType, options: object) -> None:
    """Raise ValueError where a method's module finds a value of its ``Config`` out of range."""
    if found := getattr(module, "check", None):
        found(options)


def the_class(name: str) -> type[Method]:
    """The class of the method of this name: the one subclass of Method that its module defines."""
    module = load(name)
    return next(
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    )


def name_of(method: Method) -> str:
    """The name that ``load`` knows a method by."""
    return type(method).__module__.rsplit(".", 1)[-1]
