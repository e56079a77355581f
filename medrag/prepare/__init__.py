"""Raw sources -> passages and examples: cleaned, without personal data, deduplicated, split without leaks, with BM25 hard negatives.

    read -> clean -> (boilerplate) -> sign -> near -> (plan, leak check) -> write -> index -> mine -> (publish)

Stages in brackets look at everything at once, through counts and arrays; the others do shard after shard on all cores or a cluster, and go
on where a killed run stopped. Rows stream, so memory depends on the size of a shard and of the arrays, not of the texts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medrag import duplicates, files, workers
from medrag.files import Artifact
from medrag.prepare import groups, stages, write
from medrag.prepare.settings import Config, check
from medrag.prepare.shards import Work, example_of
from medrag.prepare.statistics import statistics
from medrag.sources import SPLITS, Source, source_files
from medrag.text import Segmenter
from medrag.types import Example, Passage
from medrag.workers import Workers

__all__ = ["Config", "Corpus", "examples", "prepare", "read"]
VERSION = 5
"""raised when the same sources and settings come to give another corpus"""


def prepare(sources: Sequence[Source], config: Config, store: Path, progress: bool = True, working: workers.Config | None = None) -> Artifact:
    """Publish a ``corpus`` artifact: passages, train, dev and test examples, the dictionary, rejects and statistics.

    An artifact already made from the same files with the same settings is returned as it is; a run that was stopped goes on. Raises
    ValueError where a setting is out of range, nothing usable is left, or a leak is found.
    """
    if not sources:
        raise ValueError("no source was named; as in: medrag prepare corpora/consultation.jsonl")
    check(config)
    names = [source.name for source in sources]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several sources have the name {doubled[0]!r}; say another with KIND,name=OTHER:PATH")
    segmenter = Segmenter(Path(config.dictionary) if config.dictionary else None)
    inputs = [
        [source.name, source.kind, source.encoding, source.split, source.columns, [[path.name, files.sha256(path)] for path in source_files(source)]]
        for source in sources
    ]
    settings = asdict(config) | {"dictionary": segmenter.entries}
    key = files.fingerprint(["corpus", VERSION, inputs, settings])
    if found := files.find(store, "corpus", key):
        files.set_current(store, "corpus", found.path)
        return found

    work = Work(store / "corpus" / f".work-{key[:12]}", config, tuple(sources))
    files.name_other_work(work.folder)
    work.begin()
    try:
        with Workers(working or workers.Config()) as crew:
            return _prepare(work, crew, store, key, segmenter, progress)
    except ValueError:
        work.remove()
        raise


def _prepare(work: Work, crew: Workers, store: Path, key: str, segmenter: Segmenter, progress: bool) -> Artifact:
    work.run(crew, "read", stages.read, [f"{number:03d}" for number in range(len(work.sources))], " sources", progress)
    names = work.names()
    work.run(crew, "clean", stages.clean, names, " shards", progress)
    stages.boilerplate(work, names)
    work.run(crew, "sign", stages.sign, names, " shards", progress)
    table = groups.gather(work, names)
    if not (table.kind != groups.QUERY).any():
        dropped = stages.dropped(work)
        raise ValueError(f"no usable record in {', '.join(str(source.path) for source in work.sources)} ({dropped})")
    questions, answers = (_near(work, crew, side, getattr(table, side), progress) for side in groups.SIDES)
    plan = groups.plan(table, questions, answers, work.config)
    checked = groups.check_leaks(table, questions, answers, plan.example, plan.split)
    write.save_plan(work, table, plan, questions, answers)
    work.run(crew, "write", write.write, names, " shards", progress)
    if work.config.negatives:
        work.run(crew, "index", write.index, write.blocks(work), " blocks", progress)
    work.run(crew, "mine", write.mine, names, " shards", progress)

    with files.publish(store, "corpus", key=key, config=asdict(work.config)) as folder:
        _join(folder / "passages.jsonl", (work.path("write", f"{name}.passages.jsonl") for name in names))
        _join(folder / "train.jsonl", (work.path("mine", f"{name}.jsonl") for name in names))
        for split in ("dev", "test"):
            files.write_jsonl(
                folder / f"{split}.jsonl",
                (row["example"] for name in names for row in files.read_jsonl(work.path("write", f"{name}.{split}.jsonl"))),
            )
        files.write_jsonl(folder / "rejects.jsonl", stages.rejects_of(work))
        segmenter.save(folder / "dictionary.txt")
        files.write_json(folder / "statistics.json", statistics(work, table, questions, answers, plan, checked))
    work.remove()
    return files.current(store, "corpus")


def _near(work: Work, crew: Workers, side: str, hashes: duplicates.U64, progress: bool) -> groups.Near:
    same = groups.same(hashes)
    if work.config.near_similarity:
        np.save(work.path("near", f"{side}-rows.npy"), np.flatnonzero((same == np.arange(len(same))) & (hashes != 0)))
        work.run(crew, "near", groups.find_near, [f"{side}-{band:02d}" for band in range(duplicates.BANDS)], f" bands of {side}s", progress)
    return groups.near_of(work, side, same)


def _join(path: Path, parts: Iterable[Path]) -> None:
    with open(path, "wb") as stream:
        for part in parts:
            with open(part, "rb") as some:
                shutil.copyfileobj(some, stream)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A prepared corpus in memory."""

    artifact: Artifact
    passages: list[Passage]
    train: list[Example]
    dev: list[Example]
    test: list[Example]

    @property
    def dictionary(self) -> Path:
        return self.artifact.path / "dictionary.txt"

    def texts(self) -> Iterator[str]:
        """Every passage and every training question: what vocabularies are built from."""
        yield from (passage.text for passage in self.passages)
        yield from (example.question for example in self.train)


def read(artifact: Artifact) -> Corpus:
    """The corpus of a checked artifact."""
    passages = [Passage(**row) for row in files.read_jsonl(artifact.path / "passages.jsonl")]
    train, dev, test = (list(examples(artifact, split)) for split in SPLITS)
    return Corpus(artifact, passages, train, dev, test)


def examples(artifact: Artifact, split: str) -> Iterator[Example]:
    """The examples of one split of a checked artifact."""
    return (example_of(row) for row in files.read_jsonl(artifact.path / f"{split}.jsonl"))
