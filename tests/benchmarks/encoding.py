"""Passages a second of ``medrag.encoding`` and of sentence-transformers' ``encode``: same weights, texts, threads, in one run, by turns.

    PYTHONPATH=SITE python tests/benchmarks/encoding.py PASSAGES.jsonl [--texts 512] [--rounds 3] [--threads 2] [--limit 256]
        [--shapes albert-small small] [--trained DENSE_ARTIFACT --corpus CORPUS_ARTIFACT] [--json FILE.json] [--memory]

SITE holds sentence-transformers (it is no dependency of medrag); without it medrag's precisions are compared with its own fp32.

- Texts are spread evenly over the file. Each round runs every system once, in turn; a *ratio* is the median over rounds of the peer's time
  through a system's time in the same round, by the clock and by the processor (the latter holds on a machine that does other things too).
- ``peer`` is sentence-transformers as it loads an ALBERT checkpoint (whose configurations say ``gelu_new``); ``peer, fused GELU`` is the same
  with medrag's activation. Both sort by length and take 32 texts a batch, their default; with few texts that means much padding, which a
  corpus does not have: a few hundred are needed for a fair figure (``padding`` in the report: padded size over tokens at 32 texts a batch).
- *cosine* is the least one between a text's vector and medrag's fp32; *overlap* the mean share of the ten nearest other texts that stay.
- With ``--trained``, R@10 of the corpus's test questions (encoded in fp32) over the passages that answer them and every tenth other passage.
- ``--memory``: the peak of resident memory of a process of its own that encodes the texts once, models loaded with it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from medrag import encoder, files
from medrag.encoder import Encoder
from medrag.encoding import Encoding
from medrag.vocabulary import Wordpiece

Floats = npt.NDArray[np.float32]
System = Callable[[Sequence[str]], Floats]
SHAPES = {
    "albert-small": encoder.Config(),
    "small": encoder.Config(width=256, heads=8, layers=2, feed_forward=1024, dropout=0.0, pooling="mean", similarity="cosine"),
}
OURS = ("fp32", "bf16", "int8")
PEERS = {"peer": "gelu_new", "peer, fused GELU": "gelu_pytorch_tanh"}
BEST = 10


def peer(made: Encoder, wordpiece: Wordpiece, limit_tokens: int, activation: str, folder: Path) -> System:
    """sentence-transformers with the same weights and tokens."""
    from sentence_transformers import SentenceTransformer, models  # type: ignore[import-not-found, unused-ignore]

    marks = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=wordpiece.tokenizer, **marks).save_pretrained(folder)
    made.transformer.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(said | {"hidden_act": activation}), "utf-8")
    transformer = models.Transformer(str(folder), max_seq_length=limit_tokens)
    pooling = models.Pooling(made.width, pooling_mode=made.pooling)
    model = SentenceTransformer(modules=[transformer, pooling, *([models.Normalize()] if made.similarity == "cosine" else [])], device="cpu")
    return lambda texts: np.asarray(model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False))


def systems(made: Encoder, wordpiece: Wordpiece, limit_tokens: int, folder: Path) -> dict[str, System]:
    """Everything that is compared, by name; the peers only where they are installed."""
    found: dict[str, System] = {}
    for number, (name, activation) in enumerate(PEERS.items()):
        try:
            found[name] = peer(made, wordpiece, limit_tokens, activation, folder / str(number))
        except ImportError:
            print("sentence-transformers is not installed: medrag alone", file=sys.stderr)
            break
    return found | {precision: Encoding(made, wordpiece, limit_tokens, precision) for precision in OURS}


def nearest(x_ND: Floats) -> npt.NDArray[np.int64]:
    """Rows of the ten nearest others of each row, by inner product."""
    score_NN = x_ND @ x_ND.T
    np.fill_diagonal(score_NN, -np.inf)
    return np.argsort(-score_NN, axis=1)[:, :BEST]


def agreement(exact_ND: Floats, x_ND: Floats) -> dict[str, float]:
    cosine_N = (exact_ND * x_ND).sum(1) / np.linalg.norm(exact_ND, axis=1) / np.linalg.norm(x_ND, axis=1)
    pairs = zip(nearest(exact_ND), nearest(x_ND), strict=True)
    return {"cosine": float(cosine_N.min()), "overlap": float(np.mean([len({*a} & {*b}) / BEST for a, b in pairs]))}


def race(found: dict[str, System], texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Rounds of all systems by turns."""
    clock: dict[str, list[float]] = {name: [] for name in found}
    processor: dict[str, list[float]] = {name: [] for name in found}
    vectors: dict[str, Floats] = {}
    for system in found.values():
        system(texts[:8])
    for _ in range(rounds):
        for name, system in found.items():
            began, began_processor = time.perf_counter(), time.process_time()
            vectors[name] = system(texts)
            clock[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - began_processor)
    against = next(iter(found))
    return {
        name: {
            "passages_per_second": len(texts) / min(clock[name]),
            "passages_per_processor_second": len(texts) / min(processor[name]),
            "ratio": statistics.median(a / b for a, b in zip(clock[against], clock[name], strict=True)),
            "processor_ratio": statistics.median(a / b for a, b in zip(processor[against], processor[name], strict=True)),
            **agreement(vectors["fp32"], vectors[name]),
        }
        for name in found
    }


def trained(artifact: Path) -> tuple[Encoder, Wordpiece]:
    """The encoder of passages of a dense method's artifact."""
    description = json.loads((artifact / "method.json").read_text("utf-8"))
    made = encoder.restore(description["encoder"])
    role = "question" if description["shared"] else "context"
    prefix = f"retriever.{role}_encoder."
    weights = load_file(artifact / "weights.safetensors")
    made.load_state_dict({name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)})
    return made.eval(), Wordpiece.load(artifact)


def recall(made: Encoder, wordpiece: Wordpiece, corpus: Path, limit_tokens: int, questions: int = 1000) -> dict[str, Any]:
    """R@10 of a shared encoder's vectors, passages in each precision and questions in fp32."""
    passages = list(files.read_jsonl(corpus / "passages.jsonl"))
    row = {passage["id"]: number for number, passage in enumerate(passages)}
    asked = [example for example in files.read_jsonl(corpus / "test.jsonl") if example["positives"]]
    asked = asked[:: max(1, len(asked) // questions)][:questions]
    kept = sorted({row[name] for example in asked for name in example["positives"]} | set(range(0, len(passages), 10)))
    place = {number: at for at, number in enumerate(kept)}
    q_BD = Encoding(made, wordpiece, limit_tokens)([example["question"] for example in asked])
    out: dict[str, Any] = {"questions": len(asked), "passages": len(kept)}
    for precision in OURS:
        x_ND = Encoding(made, wordpiece, limit_tokens, precision)([passages[number]["text"] for number in kept])
        top_BK = np.argsort(-(q_BD @ x_ND.T), axis=1)[:, :BEST]
        hits = [any(place[row[name]] in top for name in example["positives"]) for example, top in zip(asked, top_BK, strict=True)]
        out[precision] = 100 * float(np.mean(hits))
    return out


def peak_mib(arguments: Sequence[str], shape: str, name: str) -> float:
    """Peak resident memory of this script's process for one system."""
    command = [sys.executable, __file__, *arguments, "--shapes", shape, "--alone", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("passages", type=Path)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    texts = [passage["text"] for passage in files.read_jsonl(asked.passages)]
    wordpiece = Wordpiece.build(texts, 21_128)
    texts = texts[:: max(1, len(texts) // asked.texts)][: asked.texts]
    tokens = sum(int(wordpiece.batch([text], asked.limit)[1].sum()) for text in texts)
    by_length = sorted(texts, key=len, reverse=True)
    padded = sum(wordpiece.batch(by_length[start : start + 32], asked.limit)[0].numel() for start in range(0, len(texts), 32))
    report: dict[str, Any] = {"texts": len(texts), "tokens_per_text": tokens / len(texts), "padding": padded / tokens, "threads": asked.threads}
    print(report)
    report["shapes"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in asked.shapes:
            torch.manual_seed(0)
            made = encoder.build(SHAPES[shape], wordpiece).eval()
            if asked.alone:
                wanted = {asked.alone: PEERS[asked.alone]} if asked.alone in PEERS else {}
                system: System = (
                    peer(made, wordpiece, asked.limit, wanted[asked.alone], Path(folder))
                    if wanted
                    else Encoding(made, wordpiece, asked.limit, asked.alone)
                )
                system(texts)
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
                return
            found = race(systems(made, wordpiece, asked.limit, Path(folder) / shape), texts, asked.rounds)
            report["shapes"][shape] = found
            for name, figures in found.items():
                if asked.memory:
                    settings = ["--texts", str(asked.texts), "--threads", str(asked.threads), "--limit", str(asked.limit)]
                    figures["peak_mib"] = peak_mib([str(asked.passages), *settings], shape, name)
                print(f"{shape:13} {name:17}", *(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)
    if asked.trained:
        report["recall_at_10"] = recall(*trained(asked.trained), asked.corpus, asked.limit)
        print("R@10", report["recall_at_10"])
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
