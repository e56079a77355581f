"""The steps that an index is made of: passages, their vectors, and what finds them. Each leaves its files where the artifact has them.

Shapes: n passages of a shard, M questions that passages are found through, D width.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from medrag import files
from medrag.encoding import Encoding
from medrag.index import Index
from medrag.index.vectors import Vectors
from medrag.indexing import tuning
from medrag.indexing.steps import Steps
from medrag.lexical import Lexical
from medrag.memory import FOLDERS, LEXICALS
from medrag.passages import SHARDS, Passages, write_ids, write_shard
from medrag.retriever import FILE, Retriever
from medrag.types import Example, Passage

REMOVED = "removed.npy"
TUNED = ".tuned.json"
"""what tuning found out, beside what it leaves in the artifact"""


def write_passages(
    folder: Path, rows: Iterable[Passage], at_once: int, progress: bool, first: int = 0, before: Path | None = None, first_row: int = 0
) -> None:
    """Shards numbered from ``first``, and the lookups of all rows, those of the index ``before`` too; one shard is held in memory.

    Raises ValueError where two passages have one id.
    """
    shards, number = made(folder / SHARDS), first
    rest = iter(tqdm(rows, desc="reading", unit=" passages", disable=not progress, file=sys.stderr))
    while some := list(islice(rest, at_once)):
        write_shard(shards, number, some)
        number += 1
    if before is None:
        np.save(folder / REMOVED, np.zeros(0, np.int64), allow_pickle=False)
    removed = () if before is None else np.load(before / REMOVED, allow_pickle=False)
    write_ids(folder, Passages(folder), first_row, before, removed, progress)


def vectors(
    steps: Steps, passages: Passages, finder: Retriever, encoding: Encoding, progress: bool, donor: Path | None = None
) -> list[npt.NDArray[np.float32]]:
    """The mapped vectors (n, D) of every shard, one step each; ``donor`` is an index that holds the same ones already."""
    found = []
    with tqdm(total=len(passages), desc="passages", unit="", disable=not progress, file=sys.stderr) as bar:
        for number, some in shards(passages):
            name = f"{SHARDS}/{number:05d}.npy"

            def encode(folder: Path, some: range = some, name: str = name) -> None:
                made(folder / SHARDS)
                if donor is not None:
                    files.link_tree(donor, folder, [name])
                else:
                    texts = [finder.searched(passages[row]) for row in some]
                    np.save(folder / name, encoding(texts, progress and len(passages.numbers) > 1), allow_pickle=False)

            found.append(np.load(steps.step(f"vectors-{number:05d}", encode) / name, mmap_mode="r", allow_pickle=False))
            bar.update(len(some))
    return found


def lexical(steps: Steps, signal: str, passages: Passages, finder: Retriever, progress: bool, base: Path | None = None) -> None:
    """BM25 over the passages behind those of ``base``, one step a shard."""
    with tqdm(total=len(passages), desc=f"BM25, {signal}", unit=" passages", disable=not progress, file=sys.stderr) as bar:
        for number, some in shards(passages):

            def count(folder: Path, some: range = some) -> None:
                _count(steps, folder, signal, _told(bar, (finder.searched(passages[row]) for row in some)), finder, base)

            steps.step(f"{signal}-{number:05d}", count)
            bar.update(some.stop - bar.n)


def questions(steps: Steps, finder: Retriever, train: Iterable[Example], row: Mapping[str, int], progress: bool) -> None:
    """The training questions, each once for every passage that answers it: texts, vectors, owners, and what searches them.

    Raises ValueError where there are none.
    """

    def write(folder: Path) -> None:
        asked = [(row[name], example.question) for example in train for name in example.positives if name in row]
        if not asked:
            raise ValueError("index.questions=true, but no training question of the corpus has a passage that answers it")
        home, texts = made(folder / "questions"), [question for _, question in asked]
        files.write_jsonl(home / "00000.jsonl", ({"row": owner, "text": question} for owner, question in asked))
        np.save(home / "owners.npy", np.array([owner for owner, _ in asked], np.int64), allow_pickle=False)
        np.save(home / "00000.npy", finder.question_vectors(texts, progress), allow_pickle=False)
        Index.build(Vectors.load(home), "auto", finder.search.memory_gib, progress=progress).save(made(folder / "question_search"))
        if finder.search.lexical:
            _count(steps, folder, "question_characters", texts, finder)

    steps.step("questions", write)


def tune(steps: Steps, finder: Retriever, dev: Sequence[Example]) -> Path:
    """Weights and confidence, from the whole index as it will be published; gives the file that says what was found."""

    def write(folder: Path) -> None:
        whole = steps.folder / ".whole"
        shutil.rmtree(whole, ignore_errors=True)
        steps.link(whole)
        finder.attach(whole)
        files.write_json(folder / TUNED, tuning.tune(finder, dev))
        files.write_json(folder / FILE, finder.state())
        shutil.rmtree(whole)

    return steps.step("tuned", write) / TUNED


def _told(bar: tqdm[Any], texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield text
        bar.update()


def shards(passages: Passages) -> list[tuple[int, range]]:
    """The number of every shard, and its rows among ``passages``."""
    first = passages.first.tolist()
    return [(number, range(first[place], first[place + 1])) for place, number in enumerate(passages.numbers)]


def made(folder: Path) -> Path:
    """A folder that was not there before."""
    folder.mkdir(parents=True)
    return folder


def _count(steps: Steps, folder: Path, signal: str, texts: Iterable[str], finder: Retriever, base: Path | None = None) -> None:
    """Append to BM25: shards before these are linked to be read, and only what is new stays in the step."""
    place = FOLDERS[signal]
    target = made(folder / place)
    if base is not None:
        files.link_tree(base, folder, [f"{place}/{path.name}" for path in (base / place).iterdir()])
    steps.link(folder, f"{place}/")
    linked = list(target.iterdir())
    counted = Lexical.load(target, finder.segmenter, LEXICALS[signal])
    if not linked:
        counted.synonyms = finder.new_lexical(signal).synonyms
    for path in linked:
        path.unlink()  # before anything is written: a link is the other step's file itself
    counted.add(texts)
    counted.save(target)
