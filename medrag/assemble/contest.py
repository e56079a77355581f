"""``medrag evaluate``: which trained methods are measured, on what, and whether that has been done."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from medrag import assemble, evaluate, files, infer, methods
from medrag.assemble import trained
from medrag.config import Run
from medrag.evaluate import Contestant, tables
from medrag.files import Artifact
from medrag.indexing.steps import Steps
from medrag.reports import evaluation
from medrag.text import Segmenter


def report(run: Run) -> Artifact:
    """The report of the run's methods, made unless there is one of the same methods, index, questions and settings.

    Raises ValueError where a setting is out of range, or a method is missing or was trained on another corpus.
    """
    evaluate.check(run.evaluate)
    infer.check(run.answer)
    store = Path(run.store)
    data = assemble.corpus(run)
    names = dict.fromkeys(["dense", *run.evaluate.methods])
    newest = {name: trained.newest(store, name) for name in names}
    for name, (artifact, _) in newest.items():
        trained.check_corpus(artifact, data.artifact, f"medrag train task={name}")
    writes = {name: "generator" in methods.the_class(methods.load(name)).needs for name in names}
    key = files.fingerprint(
        [
            "report",
            evaluate.VERSION,
            asdict(run.evaluate) | {"baseline": evaluate.baseline(run.evaluate)},
            run.seed,
            run.answer.refuse_below,
            asdict(run.answer.decoding) if any(writes[name] for name in run.evaluate.methods) else None,
            data.artifact.hash,
            {name: [artifact.hash, index.hash if index else ""] for name, (artifact, index) in newest.items()},
        ]
    )
    if found := files.find(store, "report", key):
        files.set_current(store, "report", found.path)
        return found
    contestants = [Contestant(name, lambda name=name: trained.live(run, *newest[name]), writes[name]) for name in run.evaluate.methods]  # type: ignore[misc]
    parents = [data.artifact, *(artifact for artifact, _ in newest.values()), *(index for _, index in newest.values() if index)]
    with Steps(store / "report", key) as steps:
        result, told = evaluate.evaluate(
            contestants,
            lambda: trained.live(run, *newest["dense"]),
            data.test,
            Segmenter(data.dictionary),
            run.evaluate,
            run.answer,
            run.seed,
            steps.folder,
        )
        with files.publish(store, "report", key=key, parents=parents, config=asdict(run.evaluate)) as folder:
            files.write_json(folder / "evaluation.json", result)
            files.write_jsonl(folder / "answers.jsonl", map(asdict, told))
            files.write_text(folder / "table.txt", tables.table(result) + "\n")
            evaluation.write(result, folder / "report.html")
    return files.current(store, "report")
