"""A run rehearsed: its method made of fake tensors, a micro batch of full rows, forward and backward. Nothing is loaded, no store is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medrag import encoder, generator, methods, schedule, search
from medrag.assemble import FP16_RESCALE, checkpoint_activations
from medrag.config import Model, Run
from medrag.index import Index
from medrag.memory import Memory as Remembered
from medrag.methods import Method, Parts
from medrag.plan import memory, tracing
from medrag.plan.memory import Memory
from medrag.plan.seconds import Work
from medrag.retriever import Retriever
from medrag.text import Segmenter
from medrag.train.engines import BUCKET_ELEMENTS
from medrag.types import Example, Passage
from medrag.vocabulary import Sentencepiece, Wordpiece

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CHARACTERS = "一二三四五六七八九十"
"""of which stand-in texts and vocabularies consist: a token each"""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a run will hold and compute, if every row is full."""

    memory: Memory
    """of one device at the moment when most is held"""
    work: Work
    """of one micro batch's forward and backward pass"""
    micro: int
    """examples of a micro batch"""
    accumulation: int
    """micro batches of a step"""
    trained_parameters: int
    frozen_parameters: int


def rehearse(run: Run) -> Rehearsal:
    """Predict ``run.task`` with ``run.model`` on ``run.hardware``.

    Raises ValueError where the run could not start. Of ``model.*.pretrained`` only the shape is read.
    """
    cut = schedule.shares(run.task, run.hardware, methods.the_class(run.task.method).whole_batch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        method = stand_in(run)
    method.room = cut.room
    method.train()
    batch = method.collate(examples(run)[: cut.micro])
    trained, frozen = ([parameter.numel() for parameter in method.parameters() if parameter.requires_grad is wanted] for wanted in (True, False))
    work, whole_batch = Work(), type(method).whole_batch
    shared = memory.sharing(trained, run.hardware, BUCKET_ELEMENTS, cut.accumulation)
    accumulated = memory.accumulates(run.hardware, cut.accumulation)
    traced = tracing.trace(method, batch, run.hardware.device, accumulated=accumulated, work=work, passed_on=shared)
    held = memory.predict(traced, trained, frozen, run.hardware, BUCKET_ELEMENTS, cut.accumulation, whole_batch)
    return Rehearsal(held, work, cut.micro, cut.accumulation, sum(trained), sum(frozen))


def stand_in(run: Run) -> Method:
    """As ``assemble.fresh`` makes it, but for what it is made from: vocabularies of ten characters, whose networks have their full size."""
    module = methods.load(run.task.method)
    needs = methods.the_class(run.task.method).needs
    shapes = Model(encoder.outline(run.model.encoder), generator.outline(run.model.generator))
    names = [name for example in examples(run) for name in (*example.positives, *example.negatives)]
    parts: dict[str, Any] = {"library": {name: Passage(name, _text(run.task.options), "") for name in names}}
    if needs - {"generator"}:
        wordpiece = Wordpiece.build([CHARACTERS] * 2, shapes.encoder.vocabulary_tokens)
        wordpiece.size = shapes.encoder.vocabulary_tokens
        question = encoder.build(shapes.encoder, wordpiece)
        if "encoder" in needs:
            parts |= {"encoder": question, "wordpiece": wordpiece}
        elif "context_encoder" in needs:
            context = question if shapes.encoder.shared else encoder.build(shapes.encoder, wordpiece)
            parts["retriever"] = Retriever(run.task.options.retriever, run.index, wordpiece, question, context, Segmenter())
        else:
            parts["retriever"] = _remembering(run, wordpiece, question)
    if "generator" in needs:
        sentencepiece = Sentencepiece.build([CHARACTERS] * 20, 400)
        sentencepiece.size = shapes.generator.vocabulary_tokens
        parts["generator"] = generator.build(shapes.generator, sentencepiece)
        if run.hardware.precision == "fp16":
            parts["generator"].rescale(FP16_RESCALE)
    if run.hardware.checkpointing:
        checkpoint_activations(parts)
    method: Method = module.build(run.task.options, Parts(**parts))
    if run.hardware.precision in HALVES:
        _lower(method, HALVES[run.hardware.precision])
    return method


def _remembering(run: Run, wordpiece: Wordpiece, question: encoder.Encoder) -> Retriever:
    """A retriever with as many passages as are read, whose vectors are all alike."""
    retriever = Retriever(search.Config(), run.index, wordpiece, question, None, Segmenter())
    passages = [Passage(f"found {number}", _text(run.task.options), "") for number in range(run.task.options.passages)]
    index = Index(question.width)
    index.add(np.zeros((len(passages), question.width), np.float32))
    retriever.memory = Remembered(passages, {passage.id: number for number, passage in enumerate(passages)}, index)
    return retriever


def _lower(method: Method, kind: torch.dtype) -> None:
    """``method.to(kind)``, which fake parameters do not take."""
    for module in method.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(kind), parameter.requires_grad))


def examples(run: Run) -> list[Example]:
    """A global batch of examples whose texts, all of them, fill every row."""
    text, negatives = _text(run.task.options), getattr(run.task.options, "negatives", 0)
    return [
        Example(f"{number}", text, (text,), (f"right {number}",), tuple(f"wrong {number} {place}" for place in range(negatives)))
        for number in range(run.task.global_batch)
    ]


def _text(options: Any) -> str:
    """Longer than any row."""
    asked = [value for part in (options, search.Config(), getattr(options, "retriever", None)) for value in getattr(part, "__dict__", {}).values()]
    longest = max(value for value in asked if isinstance(value, int))
    return CHARACTERS * (longest // len(CHARACTERS) + 1)
