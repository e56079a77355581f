"""Run -> live objects. The only place that constructs them, and that knows which artifact is made from which."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from medrag import encoder, files, generator, hardware, methods, prepare, schedule, train, weights
from medrag.assemble import calibrating, trained
from medrag.assemble.trained import Built
from medrag.config import Run
from medrag.encoder import Encoder
from medrag.files import Artifact
from medrag.generator import Generator
from medrag.methods import Parts
from medrag.prepare import Corpus
from medrag.retriever import Retriever
from medrag.text import Segmenter
from medrag.vocabulary import Sentencepiece, Wordpiece

UNLEARNED = ("save_every_minutes", "exploded_above", "most_skipped")
"""keys of a task that change nothing about a run that goes well"""
PICTURE = "training.png"
RESHAPED = ("dropout", "pooling", "similarity", "temperature", "shared", "bag_dropout", "bag_share")
"""keys of the encoder that may differ between what it starts from and what it becomes"""
FP16_RESCALE = 64.0
"""what mT5's residual stream is divided by for fp16: it may then pass 4 million; measured, the error is the same from 16 to 1,024"""


def corpus(run: Run) -> Corpus:
    """The newest prepared corpus."""
    return prepare.read(files.current(Path(run.store), "corpus"))


def fresh(run: Run, data: Corpus) -> Built:
    """The run's method before training: encoders and generators from pretrained folders, parents' weights or random ones."""
    module = methods.load(run.task.method)
    needs = methods.the_class(run.task.method).needs
    _check_start(run)
    torch.manual_seed(run.seed)
    parents = [data.artifact]
    description: dict[str, Any] = {"method": run.task.method, "options": asdict(run.task.options)}
    parts: dict[str, Any] = {"library": {passage.id: passage for passage in data.passages}}
    if needs & {"encoder", "context_encoder"}:
        wordpiece, question, context = _new_encoders(run, data, parents)
        description["encoder"] = question.describe()
        if "encoder" in needs:
            parts |= {"encoder": question, "wordpiece": wordpiece}
        else:
            parts["retriever"] = Retriever(run.task.options.retriever, run.index, wordpiece, question, context, Segmenter(data.dictionary))
            description["shared"] = run.model.encoder.shared
    if getattr(run.task.options, "teacher", ""):
        parts["teacher"] = _fixed_retriever(run, data, parents)
    if "index" in needs:
        parts["retriever"] = _fixed_retriever(run, data, parents)
        description["encoder"] = parts["retriever"].question_encoder.describe()
    if "generator" in needs:
        parts["generator"] = _new_generator(run, data, parents)
        if run.hardware.precision == "fp16":
            parts["generator"].rescale(FP16_RESCALE)
        description["generator"] = parts["generator"].describe()
    if run.hardware.checkpointing:
        checkpoint_activations(parts)
    return Built(module.build(run.task.options, Parts(**parts)), parents, description)


def key(run: Run, built: Built) -> str:
    """The fingerprint of everything that determines a trained artifact; hardware does not."""
    task = {name: value for name, value in asdict(run.task).items() if name not in UNLEARNED}
    return files.fingerprint([task, asdict(run.model), run.seed, {parent.kind: parent.hash for parent in built.parents}])


def workplace(run: Run, name: str) -> Path:
    """The folder of a run with this key: its checkpoints and logs, which stay when it has been published."""
    return Path(run.store) / "runs" / f"{run.task.method}-{name[:12]}"


def ready(run: Run) -> None:
    """Raise ValueError where training could not start: values, devices, or a missing or stale parent."""
    hardware.check(run.hardware)
    schedule.check(run.task)
    schedule.shares(run.task, run.hardware, methods.the_class(run.task.method).whole_batch)
    methods.check(methods.load(run.task.method), run.task.options)
    _check_start(run)
    cards, wanted = torch.cuda.device_count(), train.processes_here(run.hardware)
    if run.hardware.device == "cuda" and cards < wanted:
        raise ValueError(
            f"hardware.devices={run.hardware.devices}, {wanted} of them on this machine, but torch sees {cards} CUDA devices here; "
            "`medrag doctor` shows what fits"
        )
    from_index = "index" in methods.the_class(run.task.method).needs or bool(getattr(run.task.options, "teacher", ""))
    for kind in filter(None, ["corpus", "index" if from_index else "", run.task.start]):
        files.current(Path(run.store), kind)


def train_method(run: Run) -> Artifact | None:
    """Train the run's method and publish it; one already trained from the same inputs with the same settings is made current again.

    Every rank calls this; all but the first return None.
    """
    if train.launched():
        train.connect(run.hardware)  # first, so that what is amiss on one machine ends the others' processes too
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
        folder = workplace(run, name)
        lessons, tests = built.method.learns_from(data.train, data.passages), built.method.learns_from(data.dev, ())
        state = train.fit(built.method, lessons, tests, run.task, run.hardware, run.seed, folder)
    dist.barrier()
    dist.destroy_process_group()  # what is left may take the first rank longer than the others could wait for it
    if not first:
        return None
    if found is None:
        print(f"best at step {state.best_step}: {state.best:.4f}; peak memory {state.peak_memory_gib:.2f} GiB a process", file=sys.stderr)
        _publish(run, data, name, folder, state)
    else:
        print(f"already trained with these settings: {found.path}", file=sys.stderr)
        files.set_current(store, run.task.method, found.path)
    return files.current(store, run.task.method)


def _publish(run: Run, data: Corpus, name: str, folder: Path, state: train.State) -> None:
    """The method as it was at its best, in an artifact: made anew, since DeepSpeed may have taken the trained one to pieces."""
    from medrag.reports import training as picture

    best = fresh(run, data)
    weights.load(best.method, folder / train.BEST)
    best.method.to(trained.device(run))
    config = {
        "task": asdict(run.task),
        "model": asdict(run.model),
        "hardware": asdict(run.hardware),
        "seed": run.seed,
        "state": asdict(state),
    }
    with files.publish(Path(run.store), run.task.method, key=name, parents=best.parents, config=config) as staging:
        trained.save(best, staging)
        if calibrator := calibrating.calibrate(best.method.eval(), data.dev):
            files.write_json(staging / calibrating.FILE, calibrator.state())
        shutil.copyfile(folder / train.LOG, staging / train.LOG)
        picture.write(files.read_jsonl(folder / train.LOG), state.best_step, staging / PICTURE)


def _check_start(run: Run) -> None:
    """Raise ValueError where the method could not start from another's weights, or not from that one's."""
    own = methods.the_class(run.task.method).needs
    wanted = {"generator"} if "generator" in own else {"encoder", "context_encoder"}
    allowed = [name for name in methods.names() if methods.the_class(name).needs & wanted]
    if run.task.start and methods.plain(run.task.start) not in allowed:
        raise ValueError(f"task.start={run.task.start!r}; allowed for {run.task.method}: nothing, {', '.join(allowed)}")


def _new_encoders(run: Run, data: Corpus, parents: list[Artifact]) -> tuple[Wordpiece, Encoder, Encoder]:
    """A vocabulary, and encoders of questions and of passages (the same one where they are shared): new, or where ``task.start`` left them."""
    shared = run.model.encoder.shared
    if not (start := run.task.start):
        made = _vocabulary(run, data, "wordpiece", lambda: encoder.build_vocabulary(run.model.encoder, data.texts(), Segmenter(data.dictionary)))
        parents.append(made)
        wordpiece = Wordpiece.load(made.path)
        question = encoder.build(run.model.encoder, wordpiece)
        return wordpiece, question, question if shared else copy.deepcopy(question)
    parent = files.current(Path(run.store), start)
    trained.check_corpus(parent, data.artifact, f"medrag train task={start}")
    _check_shape(run, parent)
    parents.append(parent)
    method = trained.restore(parent, None)
    holder = getattr(method, "retriever", method)
    found = [getattr(holder, name, None) for name in ("encoder", "question_encoder", "context_encoder")]
    old = [one for one in found if isinstance(one, Encoder)]
    if shared and old[0] is not old[-1]:
        raise ValueError(f"model.encoder.shared=true, but {parent.path} has two encoders that differ")
    question = _copied(old[0], run.model.encoder)
    return Wordpiece.load(parent.path), question, question if shared else _copied(old[-1], run.model.encoder)


def _copied(old: Encoder, config: encoder.Config) -> Encoder:
    """An encoder with the weights of ``old``, and what does not change their shape (dropout, pooling, similarity) as it is asked for now."""
    description = old.describe()
    description |= {"pooling": config.pooling, "similarity": config.similarity, "divisor": config.temperature}
    if old.albert is not None:
        description["albert"] = description["albert"] | {"hidden_dropout_prob": config.dropout}
    if old.bag is not None:
        description["bag"] = description["bag"] | {"dropout": config.bag_dropout}
    new = encoder.restore(description)
    new.load_state_dict(old.state_dict())
    return new


def _check_shape(run: Run, parent: Artifact) -> None:
    """Raise ValueError that names each key of the encoder that differs from what ``parent`` was trained with."""
    before, now = parent.manifest["config"]["model"]["encoder"], asdict(run.model.encoder)
    differ = [name for name in before if name in now and before[name] != now[name] and name not in RESHAPED]
    if differ:
        asked = ", ".join(f"model.encoder.{name}={now[name]}" for name in differ)
        raise ValueError(f"{parent.path} has {', '.join(f'{name}={before[name]}' for name in differ)}, so its encoder does not fit {asked}")


def _fixed_retriever(run: Run, data: Corpus, parents: list[Artifact]) -> Retriever:
    """The dense method's question encoder over the newest index, which joins ``parents``; no passage encoder."""
    index = files.current(Path(run.store), "index")
    trained.check_corpus(index, data.artifact, "medrag index build")
    parents.append(index)
    dense = trained.restore(index.parent("dense"), index)
    found = getattr(dense, "retriever", None)
    assert isinstance(found, Retriever)
    if found.context_encoder is found.question_encoder:
        found.question_encoder = copy.deepcopy(found.question_encoder)
    found.context_encoder = None
    return found


def _new_generator(run: Run, data: Corpus, parents: list[Artifact]) -> Generator:
    """The generator of the method that ``task.start`` names, else a new one; what it came from joins ``parents``."""
    if run.task.start:
        artifact = files.current(Path(run.store), run.task.start)
        trained.check_corpus(artifact, data.artifact, f"medrag train task={run.task.start}", "or say task.start=''")
        parents.append(artifact)
        warm = getattr(trained.restore(artifact, None), "generator", None)
        assert isinstance(warm, Generator)
        return warm
    made = _vocabulary(run, data, "sentencepiece", lambda: generator.build_vocabulary(run.model.generator, data.texts()))
    parents.append(made)
    return generator.build(run.model.generator, Sentencepiece.load(made.path))


def _vocabulary(run: Run, data: Corpus, kind: str, build: Callable[[], Wordpiece | Sentencepiece]) -> Artifact:
    """The tokenizer artifact for this corpus and size, built once."""
    config = run.model.encoder if kind == "wordpiece" else run.model.generator
    settings = [kind, config.pretrained, config.vocabulary_tokens, *([config.vocabulary_unit] if isinstance(config, encoder.Config) else [])]
    name = files.fingerprint([settings, data.artifact.hash])
    found = files.find(Path(run.store), kind, name)
    if found is None:
        print(f"building the {kind} vocabulary", file=sys.stderr)
        with files.publish(Path(run.store), kind, key=name, parents=[data.artifact], config=settings) as folder:
            build().save(folder)
    else:
        files.set_current(Path(run.store), kind, found.path)
    return files.current(Path(run.store), kind)


def checkpoint_activations(parts: dict[str, Any]) -> None:
    """Have every network among the parts of a method recompute activations in the backward pass."""
    if "retriever" in parts:
        parts["retriever"].question_encoder.checkpoint_activations()
        if parts["retriever"].context_encoder not in (None, parts["retriever"].question_encoder):
            parts["retriever"].context_encoder.checkpoint_activations()
    for name in ("encoder", "generator"):
        if name in parts:
            parts[name].checkpoint_activations()
