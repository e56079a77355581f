"""The index: built from a corpus, added to, removed from. Each makes a new artifact; what did not change is linked, not copied.

    passages -> vectors -> search -> BM25 -> questions -> weights and confidence -> publish

Building and adding are cut into steps, vectors and BM25 into one for each shard: a killed run goes on with those that are finished.

Shapes: R rows removed, D width.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medrag import files, index
from medrag.encoding import Encoding
from medrag.files import Artifact
from medrag.index import Index
from medrag.index.vectors import Vectors
from medrag.indexing import additions, stages
from medrag.indexing.stages import REMOVED, made
from medrag.indexing.steps import Steps
from medrag.passages import SHARDS, Passages, Rows, said, write_ids
from medrag.prepare import Config
from medrag.retriever import FILE, Retriever
from medrag.search import check
from medrag.sources import Source, source_files
from medrag.types import Example, Passage

VERSION = 6
"""raised when the same passages and settings come to give another index"""
_COUNTS = ".counts.json"
SHOWN = 5
"""ids, and rows left out, that a message names"""


def build(
    corpus: Artifact,
    dense: Artifact,
    finder: Retriever,
    encoding: Encoding,
    train: Iterable[Example],
    dev: Sequence[Example],
    progress: bool = True,
) -> Artifact:
    """Publish the index of a corpus by a dense method's encoders, tuned on development questions; one already built is made current.

    ``finder`` is the dense method's retriever with the settings of the index, ``encoding`` its passage encoder. Vectors are taken from an
    index that has them. Raises ValueError where a setting is out of range or two passages have one id.
    """
    store, search = corpus.path.parent.parent, finder.search
    check(search)
    key = files.fingerprint(["index", VERSION, corpus.hash, dense.hash, asdict(search), finder.new_lexical("words").synonyms.groups])
    if found := _published(store, key):
        return found
    with Steps(store / "index", key) as steps:
        rows = (Passage(**row) for row in files.read_jsonl(corpus.path / "passages.jsonl"))
        passages = Passages(steps.step("passages", lambda folder: stages.write_passages(folder, rows, search.shard_passages, progress)))
        index.choose(search.kind, len(passages), encoding.width, search.memory_gib)
        vectors = Vectors(stages.vectors(steps, passages, finder, encoding, progress, _donor(corpus, dense, finder)))

        def train_index(folder: Path) -> None:
            made_index = Index.build(vectors, search.kind, search.memory_gib, search.probes, search.refine, progress)
            made_index.save(made(folder / "search"))

        steps.step("search", train_index)
        for unit in search.lexical:
            stages.lexical(steps, unit, passages, finder, progress)
        if search.questions:
            stages.questions(steps, finder, train, Rows(steps.folder / "passages", passages), progress)
        tuned = json.loads(stages.tune(steps, finder, dev).read_text("utf-8"))
        config = {"index": asdict(search), "tuned": tuned, "history": []}
        _tell_what_is_left_behind(store / "index")
        with files.publish(store, "index", key=key, parents=[corpus, dense], config=config) as folder:
            steps.link(folder)
    return files.current(store, "index")


def add(base: Artifact, sources: Sequence[Source], cleaned_by: Config, finder: Retriever, encoding: Encoding, progress: bool = True) -> Artifact:
    """Publish ``base`` with the passages of files behind its own; equal passages are skipped, and where nothing is new ``base`` is returned.

    ``finder`` is the dense method's retriever with ``base`` loaded, ``cleaned_by`` the settings of its corpus. The trained index and the tuned
    weights stay as they are. Raises ValueError that names file, line and id where an id is another passage's, or a passage is empty.
    """
    store, search = base.path.parent.parent, finder.search
    named = [[source.name, source.kind, [[path.name, files.sha256(path)] for path in source_files(source)]] for source in sources]
    key = files.fingerprint(["index add", VERSION, base.hash, named, [source.columns for source in sources]])
    if found := _published(store, key):
        return found
    old = Passages(base.path)
    with Steps(store / "index", key) as steps:

        def read(folder: Path) -> None:
            counts = {"added": 0, "equal": 0, "left_out": 0, "personal_data": 0}
            new = _new(base, old, sources, cleaned_by, counts)
            stages.write_passages(folder, new, search.shard_passages, progress, old.numbers[-1] + 1, base.path, len(old))
            files.write_json(folder / _COUNTS, counts)

        part = steps.step("passages", read)
        counts = json.loads((part / _COUNTS).read_text("utf-8"))
        print(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()), file=sys.stderr)
        if not counts["added"]:
            return base
        passages = Passages(part)
        new_vectors = stages.vectors(steps, passages, finder, encoding, progress)

        def extend(folder: Path) -> None:
            grown = Index.load(base.path / "search", Vectors.load(base.path / SHARDS))
            for x_ND in new_vectors:
                grown.add(x_ND)
            grown.save(made(folder / "search"))

        steps.step("search", extend)
        for unit in search.lexical:
            stages.lexical(steps, unit, passages, finder, progress, base.path)
        return _descend(base, key, {"verb": "add", "files": named, **counts}, steps)


def remove(base: Artifact, names: Sequence[str]) -> Artifact:
    """Publish ``base`` without the passages of these ids; their rows stay, and are never found again.

    Raises ValueError that names ids which are not there, or where nothing would be left.
    """
    store = base.path.parent.parent
    passages = Passages(base.path)
    row = Rows(base.path, passages)
    if unknown := [name for name in dict.fromkeys(names) if name not in row]:
        raise ValueError(
            f"{base.path} has no passage {', '.join(map(repr, unknown[:SHOWN]))}" + (f" ({len(unknown)} such ids)" * (len(unknown) > SHOWN))
        )
    gone = sorted({row[name] for name in names})
    if len(gone) == len(row):
        raise ValueError(f"{base.path}: no passage would be left")
    key = files.fingerprint(["index remove", VERSION, base.hash, gone])
    if found := _published(store, key):
        return found
    removed_R = np.union1d(np.load(base.path / REMOVED, allow_pickle=False), np.array(gone, np.int64))
    with Steps(store / "index", key) as steps:

        def write(folder: Path) -> None:
            np.save(folder / REMOVED, removed_R, allow_pickle=False)
            write_ids(folder, [], len(passages), base.path, removed_R)

        steps.step("removed", write)
        return _descend(base, key, {"verb": "remove", "removed": len(gone)}, steps)


def ancestors(index: Artifact) -> set[str]:
    """The hashes of the indexes that this one was made from by additions and removals."""
    return {str(step["of"]) for step in index.manifest["config"].get("history", [])}


def _published(store: Path, key: str) -> Artifact | None:
    """The artifact of this key, made current; work folders that killed runs left of what is published by now are put away."""
    home = store / "index"
    found = files.find(store, "index", key)
    for made_by in [json.loads(path.read_text("utf-8"))["key"] for path in home.glob(f"v*-*/{files.MANIFEST}")]:
        shutil.rmtree(Steps(home, made_by).folder, ignore_errors=True)
    if found is not None:
        print(f"already made: {found.path}", file=sys.stderr)
        files.set_current(store, "index", found.path)
    return found


def _tell_what_is_left_behind(home: Path) -> None:
    """Name on stderr what was added to the index that was current, since one of the corpus alone takes its place."""
    pointer = home / files.CURRENT
    if not pointer.is_file():
        return
    manifest = json.loads((home / pointer.read_text("utf-8").strip() / files.MANIFEST).read_text("utf-8"))
    history = manifest["config"].get("history", [])
    added = [name for step in history for _, _, named in step.get("files", []) for name, _ in named]
    if history:
        removed = sum(step.get("removed", 0) for step in history)
        print(f"the index holds the corpus alone: {removed} removed passages are back, and what was added is not: {added}", file=sys.stderr)


def _donor(corpus: Artifact, dense: Artifact, finder: Retriever) -> Path | None:
    """An index, whole, of the same passages by the same encoder in the same shards: only what finds them is other."""
    same = ("shard_passages", "encoding")
    for path in sorted((corpus.path.parent.parent / "index").glob("v*-*")):
        manifest = json.loads((path / files.MANIFEST).read_text("utf-8"))
        if manifest["parents"] != {each.kind: each.reference for each in (corpus, dense)} or manifest["config"].get("history") != []:
            continue
        if all(manifest["config"]["index"][name] == getattr(finder.search, name) for name in same):
            return files.open_artifact(path).path
    return None


def _descend(base: Artifact, key: str, what: Mapping[str, Any], steps: Steps) -> Artifact:
    """Publish the files of the steps, and those of ``base`` that they do not replace. Corpus and dense method stay its parents."""
    store, told = base.path.parent.parent, base.manifest["config"]
    config = told | {"history": [*told["history"], {"of": base.hash, **what}]}
    with files.publish(store, "index", key=key, parents=[base.parent("corpus"), base.parent("dense"), base], config=config) as folder:
        files.link_tree(base.path, folder, base.manifest["files"])
        steps.link(folder)
        settings = json.loads((folder / FILE).read_text("utf-8"))
        counts = {"passages": len(Passages(folder)), "removed": len(np.load(folder / REMOVED, allow_pickle=False))}
        files.write_json(folder / FILE, settings | counts)
    return files.current(store, "index")


def _new(base: Artifact, old: Passages, sources: Sequence[Source], cleaned_by: Config, counts: dict[str, int]) -> Iterator[Passage]:
    """The passages of files that are not there yet, counted; rows left out are named on stderr."""
    rows, texts = Rows(base.path, old), Rows(base.path, old, by="texts")
    places, seen = dict[str, str](), set[str]()
    for source in sources:
        for place, passage in additions.read(source, cleaned_by, counts):
            if isinstance(passage, str):
                counts["left_out"] += 1
                if counts["left_out"] <= SHOWN:
                    print(f"left out: {place}: {passage}", file=sys.stderr)
                continue
            key = said(passage)
            if key in texts or key in seen:
                counts["equal"] += 1
                continue
            if passage.id in rows or passage.id in places:
                where = places.get(passage.id) or f"{base.path.name}, row {rows[passage.id]}"
                raise ValueError(f"{place}: the id {passage.id!r} is that of another passage ({where})")
            places[passage.id] = place
            seen.add(key)
            counts["added"] += 1
            yield passage
