"""Trained methods: kept in artifacts, and live again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medrag import encoder, files, generator, indexing, methods, search, weights
from medrag.assemble import calibrating
from medrag.confidence import GENERATION, Calibrator
from medrag.config import Run
from medrag.files import Artifact
from medrag.generator import Generator, quantized
from medrag.methods import Method, Parts
from medrag.retriever import Retriever
from medrag.text import Segmenter
from medrag.vocabulary import Sentencepiece, Wordpiece

DESCRIPTION = "method.json"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class Built:
    """A method, what it was made from, and what another process needs to make its like."""

    method: Method
    parents: list[Artifact]
    description: dict[str, Any]


def save(built: Built, folder: Path) -> None:
    """Weights, tokenizers and description of a method."""
    weights.save(built.method, folder / WEIGHTS)
    files.write_json(folder / DESCRIPTION, built.description)
    held = [getattr(built.method, name, None) for name in ("retriever", "generator", "wordpiece")]
    if isinstance(held[0], Retriever):
        held[0].wordpiece.save(folder)
    if isinstance(held[1], Generator):
        held[1].sentencepiece.save(folder)
    if isinstance(held[2], Wordpiece):
        held[2].save(folder)


def load(run: Run, name: str) -> Method:
    """The newest trained method of this name, ready to answer: hashes checked, index attached, in evaluation mode."""
    return live(run, *newest(Path(run.store), name))


def live(run: Run, artifact: Artifact, index: Artifact | None) -> Method:
    """A trained method on the run's device, in evaluation mode."""
    method = restore(artifact, index).to(device(run)).eval()
    method.decoding = run.answer.decoding
    if isinstance(writer := getattr(method, "generator", None), Generator):
        quantized.lower(writer, run.answer.precision)
    if (artifact.path / calibrating.FILE).is_file():
        kept = json.loads((artifact.path / calibrating.FILE).read_text("utf-8"))
        method.calibrator = Calibrator.load(kept, GENERATION, f"medrag train task={methods.name_of(method)}")
    return method


def newest(store: Path, name: str) -> tuple[Artifact, Artifact | None]:
    """The newest trained method of this name (or the version that it names: ``files.current``), and the index that it answers from, if any.

    Raises ValueError where that is stale.
    """
    needs = methods.the_class(methods.plain(name)).needs
    artifact = files.current(store, name)
    if "index" in needs:
        return artifact, _newest_descendant(store, artifact)
    if "context_encoder" not in needs:
        return artifact, None
    index = files.current(store, "index")
    reference = index.manifest["parents"].get("dense", {})
    if reference.get("hash") != artifact.hash:
        raise ValueError(
            f"{index.path} is stale: built with {reference.get('version')}, but {name} is at {artifact.path.name}; run `medrag index build`"
        )
    return artifact, index


def _newest_descendant(store: Path, artifact: Artifact) -> Artifact:
    """The newest index where it came from the one that the method was trained with by additions and removals, else that one."""
    newest = files.current(store, "index")
    return newest if artifact.manifest["parents"]["index"]["hash"] in indexing.ancestors(newest) else artifact.parent("index")


def restore(artifact: Artifact, index: Artifact | None) -> Method:
    """A trained method with its weights, on the CPU, and with ``index`` where it retrieves."""
    description = json.loads((artifact.path / DESCRIPTION).read_text("utf-8"))
    module = methods.load(description["method"])
    needs = methods.the_class(description["method"]).needs
    options = typed(module.Config, description["options"])
    parts: dict[str, Any] = {}
    data = artifact.parent("corpus")
    if "encoder" in needs:
        parts |= {"encoder": encoder.restore(description["encoder"]), "wordpiece": Wordpiece.load(artifact.path)}
    elif "encoder" in description:
        question = encoder.restore(description["encoder"])
        context = None
        if "context_encoder" in needs:
            context = question if description["shared"] else encoder.restore(description["encoder"])
        config = typed(search.Config, _retriever_settings(artifact, description, index))
        segmenter = Segmenter(data.path / "dictionary.txt")
        parts["retriever"] = Retriever(config, search.Search(), Wordpiece.load(artifact.path), question, context, segmenter)
    if "generator" in description:
        parts["generator"] = generator.restore(description["generator"], Sentencepiece.load(artifact.path))
    method: Method = module.build(options, Parts(**parts))
    weights.load(method, artifact.path / WEIGHTS)
    if index is not None:
        if index.manifest["parents"]["corpus"] != artifact.manifest["parents"]["corpus"]:
            raise ValueError(f"{index.path} and {artifact.path} were made from different corpora; run `medrag index build`")
        parts["retriever"].load(index.path)
    return method


def _retriever_settings(artifact: Artifact, description: dict[str, Any], index: Artifact | None) -> dict[str, Any]:
    """What the encoders were trained to see: kept by the dense method that trained them."""
    if "retriever" in description["options"]:
        settings: dict[str, Any] = description["options"]["retriever"]
        return settings
    dense = (index or artifact.parent("index")).parent("dense")
    return _retriever_settings(dense, json.loads((dense.path / DESCRIPTION).read_text("utf-8")), None)


def check_corpus(artifact: Artifact, corpus: Artifact, remedy: str, otherwise: str = "") -> None:
    """Raise ValueError, naming the command that mends it, where an artifact was made from another corpus than the newest."""
    if artifact.manifest["parents"]["corpus"]["hash"] != corpus.hash:
        raise ValueError(f"{artifact.path} is stale: it was made from another corpus than {corpus.path}; run `{remedy}` {otherwise}".rstrip())


def device(run: Run) -> torch.device:
    """Where the run computes; on the CPU with as many threads as it is allowed. Raises ValueError where there is no such device."""
    if run.hardware.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("hardware.device=cuda, but torch sees no CUDA device here; hardware=cpu works everywhere")
    if run.hardware.device == "cpu":
        torch.set_num_threads(run.hardware.threads or len(os.sched_getaffinity(0)))
    return torch.device(run.hardware.device)


def typed(kind: type[Any], values: dict[str, Any]) -> Any:
    """A dataclass (nested ones too) from the dictionary that ``asdict`` made of it."""
    blank = kind()
    for name, value in values.items():
        inner = getattr(blank, name)
        setattr(blank, name, typed(type(inner), value) if isinstance(value, dict) and not isinstance(inner, dict) else value)
    return blank
