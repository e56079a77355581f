"""``medrag cut``: a pretrained mT5 whose vocabulary, embedding and head are cut to what the newest corpus needs, as a folder to start from."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medrag import assemble, files, generator
from medrag.config import Run
from medrag.files import Artifact
from medrag.generator import layout
from medrag.vocabulary import Sentencepiece, pretrained_folder

KIND = "mt5"


def cut(run: Run, name: str) -> Artifact:
    """The mT5 of a folder in the transformers layout (or of a hub name), cut: an artifact that is such a folder again.

    The artifact's configuration says how many pieces and parameters there were before and after, and what the cut changed of the corpus's
    encoding. One that was made already is made current again. Raises ValueError where the folder holds no mT5 in safetensors, where the limit
    ``model.generator.vocabulary_tokens`` has no room for the special pieces, or where there is no corpus.
    """
    store, limit = Path(run.store), run.model.generator.vocabulary_tokens
    folder = pretrained_folder(name)
    shape = _shape(folder)
    whole = Sentencepiece.load(folder)
    data = assemble.corpus(run)
    inputs = [files.sha256(folder / layout.CONFIG), files.sha256(folder / layout.WEIGHTS), hashlib.sha256(whole.proto).hexdigest()]
    key = files.fingerprint([KIND, inputs, data.artifact.hash, limit])
    if found := files.find(store, KIND, key):
        files.set_current(store, KIND, found.path)
        return found
    print(f"cutting {folder} to the corpus {data.artifact.path}", file=sys.stderr)
    texts = list(data.texts())
    small, order = whole.cut(texts, limit)
    try:
        made = generator.build(replace(run.model.generator, pretrained=str(folder), dropout=shape["dropout_rate"]), small)
    except (RuntimeError, KeyError, IndexError) as error:
        raise ValueError(f"{folder / layout.WEIGHTS}: not the weights of the mT5 that {layout.CONFIG} describes ({_line(error)})") from error
    report = {
        "pieces": [whole.size, small.size],
        "parameters": [made.parameters_count + 2 * shape["d_model"] * (shape["vocab_size"] - small.size), made.parameters_count],
        **_compared(whole, small, order, texts),
    }
    with files.publish(store, KIND, key=key, parents=[data.artifact], config=report) as staging:
        made.export(staging)
    return files.current(store, KIND)


def told(artifact: Artifact) -> list[str]:
    """What a cut did, for the one who asked for it, and how it is used."""
    report: dict[str, Any] = artifact.manifest["config"]
    (pieces, pieces_after), (parameters, parameters_after) = report["pieces"], report["parameters"]
    kept = report["tokens_kept"] / max(report["tokens"], 1)
    return [
        f"{pieces:,} -> {pieces_after:,} pieces; {parameters:,} -> {parameters_after:,} parameters",
        f"of the corpus's {report['tokens']:,} tokens {kept:.2%} have their piece still; "
        f"{report['texts_differ']:,} of {report['texts']:,} texts are encoded differently ({report['tokens_after'] - report['tokens']:+,} tokens)",
        f"start from it with: model.generator.pretrained={artifact.path} model.generator.vocabulary_tokens={pieces_after}",
    ]


def _shape(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``. Raises ValueError where it, or the weights beside it, are not what can be cut."""
    for name in (layout.CONFIG, layout.WEIGHTS):
        if not (folder / name).is_file():
            others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".h5", ".msgpack", ".pt", ".safetensors"))
            beside = f" (it holds {', '.join(others[:3])}; one file of safetensors is read, and never a pickle)" if others else ""
            raise ValueError(f"{folder}: no {name} there{beside}")
    try:
        config: dict[str, Any] = json.loads((folder / layout.CONFIG).read_text("utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / layout.CONFIG}: not a model's configuration ({_line(error)})") from error
    if kind != "mt5":
        raise ValueError(f"{folder / layout.CONFIG}: model_type={kind!r}; allowed: mt5")
    if missing := [key for key in ("vocab_size", "d_model") if not isinstance(config.get(key), int)]:
        raise ValueError(f"{folder / layout.CONFIG}: {', '.join(missing)} must be there, as a whole number")
    return {"dropout_rate": 0.1} | config


def _compared(whole: Sentencepiece, small: Sentencepiece, order: Sequence[int], texts: Sequence[str]) -> dict[str, int]:
    """How the texts are encoded with either vocabulary; ``order`` holds the old ids of the new pieces."""
    kept = set(order)
    counts = {"texts": len(texts), "texts_differ": 0, "tokens": 0, "tokens_kept": 0, "tokens_after": 0}
    for text in texts:
        before = whole.processor.encode(text)
        after = [order[token] for token in small.processor.encode(text)]
        counts["texts_differ"] += before != after
        counts["tokens"] += len(before)
        counts["tokens_kept"] += sum(token in kept for token in before)
        counts["tokens_after"] += len(after)
    return counts


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
