"""What the tests of the index share: a store with a corpus and a dense method of random weights, and indexes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from conftest import Tiny

from medrag import files, indexing
from medrag.encoding import Encoding
from medrag.files import Artifact
from medrag.passages import Passages
from medrag.prepare import Config
from medrag.retriever import Retriever
from medrag.search import Search
from medrag.sources import recognise
from medrag.types import Passage

CLEANED_BY = Config(dictionary="")


def many(tiny: Tiny, count: int) -> list[Passage]:
    """Passages of which no two are alike to the encoder, which knows no digits; the first are those that answer the examples."""
    plain = tiny.passages
    doubled = [
        replace(one, id=f"p{len(plain) * turn + place}", text=one.text + plain[(place + 11 * turn) % len(plain)].text)
        for turn in range(1, 1 + count // len(plain))
        for place, one in enumerate(plain)
    ]
    return [*plain, *doubled][:count]


def publish(store: Path, tiny: Tiny, passages: Sequence[Passage]) -> tuple[Artifact, Artifact]:
    """A corpus and a dense method, as far as the index looks at them."""
    with files.publish(store, "corpus", key="corpus", config=asdict(CLEANED_BY)) as folder:
        files.write_jsonl(folder / "passages.jsonl", map(asdict, passages))
        files.write_jsonl(folder / "train.jsonl", map(asdict, tiny.examples[10:]))
        for split in ("dev", "test"):
            files.write_jsonl(folder / f"{split}.jsonl", map(asdict, tiny.examples[:10]))
        tiny.segmenter.save(folder / "dictionary.txt")
    corpus = files.current(store, "corpus")
    with files.publish(store, "dense", key="dense", parents=[corpus]) as folder:
        files.write_json(folder / "method.json", {})
    return corpus, files.current(store, "dense")


def finder(tiny: Tiny, index: Artifact | None = None, seed: int = 0, **search: Any) -> Retriever:
    """The dense method's retriever: a new one with these settings of the search, or one with an index loaded."""
    made = tiny.retriever(seed, remember=False)
    made.search = Search(**{"kind": "flat", "shard_passages": 25, "encoding": "fp32", "synonyms": "", **search})
    if index is not None:
        made.load(index.path)
    return made


def encoding(made: Retriever) -> Encoding:
    assert made.context_encoder is not None
    return Encoding(made.context_encoder, made.wordpiece, made.config.passage_tokens, made.search.encoding)


def build(store: Path, tiny: Tiny, **search: Any) -> Artifact:
    made = finder(tiny, **search)
    corpus, dense = files.current(store, "corpus"), files.current(store, "dense")
    return indexing.build(corpus, dense, made, encoding(made), tiny.examples[10:], tiny.examples[:10], progress=False)


def add(base: Artifact, tiny: Tiny, *paths: Path) -> Artifact:
    made = finder(tiny, base)
    return indexing.add(base, [recognise(str(path)) for path in paths], CLEANED_BY, made, encoding(made), progress=False)


def write(path: Path, passages: Sequence[Passage]) -> Path:
    files.write_jsonl(path, map(asdict, passages))
    return path


def contents(artifact: Artifact) -> dict[str, bytes]:
    """Every file but the manifest, whose library versions and nothing else may differ."""
    names = artifact.manifest["files"]
    return {name: (artifact.path / name).read_bytes() for name in names}


def live(index: Artifact) -> list[Passage]:
    """The passages of an index that are not removed, in the order of their rows."""
    import numpy as np

    removed = set(np.load(index.path / "removed.npy").tolist())
    return [passage for row, passage in enumerate(Passages(index.path)) if row not in removed]
