"""prepare, cut, index: what is made of raw texts."""

from __future__ import annotations

import json
from pathlib import Path

from medrag.commands.endings import done


def prepare_command(positional: list[str], overrides: list[str]) -> int:
    from medrag import config, files, prepare, sources
    from medrag.reports import corpus as page

    wanted = [word for word in positional if word != "--report"]
    if unknown := [word for word in wanted if word.startswith("--")]:
        raise ValueError(f"medrag prepare {unknown[0]}: allowed: --report, sources, key=value")
    run = config.compose(overrides)
    found = [sources.recognise(word) for word in wanted]
    for source in found:
        print(f"{source.path}: {source.kind}" + (f", {source.encoding.removesuffix('-sig')}" if source.encoding else ""), flush=True)
    artifact = prepare.prepare(found, run.prepare, Path(run.store), working=run.workers)
    statistics = json.loads((artifact.path / "statistics.json").read_text("utf-8"))
    print(f"{statistics['passages']} passages; examples: {statistics['splits']}; unanswerable among them: {statistics['unanswerable']}")
    print(f"dropped: {statistics['dropped'] or 'nothing'}; rejected rows: {statistics['rejected_rows']} ({artifact.path / 'rejects.jsonl'})")
    pairs = statistics["leaks"]["pairs_checked"]
    print(f"personal data replaced: {statistics['privacy'] or 'none'}; leak check passed ({pairs} pairs of duplicates looked at)")
    if "--report" in positional:
        key = files.fingerprint(["corpus_report", artifact.hash])
        drawn = files.find(Path(run.store), "corpus_report", key)
        if drawn is None:
            with files.publish(Path(run.store), "corpus_report", key=key, parents=[artifact]) as folder:
                page.write(statistics, folder / "report.html")
            drawn = files.current(Path(run.store), "corpus_report")
        print(f"report: {drawn.path / 'report.html'}")
    return done(artifact.path)


def cut(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import cutting

    if len(positional) != 1:
        raise ValueError("medrag cut needs one folder in the transformers layout, or a hub name, as in: medrag cut ~/models/mt5-small")
    # the shape that the reference asks for, not that of the small presets: its limit is meant for a pretrained vocabulary
    artifact = cutting.cut(config.compose(["model=reference", *overrides]), positional[0])
    print("\n".join(cutting.told(artifact)))
    return done(artifact.path)


def index_command(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import indexes

    verb, rest = (positional[0], positional[1:]) if positional else ("", [])
    if verb not in ("build", "add", "remove", "verify") or (rest and verb in ("build", "verify")):
        raise ValueError(f"medrag index {' '.join(positional)}: allowed: build, add FILE..., remove ID... (or --from FILE), verify")
    run = config.compose(overrides)
    if verb == "verify":
        for line in indexes.verify(run):
            print(line, flush=True)
        return 0
    if verb == "build":
        artifact = indexes.build(run)
        tuned = artifact.manifest["config"]["tuned"]
        weights = ", ".join(f"{name} {weight:.4g}" for name, weight in tuned["weights"].items())
        print(f"weights: {weights}")
        asked, least = tuned["calibrated_on_questions"], tuned["refuse_below"]
        print(f"confidence calibrated on {asked} development questions; answers are refused below {least:.3f}")
        return done(artifact.path)
    if not rest:
        raise ValueError("medrag index add needs a file" if verb == "add" else "medrag index remove needs ids, or --from FILE")
    return done((indexes.add(run, rest) if verb == "add" else indexes.remove(run, _ids(rest))).path)


def _ids(words: list[str]) -> list[str]:
    """Ids as they stand, or the lines of the file behind ``--from``."""
    if "--from" not in words:
        return words
    if len(words) != 2 or words[0] != "--from":
        raise ValueError("medrag index remove: --from FILE stands alone, without ids")
    found = [line.rstrip("\r\n") for line in Path(words[1]).read_text("utf-8").split("\n")]
    if not (found := [line for line in found if line.strip()]):
        raise ValueError(f"{words[1]}: holds no id")
    return found
