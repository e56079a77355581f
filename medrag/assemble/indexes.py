"""The verbs of ``medrag index``: what each needs, made from the newest artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import torch

from medrag import files, indexing, prepare, sources
from medrag.assemble import trained
from medrag.config import Run
from medrag.encoding import Encoding
from medrag.files import Artifact
from medrag.indexing import verify as inspection
from medrag.retriever import Retriever


def build(run: Run) -> Artifact:
    """Encode the corpus with the newest dense method, tune the fusion and the confidence on development questions, and publish."""
    store = Path(run.store)
    data, dense = files.current(store, "corpus"), files.current(store, "dense")
    trained.check_corpus(dense, data, "medrag train task=dense")
    finder = _finder(run, dense, None)
    finder.search = run.index
    return indexing.build(data, dense, finder, _passage_encoding(run, finder), prepare.examples(data, "train"), list(prepare.examples(data, "dev")))


def add(run: Run, arguments: Sequence[str]) -> Artifact:
    """The newest index with the passages of more files, which are said as those of ``medrag prepare`` are."""
    index = files.current(Path(run.store), "index")
    found = [sources.recognise(argument) for argument in arguments]
    finder = _finder(run, index.parent("dense"), index)
    settings = trained.typed(prepare.Config, index.parent("corpus").manifest["config"])
    return indexing.add(index, found, settings, finder, _passage_encoding(run, finder))


def remove(run: Run, names: Sequence[str]) -> Artifact:
    """The newest index without the passages of these ids."""
    return indexing.remove(files.current(Path(run.store), "index"), names)


def verify(run: Run) -> Iterator[str]:
    """What is in order in the newest index, one thing a line. Raises ValueError at the first thing that is not."""
    index = files.current(Path(run.store), "index")
    yield f"{index.path}: {len(index.manifest['files'])} files have their hashes"
    finder = _finder(run, index.parent("dense"), index)
    examples = chain.from_iterable(prepare.examples(index.parent("corpus"), split) for split in ("dev", "train"))
    asked = [example.question for example in islice(examples, inspection.QUESTIONS)]
    yield from inspection.verify(index, finder, _passage_encoding(run, finder), asked)


def _finder(run: Run, dense: Artifact, index: Artifact | None) -> Retriever:
    """The dense method's retriever on the run's device."""
    found = getattr(trained.restore(dense, index).to(trained.device(run)).eval(), "retriever", None)
    assert isinstance(found, Retriever)
    return found


def _passage_encoding(run: Run, finder: Retriever) -> Encoding:
    """The passage encoder on all devices of the run."""
    assert finder.context_encoder is not None
    devices = [torch.device("cpu")] if run.hardware.device == "cpu" else [torch.device("cuda", number) for number in range(run.hardware.devices)]
    return Encoding(finder.context_encoder, finder.wordpiece, finder.config.passage_tokens, finder.search.encoding, devices)
