"""Run -> live objects. The only place that constructs them, and that knows which artifact is made from which."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from medrag import encoder, files, generator, hardware, methods, prepare, retriever, schedule, train, weights
from medrag.config import Run
from medrag.files import Artifact
from medrag.generator import Generator
from medrag.methods import Method, Parts
from medrag.prepare import Corpus
from medrag.retriever import Retriever
from medrag.text import Segmenter, Synonyms
from medrag.vocabulary import Sentencepiece, Wordpiece

DESCRIPTION = "method.json"
WEIGHTS = "weights.safetensors"
FP16_RESCALE = 16.0
"""what mT5's residual stream is divided by for fp16"""


@dataclass(frozen=True, slots=True)
class Built:
    """A method, what it was made from, and what another process needs to make its like."""

    method: Method
    parents: list[Artifact]
    description: dict[str, Any]


def corpus(run: Run) -> Corpus:
    """The newest prepared corpus."""
    return prepare.read(files.current(Path(run.store), "corpus"))


def fresh(run: Run, data: Corpus) -> Built:
    """The run's method before training: encoders and generators from pretrained folders, parents' weights or random ones."""
    module = methods.load(run.task.method)
    needs = _needs(module)
    torch.manual_seed(run.seed)
    parents = [data.artifact]
    description: dict[str, Any] = {"method": run.task.method, "options": asdict(run.task.options)}
    parts: dict[str, Any] = {"library": {passage.id: passage for passage in data.passages}}
    if "context_encoder" in needs:
        made = _vocabulary(run, data, "wordpiece", lambda: encoder.build_vocabulary(run.model.encoder, data.texts()))
        parents.append(made)
        parts["retriever"] = _new_retriever(run, data, Wordpiece.load(made.path))
        description["encoder"] = parts["retriever"].question_encoder.describe()
        description["shared"] = run.model.encoder.shared
    if "index" in needs:
        index = files.current(Path(run.store), "index")
        _check_corpus(index, data, "medrag index build")
        parents.append(index)
        parts["retriever"] = _fixed_retriever(index)
        description["encoder"] = parts["retriever"].question_encoder.describe()
    if "generator" in needs:
        parts["generator"] = _new_generator(run, data, parents)
        if run.hardware.precision == "fp16":
            parts["generator"].rescale(FP16_RESCALE)
        description["generator"] = parts["generator"].describe()
    if run.hardware.checkpointing:
        _checkpoint_activations(parts)
    return Built(module.build(run.task.options, Parts(**parts)), parents, description)


def key(run: Run, built: Built) -> str:
    """The fingerprint of everything that determines a trained artifact; hardware does not."""
    task = {name: value for name, value in asdict(run.task).items() if name != "save_every_minutes"}
    return files.fingerprint([task, asdict(run.model), run.seed, {parent.kind: parent.hash for parent in built.parents}])


def ready(run: Run) -> None:
    """Raise ValueError where training could not start: values, devices, or a missing or stale parent."""
    hardware.check(run.hardware)
    schedule.shares(run.task, run.hardware, _class(run).whole_batch)
    if run.hardware.device == "cuda" and torch.cuda.device_count() < run.hardware.devices:
        raise ValueError(
            f"hardware.devices={run.hardware.devices}, but torch sees {torch.cuda.device_count()} CUDA devices here; `medrag doctor` shows what fits"
        )
    for kind in ("corpus", *(("index",) if "index" in _class(run).needs else ())):
        files.current(Path(run.store), kind)


def train_method(run: Run) -> Artifact | None:
    """Train the run's method and publish it; one already trained from the same inputs with the same settings is made current again.

    Every rank calls this; all but the first return None.
    """
    ready(run)
    store = Path(run.store)
    data = corpus(run)
    train.connect(run.hardware)
    first = dist.get_rank() == 0
    if first:
        built = fresh(run, data)
    dist.barrier()
    if not first:
        built = fresh(run, data)
    name = key(run, built)
    found = files.find(store, run.task.method, name)
    if found is None:
        folder = store / "runs" / f"{run.task.method}-{name[:12]}"
        state = train.fit(built.method, data.train, data.dev, run.task, run.hardware, run.seed, folder)
        if first:
            print(f"best at step {state.best_step}: {state.best:.4f}; peak memory {state.peak_memory_gib:.2f} GiB a process", file=sys.stderr)
            config = {
                "task": asdict(run.task),
                "model": asdict(run.model),
                "hardware": asdict(run.hardware),
                "seed": run.seed,
                "state": asdict(state),
            }
            with files.publish(store, run.task.method, key=name, parents=built.parents, config=config) as staging:
                save(built, staging)
    elif first:
        print(f"already trained with these settings: {found.path}", file=sys.stderr)
        files.set_current(store, run.task.method, found.path)
    dist.barrier()
    dist.destroy_process_group()
    return files.current(store, run.task.method) if first else None


def save(built: Built, folder: Path) -> None:
    """Weights, tokenizers and description of a method."""
    weights.save(built.method, folder / WEIGHTS)
    files.write_json(folder / DESCRIPTION, built.description)
    held = getattr(built.method, "retriever", None), getattr(built.method, "generator", None)
    if isinstance(held[0], Retriever):
        held[0].wordpiece.save(folder)
    if isinstance(held[1], Generator):
        held[1].sentencepiece.save(folder)


def load(run: Run, name: str) -> Method:
    """The newest trained method of this name, ready to answer: hashes checked, index attached, in evaluation mode."""
    store = Path(run.store)
    methods.load(name)
    artifact = files.current(store, name)
    needs = _needs(methods.load(name))
    index: Artifact | None = None
    if "index" in needs:
        index = artifact.parent("index")
    elif "context_encoder" in needs:
        index = files.current(store, "index")
        reference = index.manifest["parents"].get("dense", {})
        if reference.get("hash") != artifact.hash:
            raise ValueError(
                f"{index.path} is stale: built with {reference.get('version')}, but {name} is at {artifact.path.name}; run `medrag index build`"
            )
    method = restore(artifact, index)
    return method.to(_device(run)).eval()


def restore(artifact: Artifact, index: Artifact | None) -> Method:
    """A trained method with its weights, on the CPU, and with ``index`` where it retrieves."""
    description = json.loads((artifact.path / DESCRIPTION).read_text("utf-8"))
    module = methods.load(description["method"])
    options = _typed(module.Config, description["options"])
    parts: dict[str, Any] = {}
    data = artifact.parent("corpus")
    if "encoder" in description:
        question = encoder.restore(description["encoder"])
        context = None
        if "context_encoder" in _needs(module):
            context = question if description["shared"] else encoder.restore(description["encoder"])
        config = _typed(retriever.Config, _retriever_settings(artifact, description))
        segmenter = Segmenter(data.path / "dictionary.txt")
        parts["retriever"] = Retriever(config, retriever.Fusion(), Wordpiece.load(artifact.path), question, context, segmenter)
    if "generator" in description:
        parts["generator"] = generator.restore(description["generator"], Sentencepiece.load(artifact.path))
    method: Method = module.build(options, Parts(**parts))
    weights.load(method, artifact.path / WEIGHTS)
    if index is not None:
        if index.manifest["parents"]["corpus"] != artifact.manifest["parents"]["corpus"]:
            raise ValueError(f"{index.path} and {artifact.path} were made from different corpora; run `medrag index build`")
        parts["retriever"].load(index.path)
    return method


def build_index(run: Run) -> Artifact:
    """Encode the corpus with the newest dense method, tune the fusion and the confidence on development questions, and publish."""
    store = Path(run.store)
    data = corpus(run)
    dense = files.current(store, "dense")
    _check_corpus(dense, data, "medrag train task=dense")
    name = files.fingerprint(["index", 4, data.artifact.hash, dense.hash, asdict(run.index), Synonyms(_path(run.index.synonyms)).groups])
    if found := files.find(store, "index", name):
        print(f"already built: {found.path}", file=sys.stderr)
        files.set_current(store, "index", found.path)
        return found
    method = restore(dense, None).to(_device(run)).eval()
    found_retriever = getattr(method, "retriever", None)
    assert isinstance(found_retriever, Retriever)
    found_retriever.fusion = run.index
    found_retriever.remember(data.passages, progress=True)
    tuned = found_retriever.tune(data.dev)
    with files.publish(store, "index", key=name, parents=[data.artifact, dense], config={"index": asdict(run.index), "tuned": tuned}) as folder:
        found_retriever.save(folder)
    return files.current(store, "index")


def _retriever_settings(artifact: Artifact, description: dict[str, Any]) -> dict[str, Any]:
    """What the encoders were trained to see: kept by the dense method that trained them."""
    if "retriever" in description["options"]:
        settings: dict[str, Any] = description["options"]["retriever"]
        return settings
    dense = artifact.parent("index").parent("dense")
    return _retriever_settings(dense, json.loads((dense.path / DESCRIPTION).read_text("utf-8")))


def _new_retriever(run: Run, data: Corpus, wordpiece: Wordpiece) -> Retriever:
    question = encoder.build(run.model.encoder, wordpiece)
    context = question if run.model.encoder.shared else copy.deepcopy(question)
    return Retriever(run.task.options.retriever, run.index, wordpiece, question, context, Segmenter(data.dictionary))


def _fixed_retriever(index: Artifact) -> Retriever:
    """The dense method's question encoder over a fixed index; no passage encoder."""
    dense = restore(index.parent("dense"), index)
    found = getattr(dense, "retriever", None)
    assert isinstance(found, Retriever)
    if found.context_encoder is found.question_encoder:
        found.question_encoder = copy.deepcopy(found.question_encoder)
    found.context_encoder = None
    return found


def _new_generator(run: Run, data: Corpus, parents: list[Artifact]) -> Generator:
    """The closed_book method's generator for a warm start, else a new one; what it came from joins ``parents``."""
    if run.task.warm_start and "index" in _needs(methods.load(run.task.method)):
        artifact = files.current(Path(run.store), "closed_book")
        _check_corpus(artifact, data, "medrag train task=closed_book", "or say task.warm_start=false")
        parents.append(artifact)
        warm = getattr(restore(artifact, None), "generator", None)
        assert isinstance(warm, Generator)
        return warm
    made = _vocabulary(run, data, "sentencepiece", lambda: generator.build_vocabulary(run.model.generator, data.texts()))
    parents.append(made)
    return generator.build(run.model.generator, Sentencepiece.load(made.path))


def _vocabulary(run: Run, data: Corpus, kind: str, build: Callable[[], Wordpiece | Sentencepiece]) -> Artifact:
    """The tokenizer artifact for this corpus and size, built once."""
    config = run.model.encoder if kind == "wordpiece" else run.model.generator
    settings = [kind, config.pretrained, config.vocabulary_tokens]
    name = files.fingerprint([settings, data.artifact.hash])
    found = files.find(Path(run.store), kind, name)
    if found is None:
        print(f"building the {kind} vocabulary", file=sys.stderr)
        with files.publish(Path(run.store), kind, key=name, parents=[data.artifact], config=settings) as folder:
            build().save(folder)
    else:
        files.set_current(Path(run.store), kind, found.path)
    return files.current(Path(run.store), kind)


def _checkpoint_activations(parts: dict[str, Any]) -> None:
    if "retriever" in parts:
        parts["retriever"].question_encoder.checkpoint_activations()
        if parts["retriever"].context_encoder not in (None, parts["retriever"].question_encoder):
            parts["retriever"].context_encoder.checkpoint_activations()
    if "generator" in parts:
        parts["generator"].checkpoint_activations()


def _class(run: Run) -> type[Method]:
    return methods.the_class(methods.load(run.task.method))


def _needs(module: ModuleType) -> frozenset[str]:
    return methods.the_class(module).needs


def _path(name: str) -> Path | None:
    return Path(name) if name else None


def _check_corpus(artifact: Artifact, data: Corpus, remedy: str, otherwise: str = "") -> None:
    """Raise ValueError, naming the command that mends it, where an artifact was made from another corpus than the newest."""
    if artifact.manifest["parents"]["corpus"]["hash"] != data.artifact.hash:
        raise ValueError(f"{artifact.path} is stale: it was made from another corpus than {data.artifact.path}; run `{remedy}` {otherwise}".rstrip())


def _device(run: Run) -> torch.device:
    if run.hardware.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("hardware.device=cuda, but torch sees no CUDA device here; hardware=cpu works everywhere")
    if run.hardware.device == "cpu":
        torch.set_num_threads(run.hardware.threads or len(os.sched_getaffinity(0)))
    return torch.device(run.hardware.device)


def _typed(kind: type[Any], values: dict[str, Any]) -> Any:
    """A dataclass (nested ones too) from the dictionary that ``asdict`` made of it."""
    blank = kind()
    for name, value in values.items():
        inner = getattr(blank, name)
        setattr(blank, name, _typed(type(inner), value) if isinstance(value, dict) and not isinstance(inner, dict) else value)
    return blank
