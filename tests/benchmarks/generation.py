"""Memory and time of one RAG training step, medrag's beside transformers', with the same weights in one run.

    python tests/benchmarks/generation.py predict [--batch 16] [--passages 5] [--tokens 256] [--shape reference] [--dropout 0.1] [--chunk cpu]
    python tests/benchmarks/generation.py check [--shape small] [--batch 2]
    python tests/benchmarks/generation.py time [--batch 1] [--rounds 5] [--threads 1] [--real CORPUS_ARTIFACT]

A step is forward and backward of RAG-Token's or RAG-Sequence's loss; retrieval (the prior is given) and optimizer are left out on both sides.
Losses and gradients of both are compared first. No row is padded, unless ``--real`` takes texts, and so lengths, from a corpus.

- ``predict``: the peak of parameters, gradients and all that is held between, without allocating any of it (fake tensors).
- ``check``: the prediction beside the peak that torch's own profiler counts in a real step, for both systems, at a size that fits.
- ``time``: rounds by turns, each system once; a ratio is the median over rounds of the peer's time through ours in the same round, by the
  clock and by the processor (the latter holds on a machine that does other things too).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from transformers import AlbertConfig, AlbertModel, RagConfig, RagSequenceForGeneration, RagTokenForGeneration

from medrag import files, generator, losses, reader
from medrag.generator import Generator, head
from medrag.generator.network import Shape
from medrag.plan.tracing import WEIGHTS, Held, NothingPadded, Within
from medrag.reader import Reading
from medrag.vocabulary import Sentencepiece

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "plan")]
from measuring import most_held  # noqa: E402
from oracle import config_of, fill, untie, untied  # noqa: E402

SHAPES = {
    "reference": generator.Config(),
    "small": generator.Config(vocabulary_tokens=10_000, width=256, head_width=64, heads=4, layers=3, feed_forward=768),
}
METHODS = {"rag_token": RagTokenForGeneration, "rag_sequence": RagSequenceForGeneration}
SYSTEMS = ("medrag", "medrag, recomputed", "transformers", "transformers, recomputed")
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Texts:
    """B questions with K passages each: sources (B x K, L), targets (B, T), scores of passages (B, K)."""

    ids_NL: Tensor
    mask_NL: Tensor
    target_BT: Tensor
    score_BK: Tensor


def random_texts(batch: int, passages: int, tokens: int, vocabulary: int) -> Texts:
    ids_NL, target_BT = torch.randint(3, vocabulary, (batch * passages, tokens)), torch.randint(3, vocabulary, (batch, tokens))
    return Texts(ids_NL, torch.ones_like(ids_NL, dtype=torch.bool), target_BT, torch.randn(batch, passages))


def real_texts(corpus: Path, batch: int, passages: int, tokens: int, vocabulary: int) -> Texts:
    """Test questions spread over the file, each with its own passage and the next ones; a vocabulary of the corpus."""
    rows = list(files.read_jsonl(corpus / "test.jsonl"))
    rows = rows[:: max(1, len(rows) // batch)][:batch]
    shelf = [row["text"] for row in files.read_jsonl(corpus / "passages.jsonl")]
    sentencepiece = Sentencepiece.build(shelf, vocabulary)
    heads = [row["question"] for row in rows for _ in range(passages)]
    tails = [shelf[(number * 997 + k * 13) % len(shelf)] for number in range(len(rows)) for k in range(passages)]
    target_BT, _ = sentencepiece.batch([row["answers"][0] for row in rows], tokens)
    return Texts(*sentencepiece.pairs(heads, tails, tokens), target_BT, torch.randn(batch, passages))


def ours(name: str, dropout: float, sentencepiece: Sentencepiece) -> Generator:
    asked = SHAPES[name]
    shape = Shape(
        vocabulary_tokens=asked.vocabulary_tokens,
        width=asked.width,
        head_width=asked.head_width,
        heads=asked.heads,
        layers=asked.layers,
        decoder_layers=asked.layers,
        feed_forward=asked.feed_forward,
        dropout=dropout,
    )
    return Generator(shape, sentencepiece)


def theirs(made: Generator, method: str, passages: int) -> Any:
    """transformers' RAG around an mT5 with the same weights; its question encoder is never called."""
    asker = AlbertConfig(vocab_size=8, embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config = RagConfig.from_question_encoder_generator_configs(asker, config_of(made.network), n_docs=passages)
    rag = METHODS[method](config=config, question_encoder=AlbertModel(asker), generator=fill(untied(config_of(made.network)), made.network))
    fill(untie(rag.generator), made.network)
    rag.rag.question_encoder = nn.Identity()
    return rag


def nats(model: Any, method: str, texts: Texts) -> Tensor:
    """The loss summed over the batch, as each system computes it."""
    if not isinstance(model, Generator):
        start_B1 = torch.zeros(len(texts.target_BT), 1, dtype=torch.long)
        loss: Tensor = model(
            context_input_ids=texts.ids_NL,
            context_attention_mask=texts.mask_NL.long(),
            doc_scores=texts.score_BK,
            labels=torch.cat([start_B1, texts.target_BT], dim=1),
            reduce_loss=True,
        ).loss
        return loss
    state_NLD = model.encode(texts.ids_NL, texts.mask_NL)
    reading = Reading([], torch.log_softmax(texts.score_BK, dim=1), state_NLD, texts.mask_NL)
    logp_BKT = reader.target_logp(model, reading, texts.target_BT)
    if method == "rag_token":
        return losses.rag_token(reading.prior_BK, logp_BKT, texts.target_BT != model.pad).sum()
    return losses.rag_sequence(reading.prior_BK, logp_BKT).sum()


def set_up(model: Any, system: str, precision: str) -> Any:
    model = (model.bfloat16() if precision == "bf16" else model).train()
    if isinstance(model, Generator):
        model.network.encoder.recompute = model.network.decoder.recompute = "recomputed" in system
    elif "recomputed" in system:
        model.generator.activation_checkpointing_enable()
    else:
        model.generator.activation_checkpointing_disable()
    return model


def step(model: Any, method: str, texts: Texts) -> None:
    nats(model, method, texts).backward()  # type: ignore[no-untyped-call]


# -- the same on both sides -----------------------------------------------------------------------------------------------------


def compare(made: Generator, rag: Any, method: str, texts: Texts) -> dict[str, float]:
    """Raises AssertionError where losses or gradients of the two differ by more than rounding."""
    values = []
    for model in (made, rag):
        model.eval().zero_grad()
        loss = nats(model, method, texts)
        loss.backward()  # type: ignore[no-untyped-call]
        values.append(float(loss.detach()))
    mine, other = dict(made.network.named_parameters()), dict(rag.generator.named_parameters())
    off = max(float((mine[name].grad - other[name].grad).norm() / other[name].grad.norm()) for name in mine)
    assert abs(values[0] / values[1] - 1) < 1e-5 and off < 1e-3, (values, off)
    for model in (made, rag):
        model.zero_grad()
    return {"loss_ours": values[0], "loss_theirs": values[1], "largest_relative_gradient_difference": off}


# -- memory ---------------------------------------------------------------------------------------------------------------------


def predicted(system: str, method: str, asked: argparse.Namespace, sentencepiece: Sentencepiece, precision: str) -> dict[str, float]:
    """GiB at the peak, and of parameters; their gradients, all there at the end, are as large."""
    with FakeTensorMode():
        made = ours(asked.shape, asked.dropout, sentencepiece)
        model = made if system.startswith("medrag") else theirs(made, method, asked.passages)
        model = set_up(model, system, precision)
        texts = random_texts(asked.batch, asked.passages, asked.tokens, SHAPES[asked.shape].vocabulary_tokens)
        held = Held()
        held.add(model.parameters(), WEIGHTS)
        with held, Within("cpu", model.parameters()), NothingPadded():
            step(model, method, texts)
    parts = held.at_peak()
    return {"peak": sum(parts.values()) / GIB, "parameters": parts[WEIGHTS] / GIB}


def counted(model: Any, method: str, texts: Texts) -> float:
    """GiB at the peak of a real step by torch's own count of what it allocates; parameters included."""
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step(model, method, texts)
    parameters = {id(parameter): parameter.nbytes for parameter in model.parameters()}
    return float(most_held(found) + sum(parameters.values())) / GIB


# -- time -----------------------------------------------------------------------------------------------------------------------


def race(runs: dict[str, Callable[[], None]], against: str, rounds: int) -> dict[str, dict[str, float]]:
    clock: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for turn in range(rounds):
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            began, began_processor = time.perf_counter(), time.process_time()
            runs[name]()
            clock[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - began_processor)
    return {
        name: {
            "seconds": statistics.median(clock[name]),
            "processor_seconds": statistics.median(processor[name]),
            "ratio": statistics.median(a / b for a, b in zip(clock[against], clock[name], strict=True)),
            "processor_ratio": statistics.median(a / b for a, b in zip(processor[against], processor[name], strict=True)),
        }
        for name in runs
    }


def timed(method: str, asked: argparse.Namespace, sentencepiece: Sentencepiece) -> dict[str, Any]:
    torch.manual_seed(0)
    vocabulary = SHAPES[asked.shape].vocabulary_tokens
    if asked.real:
        texts = real_texts(asked.real, asked.batch, asked.passages, asked.tokens, vocabulary)
    else:
        texts = random_texts(asked.batch, asked.passages, asked.tokens, vocabulary)
    made = ours(asked.shape, asked.dropout, sentencepiece)
    rag = theirs(made, method, asked.passages)
    report: dict[str, Any] = {"source_tokens": int(texts.mask_NL.sum()), "source_places": texts.mask_NL.numel()}
    report |= {"target_tokens": int((texts.target_BT != 0).sum()), "target_places": texts.target_BT.numel()}
    report |= compare(made, rag, method, texts)
    for precision in asked.precisions:

        def run(system: str, precision: str = precision) -> None:
            model = set_up(made if system.startswith("medrag") else rag, system, precision)
            model.zero_grad()
            step(model, method, texts)

        systems = [system for system in SYSTEMS if system in asked.systems]
        report[precision] = race({system: lambda system=system: run(system) for system in systems}, "transformers", asked.rounds)  # type: ignore[misc]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("predict", "check", "time"))
    parser.add_argument("--shape", default="reference", choices=SHAPES)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--precisions", nargs="*", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--chunk", default="cpu", choices=list(head.CHUNK_LOGITS), help="whose chunks of logits a prediction counts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--real", type=Path)
    asked = parser.parse_args()
    asked.batch = asked.batch or {"predict": 16, "check": 2, "time": 1}[asked.what]
    torch.set_num_threads(asked.threads)
    sentencepiece = Sentencepiece.build(["一二三四五六七八九十"] * 20, 400)
    print(json.dumps({name: str(value) for name, value in vars(asked).items()} | {"torch": torch.__version__}), flush=True)
    head.CHUNK_LOGITS["cpu"] = head.CHUNK_LOGITS[asked.chunk]
    for method in asked.methods:
        if asked.what == "time":
            print(json.dumps({method: timed(method, asked, sentencepiece)}), flush=True)
            continue
        for precision in asked.precisions:
            for system in asked.systems:
                row: dict[str, Any] = {"method": method, "precision": precision, "system": system}
                row |= predicted(system, method, asked, sentencepiece, precision)
                if asked.what == "check":
                    made = ours(asked.shape, asked.dropout, sentencepiece)
                    model = set_up(made if system.startswith("medrag") else theirs(made, method, asked.passages), system, precision)
                    texts = random_texts(asked.batch, asked.passages, asked.tokens, SHAPES[asked.shape].vocabulary_tokens)
                    row["counted"] = counted(model, method, texts)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
