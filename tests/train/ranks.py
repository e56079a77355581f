"""Run by one process, or by several that a launcher started: trains tiny methods with ``Engine`` as jobs say, and writes down what it saw.

``ranks.py FOLDER``: jobs are in ``FOLDER/jobs.json`` (see ``Job``), what was seen of each goes to ``FOLDER/seen.json``; states are kept in
``FOLDER/..``, where the next run finds them.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import conftest  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from medrag import encoder, generator, search, train, weights  # noqa: E402
from medrag.hardware import Hardware  # noqa: E402
from medrag.methods import Method, closed_book, dense, fid, rag_token  # noqa: E402
from medrag.retriever import Retriever  # noqa: E402
from medrag.schedule import Shares, Task  # noqa: E402
from medrag.train import engines  # noqa: E402
from medrag.train.engines import Engine  # noqa: E402
from medrag.types import Example  # noqa: E402

BATCH = 8
RATE = 2e-3


@dataclass(frozen=True)
class Job:
    """Steps of one method on one kind of hardware."""

    name: str
    method: str = "closed_book"
    zero_stage: int = 0
    precision: str = "fp32"
    offload: bool = False
    checkpointing: bool = False
    steps: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """which batches are learned from"""
    restore: str = ""
    """state to begin with"""
    keep: str = ""
    """what the state after ``keep_after`` steps is kept as"""
    keep_after: int = 5
    poison: int = -1
    """after so many steps one more is begun, its gradient made NaN, and discarded"""
    burst: int = -1
    """the gradient of this step is not finite"""
    answers: bool = False
    """whether questions are answered at the end, and weights written"""


@dataclass
class Seen:
    """What was seen of a job by the first rank."""

    losses: list[float] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)
    scaler: list[float] = field(default_factory=list)
    held: int = 0
    """elements of weights that the model of this rank holds between steps"""
    elements: int = 0
    """of all weights"""
    live: int = 0
    """most elements of weights that it held at a call of a block"""
    texts: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    validated: float = math.nan
    error: str = ""


def made(name: str, tiny: conftest.Tiny, checkpointing: bool) -> Method:
    """A tiny method; the same each time."""
    shape = generator.Config(width=32, head_width=8, heads=4, layers=1, feed_forward=48, dropout=0.0)
    torch.manual_seed(0)
    writer = generator.build(shape, tiny.sentencepiece)
    if name == "dense":
        found: Method = dense.Dense(dense.Config(negatives=1, title_share=1.0, symmetric=0.5), tiny.retriever(remember=False), tiny.library)
    elif name == "closed_book":
        found = closed_book.ClosedBook(closed_book.Config(source_tokens=32, answer_tokens=24), writer)
    elif name == "fid":
        found = fid.Fid(fid.Config(passages=2, source_tokens=48, answer_tokens=24), tiny.retriever(fixed=True), writer)
    else:
        retriever = bagged(tiny) if name == "bag" else tiny.retriever(fixed=True)
        found = rag_token.RagToken(rag_token.Config(passages=3, source_tokens=48, answer_tokens=24), retriever, writer)
    if checkpointing:
        for part in ("retriever.question_encoder", "retriever.context_encoder", "generator"):
            module: Any = found
            for word in part.split("."):
                module = getattr(module, word, None)
            if module is not None:
                module.checkpoint_activations()
    return found


def bagged(tiny: conftest.Tiny) -> Retriever:
    """A question encoder with a bag, whose table another module than its own reads, over a fixed index."""
    shape = {"embedding": 16, "width": 32, "layers": 1, "heads": 4, "feed_forward": 48, "positions_tokens": 64}
    config = encoder.Config(**shape, dropout=0.0, pooling="mean", similarity="cosine", bag=16, bag_buckets=256, bag_dropout=0.0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    question, context = encoder.build(config, tiny.wordpiece), encoder.build(config, tiny.wordpiece)
    options = search.Config(question_tokens=32, passage_tokens=48)
    found = Retriever(options, search.Search(kind="flat", synonyms=""), tiny.wordpiece, question, context, tiny.segmenter).eval()
    found.remember(tiny.passages, lexical=False)
    found.context_encoder = None
    return found


def share(examples: Sequence[Example], step: int) -> list[Example]:
    """This rank's part of a global batch."""
    world, rank = dist.get_world_size(), dist.get_rank()
    batch = [examples[(BATCH * step + number) % len(examples)] for number in range(BATCH)]
    return batch[rank * BATCH // world : (rank + 1) * BATCH // world]


def learn(engine: Engine, cut: Shares, mine: Sequence[Example], step: int, factor: float = 1.0) -> float:
    """The forward and backward passes of a step, as ``train.fit`` does them; the mean loss."""
    torch.manual_seed(step)
    batches = [engine.method.collate(mine[at : at + cut.micro]) for at in range(0, len(mine), cut.micro)]
    totals = torch.tensor([float(sum(batch.weight for batch in batches)), 0.0], dtype=torch.float64)
    dist.all_reduce(totals)
    units = float(totals[0])
    for place, batch in enumerate(batches):
        if place:
            engine.more()
        loss = engine.forward(batch)
        totals[1] += float(loss.detach()) * batch.weight
        engine.backward(loss * (factor * batch.weight * dist.get_world_size() * cut.accumulation / units))
    mean = totals[1:].clone()
    dist.all_reduce(mean)
    return float(mean) / units


def do(job: Job, tiny: conftest.Tiny, home: Path) -> Seen:
    world = dist.get_world_size()
    method = made(job.method, tiny, job.checkpointing)
    seen = Seen(elements=sum(parameter.numel() for parameter in method.parameters()))
    hardware = Hardware(devices=world, precision=job.precision, zero_stage=job.zero_stage, offload=job.offload, checkpointing=job.checkpointing)
    cut = Shares(BATCH // world, 1) if method.whole_batch else Shares(BATCH // world // 2, 2)
    engine = Engine(method, Task(global_batch=BATCH, learning_rate=RATE, method=job.method), hardware, cut)
    engine.set_rate(RATE)
    if job.restore:
        engine.restore(weights.read(home / f"{job.restore}.safetensors"))
    watched = []
    if isinstance(method, closed_book.ClosedBook):
        watched = [block.register_forward_hook(lambda *_: note_live(method, seen)) for block in method.generator.network.encoder.block]
    try:
        for done, step in enumerate(job.steps, start=1):
            seen.losses.append(learn(engine, cut, share(tiny.examples, step), step, math.inf if done - 1 == job.burst else 1.0))
            seen.applied.append(engine.step())
            if done == job.poison:
                learn(engine, cut, share(tiny.examples, step + 7), step, math.nan)
                engine.discard()
            if done == job.keep_after and job.keep:
                write(engine.state(), home / f"{job.keep}.safetensors")
    except ValueError as error:
        seen.error = str(error)
    seen.held = sum(parameter.numel() for parameter in method.parameters())
    for hook in watched:
        hook.remove()
    seen.scaler = engine.state().get("scaler", torch.empty(0)).tolist()
    if job.answers:
        answer(engine, job, seen, tiny, home)
        method.train()
        seen.losses.append(learn(engine, cut, share(tiny.examples, 5), 5))
        seen.applied.append(engine.step())
    engine.close()
    return seen


def answer(engine: Engine, job: Job, seen: Seen, tiny: conftest.Tiny, home: Path) -> None:
    """Ranks measure and answer as ``train.fit`` has them do it, and then not even in step; the first writes the weights."""
    engine.method.eval()
    with engine.whole():
        seen.validated = next(iter(engine.method.validate(tiny.examples[:6], 3).values()))
        answers = engine.method.answer(tiny.questions[: 4 + 4 * dist.get_rank()])[:4]
    seen.texts, seen.logprobs = [one.text for one in answers], [one.logprob for one in answers]
    write(engine.weights(), home / f"{job.name} x{dist.get_world_size()}.safetensors")


def write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    if dist.get_rank() == 0:
        weights.write(tensors, path)


def note_live(method: Method, seen: Seen) -> None:
    seen.live = max(seen.live, sum(parameter.numel() for parameter in method.parameters()))


def main() -> None:
    folder = Path(sys.argv[-1])
    jobs = [Job(**job) for job in json.loads((folder / "jobs.json").read_text("utf-8"))]
    train.connect(Hardware(devices=int(os.environ.get("WORLD_SIZE", "1")), threads=1))
    engines.deepspeed().accelerator.get_accelerator().is_fp16_supported = lambda: True
    engines.BUCKET_ELEMENTS = 8_000  # several to a model, and tensors that do not fit into one
    tiny = conftest.tiny.__wrapped__()  # type: ignore[attr-defined]
    seen = {job.name: asdict(do(job, tiny, folder.parent)) for job in jobs}
    if dist.get_rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen), "utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
