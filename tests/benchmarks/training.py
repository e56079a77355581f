"""Training pairs a second and peak memory of medrag's dense method against sentence-transformers' losses and GradCache.

    python tests/benchmarks/training.py CORPUS_FOLDER WORK_FOLDER [--libraries FOLDER] [--rounds 3] [--batches 64 512] [--steps 3] [--model reference]

All train one model preset's encoder with the same weights on the same pairs (one for both sides, cosine / 0.05, questions of 64 tokens,
passages of 128, AdamW): tokenising, forward, backward and step are timed. Each measurement is a process of its own; systems take turns, and
medians over the rounds are shown. Memory is the process's largest resident size less what it had after a small first step. CORPUS_FOLDER holds
``train.jsonl`` and ``passages.jsonl``; FOLDER holds sentence-transformers and, for ``gradcache``, GradCache where they are not installed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AlbertModel

from medrag import encoder, files
from medrag.config import compose
from medrag.encoder import Config as Shape
from medrag.methods import dense
from medrag.retriever import Retriever
from medrag.schedule import Room
from medrag.search import Config, Search
from medrag.text import Segmenter
from medrag.types import Example, Passage
from medrag.vocabulary import Wordpiece

QUESTION_TOKENS, PASSAGE_TOKENS, CHUNK_TEXTS = 64, 128, 32
WARM_UP = 16
CHUNK_TOKENS = CHUNK_TEXTS * PASSAGE_TOKENS
PLAIN = ("medrag", "medrag bf16", "sentence-transformers")
CACHED = ("medrag", "medrag bf16", "sentence-transformers", "sentence-transformers by tokens", "gradcache")
Step = Callable[[list[tuple[str, str]]], None]


def pairs(corpus: Path, count: int) -> list[tuple[str, str]]:
    text = {row["id"]: row["text"] for row in files.read_jsonl(corpus / "passages.jsonl")}
    found = ((row["question"], text[row["positives"][0]]) for row in files.read_jsonl(corpus / "train.jsonl") if row["positives"])
    return [pair for pair, _ in zip(found, range(count), strict=False)]


def shape(model: str) -> Shape:
    return replace(compose([f"model={model}"]).model.encoder, vocabulary_tokens=8000, pooling="mean", similarity="cosine", shared=True)


def prepare(corpus: Path, work: Path, wanted: Shape) -> None:
    """The model once for all: a folder in the transformers layout."""
    work.mkdir(parents=True, exist_ok=True)
    some = pairs(corpus, 100_000)
    wordpiece = Wordpiece.build((text for pair in some for text in pair), wanted.vocabulary_tokens)
    torch.manual_seed(0)
    model = encoder.build(wanted, wordpiece)
    assert model.albert is not None
    model.albert.save_pretrained(work / "model")
    vocabulary = sorted(wordpiece.tokenizer.get_vocab().items(), key=lambda item: item[1])
    (work / "model" / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in vocabulary), "utf-8")
    files.write_json(work / "model" / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512})


def ours(work: Path, wanted: Shape, batch: int, bf16: bool) -> Step:
    wordpiece = Wordpiece.load(work / "model")
    model = encoder.build(replace(wanted, pretrained=str(work / "model")), wordpiece)
    finder = Retriever(Config(QUESTION_TOKENS, PASSAGE_TOKENS), Search(synonyms="", lexical=[]), wordpiece, model, model, Segmenter())
    passages: dict[str, Passage] = {}
    method = dense.Dense(dense.Config(negatives=0, retriever=finder.config), finder, passages).train()
    method.room = Room(tokens=CHUNK_TOKENS) if batch > 64 else Room()
    if bf16:
        method.bfloat16()
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-5)

    def step(some: list[tuple[str, str]]) -> None:
        passages.update({f"p{number}": Passage(f"p{number}", passage, "") for number, (_, passage) in enumerate(some)})
        examples = [Example(f"e{number}", question, ("",), (f"p{number}",)) for number, (question, _) in enumerate(some)]
        optimizer.zero_grad()
        method(method.collate(examples)).backward()
        optimizer.step()

    return step


def sentence_transformers(work: Path, cached: bool, by_tokens: bool) -> Step:
    library = import_module("sentence_transformers")
    losses, modules = (import_module(f"sentence_transformers.sentence_transformer.{name}") for name in ("losses", "modules"))
    word = modules.Transformer(str(work / "model"), max_seq_length=PASSAGE_TOKENS)
    model = library.SentenceTransformer(modules=[word, modules.Pooling(word.get_embedding_dimension(), "mean")], device="cpu").train()
    tokens = CHUNK_TOKENS if by_tokens else None
    loss: Any = losses.MultipleNegativesRankingLoss(model)
    if cached:
        loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=CHUNK_TEXTS, mini_batch_num_tokens=tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)

    def step(some: list[tuple[str, str]]) -> None:
        model.max_seq_length = QUESTION_TOKENS
        questions = model.preprocess([question for question, _ in some])
        model.max_seq_length = PASSAGE_TOKENS
        optimizer.zero_grad()
        loss([questions, model.preprocess([passage for _, passage in some])], torch.zeros(len(some))).backward()
        optimizer.step()

    return step


def gradcache(work: Path) -> Step:
    """GradCache's own loop (what Tevatron's trainer calls) around a plain transformers model."""
    wordpiece = Wordpiece.load(work / "model")
    model = AlbertModel.from_pretrained(work / "model", add_pooling_layer=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)

    def vector(output: Any, mask_BL: torch.Tensor) -> torch.Tensor:
        weight = mask_BL.unsqueeze(-1)
        return torch.nn.functional.normalize((output.last_hidden_state * weight).sum(1) / weight.sum(1), dim=-1)

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return vector(self.model(input_ids=input_ids, attention_mask=attention_mask), attention_mask)

    pooled = Pooled()

    def contrast(q_BD: torch.Tensor, c_BD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(q_BD @ c_BD.T / 0.05, torch.arange(len(q_BD)))

    cache = import_module("grad_cache").GradCache(models=[pooled, pooled], chunk_sizes=CHUNK_TEXTS, loss_fn=contrast)

    def step(some: list[tuple[str, str]]) -> None:
        inputs = []
        for texts, limit in (([question for question, _ in some], QUESTION_TOKENS), ([passage for _, passage in some], PASSAGE_TOKENS)):
            ids, mask = wordpiece.batch(texts, limit)
            inputs.append({"input_ids": ids, "attention_mask": mask.long()})
        optimizer.zero_grad()
        cache(*inputs)
        optimizer.step()

    return step


def measure(system: str, wanted: Shape, batch: int, corpus: Path, work: Path, steps: int) -> dict[str, float]:
    """The first pairs warm up."""
    torch.manual_seed(0)
    some = pairs(corpus, WARM_UP + batch * steps)
    if system.startswith("medrag"):
        step = ours(work, wanted, batch, system.endswith("bf16"))
    elif system == "gradcache":
        step = gradcache(work)
    else:
        step = sentence_transformers(work, batch > 64, system.endswith("tokens"))
    step(some[:WARM_UP])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    for first in range(WARM_UP, len(some), batch):
        step(some[first : first + batch])
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    count = len(some) - WARM_UP
    return {"pairs/s": count / seconds, "pairs/CPU s": count / processor, "MiB": memory}


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What ``work`` returns, done in a fork: it finds the libraries loaded, and leaves neither threads nor memory behind."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe()
    process = context.Process(target=lambda: other.send(work(*given)))
    process.start()
    other.close()
    try:
        return mine.recv()
    except EOFError:
        return None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--libraries", type=Path, action="append", default=[])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.path += [str(folder) for folder in asked.libraries]
    for name in ("sentence_transformers.sentence_transformer.losses", "sentence_transformers.sentence_transformer.modules", "grad_cache"):
        import_module(name)
    torch.set_num_threads(asked.threads)
    wanted = shape(asked.model)
    apart(prepare, asked.corpus, asked.work, wanted)
    for batch in asked.batches:
        systems = CACHED if batch > 64 else PLAIN
        print(f"batch {batch}, model={asked.model}, {asked.threads} threads, torch {torch.__version__}, median of {asked.rounds}", flush=True)
        found: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
        for turn in range(asked.rounds):
            for system in systems if turn % 2 == 0 else systems[::-1]:
                if (row := apart(measure, system, wanted, batch, asked.corpus, asked.work, asked.steps)) is not None:
                    found[system].append(row)
                    print(f"    {turn} {system}: {row}", file=sys.stderr, flush=True)
        for system, rows in found.items():
            middle = {name: statistics.median(row[name] for row in rows) for name in (rows[0] if rows else {})}
            print(f"  {system:34}" + "".join(f"{value:9.1f} {name}" for name, value in middle.items()), flush=True)


if __name__ == "__main__":
    main()
