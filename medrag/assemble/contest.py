"""``medrag evaluate``: which trained methods are measured, on what, and whether that has been done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from medrag import assemble, evaluate, files, methods, responses
from medrag.assemble import trained
from medrag.config import Run
from medrag.evaluate import Contestant, tables
from medrag.files import Artifact
from medrag.indexing.steps import Steps
from medrag.methods import Method
from medrag.prepare import Corpus
from medrag.reports import evaluation
from medrag.text import Segmenter


@dataclass(frozen=True, slots=True)
class Entered:
    """What takes part in an evaluation."""

    data: Corpus
    newest: dict[str, tuple[Artifact, Artifact | None]]
    """of each method its newest artifact, and the index that it answers from"""
    writes: dict[str, bool]
    """or else it quotes"""
    key: str
    """the fingerprint of everything that determines the report"""


def entered(run: Run) -> Entered:
    """Raises ValueError where a setting is out of range, or a method is missing or was trained on another corpus."""
    evaluate.check(run.evaluate)
    responses.check(run.answer)
    data = assemble.corpus(run)
    names = list(dict.fromkeys(["dense", *run.evaluate.methods]))
    newest = {name: trained.newest(Path(run.store), name) for name in names}
    for name, (artifact, _) in newest.items():
        trained.check_corpus(artifact, data.artifact, f"medrag train task={name}")
    writes = {name: "generator" in methods.the_class(methods.plain(name)).needs for name in names}
    settings = {
        "version": evaluate.VERSION,
        "evaluate": asdict(run.evaluate) | {"baseline": evaluate.baseline(run.evaluate)},
        "seed": run.seed,
        "refuse_below": run.answer.refuse_below,
        "writing": [asdict(run.answer.decoding), run.answer.precision] if any(writes[name] for name in run.evaluate.methods) else None,
        "corpus": data.artifact.hash,
        "methods": {name: [artifact.hash, index.hash if index else ""] for name, (artifact, index) in newest.items()},
    }
    return Entered(data, newest, writes, files.fingerprint(settings))


def report(run: Run) -> Artifact:
    """The report of the run's methods, made unless there is one of the same methods, index, questions and settings."""
    asked, store = entered(run), Path(run.store)
    if found := files.find(store, "report", asked.key):
        files.set_current(store, "report", found.path)
        return found

    def load(name: str) -> Method:
        return trained.live(run, *asked.newest[name])

    contestants = [Contestant(name, partial(load, name), asked.writes[name]) for name in run.evaluate.methods]
    indexes = [index for _, index in asked.newest.values() if index]
    parents = [asked.data.artifact, *(artifact for artifact, _ in asked.newest.values()), *indexes]
    segmenter = Segmenter(asked.data.dictionary)
    with Steps(store / "report", asked.key) as steps:
        result, told = evaluate.evaluate(
            contestants, partial(load, "dense"), asked.data.test, segmenter, run.evaluate, run.answer, run.seed, steps.folder
        )
        with files.publish(store, "report", key=asked.key, parents=parents, config=asdict(run.evaluate)) as folder:
            files.write_json(folder / "evaluation.json", result)
            files.write_jsonl(folder / "answers.jsonl", map(asdict, told))
            files.write_text(folder / "table.txt", tables.table(result) + "\n")
            evaluation.write(result, folder / "report.html")
    return files.current(store, "report")
