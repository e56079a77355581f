"""medrag VERB [axis=preset ...] [key=value ...]"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

USAGE = """medrag: Chinese medical question answering with retrieval

  medrag prepare SOURCE... [--report]        raw files -> passages and examples; a page that shows what became of them
  medrag cut FOLDER                          a pretrained mT5 (transformers layout) cut to the corpus's vocabulary
  medrag plan [--plot FILE.png]              memory and time of a training run before it starts, and what makes it fit (status 1: it does not);
                                             with --plot those of the reference's stages (model=reference hardware=1080ti unless told)
  medrag train task=dense                    train a method (launches deepspeed where the hardware has several devices)
  medrag index build | verify                encode the passages; check the index
  medrag index add FILE... | remove ID...    add passages, or take some out, without building anew (remove --from FILE: one id a line)
  medrag ask QUESTION...                     answer, evidence, confidence
  medrag infer QUESTIONS.jsonl ANSWERS.jsonl batch inference, resumable
  medrag serve                               HTTP service with an API and a page, on http://127.0.0.1:8000
  medrag evaluate                            scores with intervals, and an HTML report
  medrag doctor                              what this machine has, and which presets fit

Each takes model=NAME hardware=NAME task=NAME and any key=value, as in: store=store/real task.epochs=3.
`medrag config` prints every key with its value."""
_OVERRIDE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*=.*", re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    """Run one command; 0 when it did what was asked, 2 when it could not, with one line on stderr."""
    words = [word for word in arguments if not re.fullmatch(r"--local_rank=\d+|--no_local_rank", word)]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        return _complain(f"there is no command {verb!r}; allowed: {', '.join(VERBS)}")
    overrides = [word for word in rest if _OVERRIDE.fullmatch(word)]
    positional = [word for word in rest if word not in overrides]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return VERBS[verb](positional, overrides)
    except (ValueError, OSError) as error:
        return _complain(str(error).strip().split("\n")[0] or type(error).__name__)
    except KeyboardInterrupt as stopped:
        return _complain(str(stopped) or "interrupted; run the same command again to go on", 130)
    except BrokenPipeError:
        return 0


def _complain(message: str, status: int = 2) -> int:
    """One line on stderr, from one of the processes that a launcher started."""
    signal.signal(signal.SIGTERM, _pass_over)
    launching = sys.modules.get("medrag.train.launching")
    if launching.first_to_say() if launching else os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"medrag: {message}", file=sys.stderr)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _pass_over)
    raise KeyboardInterrupt


def _pass_over(number: int, frame: FrameType | None) -> None:
    """A launcher sends SIGTERM after Ctrl-C, and to ranks whose fellow has ended: it must not break into the way out."""


def _nothing(positional: Sequence[str], verb: str) -> None:
    if positional:
        raise ValueError(f"medrag {verb} takes only key=value, not {positional[0]!r}")


def _prepare(positional: list[str], overrides: list[str]) -> int:
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
    return _done(artifact.path)


def _train(positional: list[str], overrides: list[str]) -> int:
    from medrag import assemble, config, train

    _nothing(positional, "train")
    run = config.compose(overrides)
    on_card = run.hardware.device == "cuda"
    if not train.launched() and (on_card or run.hardware.devices > 1):
        assemble.ready(run)
        if on_card:
            from medrag.assemble import planning

            if short := planning.shortage(run):
                print(f"medrag: {short}", file=sys.stderr)
        if run.hardware.devices > 1:
            return train.relaunch(overrides, run.hardware)
    try:
        artifact = assemble.train_method(run)
    except RuntimeError as error:
        raise train.parted(error) from error
    if artifact is None:
        return 0
    if (artifact.path / assemble.PICTURE).is_file():
        print(f"curves: {artifact.path / assemble.PICTURE}")
    board = assemble.workplace(run, artifact.manifest["key"]) / train.BOARD
    if board.is_dir():
        print(f"in TensorBoard: {shlex.join(['tensorboard', '--logdir', str(board)])}")
    _done(artifact.path)
    print("\n".join(["next:", *_next(run.task.method, Path(run.store), overrides)]))
    return 0


def _next(name: str, store: Path, overrides: Sequence[str]) -> list[str]:
    """Commands that make use of the method that was trained, ready to paste, with the settings that they share with its training."""
    from medrag import files, methods

    kind = methods.the_class(name)
    if kind.learns_from is not methods.Method.learns_from:
        commands = [["train", "task=dense" if "encoder" in kind.needs else "task=closed_book", f"task.start={name}"]]
    elif "context_encoder" in kind.needs:
        commands = [["index", "build"]]
    else:
        commands = [["ask", "孕期可以喝咖啡吗？", f"answer.method={name}"]]
        if (store / "index" / files.CURRENT).exists():
            commands.append(["evaluate", f"evaluate.methods=[dense,{name}]"])
    shared = [word for word in overrides if re.match(r"(store|seed|model|hardware|workers|index)\b", word)]
    return [shlex.join(["medrag", *command, *shared]) for command in commands]


def _plan(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import planning

    if not positional:
        found = planning.plan(config.compose(overrides))
        print(found)
        return 0 if found.fits else 1
    if len(positional) != 2 or positional[0] != "--plot" or Path(positional[1]).suffix != ".png":
        raise ValueError(f"medrag plan {' '.join(positional)}: allowed: --plot FILE.png, key=value")
    if given := [word for word in overrides if word.startswith("task=")]:
        raise ValueError(f"medrag plan --plot draws {', '.join(planning.REFERENCE)}; it takes no {given[0]}")
    runs = [config.compose(["model=reference", "hardware=1080ti", *overrides, f"task={name}"]) for name in planning.REFERENCE]
    stages = planning.draw(runs, Path(positional[1]))
    print(planning.table(stages))
    print(f"picture: {positional[1]}")
    return 0 if all(plan.fits for plan in stages.values()) else 1


def _cut(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import cutting

    if len(positional) != 1:
        raise ValueError("medrag cut needs one folder in the transformers layout, or a hub name, as in: medrag cut ~/models/mt5-small")
    # the shape that the reference asks for, not that of the small presets: its limit is meant for a pretrained vocabulary
    artifact = cutting.cut(config.compose(["model=reference", *overrides]), positional[0])
    print("\n".join(cutting.told(artifact)))
    return _done(artifact.path)


def _index(positional: list[str], overrides: list[str]) -> int:
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
        return _done(artifact.path)
    if not rest:
        raise ValueError("medrag index add needs a file" if verb == "add" else "medrag index remove needs ids, or --from FILE")
    return _done((indexes.add(run, rest) if verb == "add" else indexes.remove(run, _ids(rest))).path)


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


def _ask(positional: list[str], overrides: list[str]) -> int:
    from medrag import config, responses, text
    from medrag.assemble import trained

    run = config.compose(overrides)
    responses.check(run.answer)
    questions = [text.clean(word) for word in positional]
    if not questions or not all(text.key(question) for question in questions):
        raise ValueError('medrag ask needs a question, as in: medrag ask "孕期可以喝咖啡吗？"')
    method = trained.load(run, run.answer.method)
    beside = {name: trained.load(run, name) for name in run.answer.beside}
    for question in questions:
        print(f"问：{question}\n答：", end="", flush=True)
        if run.answer.stream:
            response = _streamed(responses.stream(method, question, run.answer))
        else:
            response = responses.answered(method, question, run.answer)
            print(response["answer"] if response["refused"] or response["emergency"] else _cited(response["sentences"]))
        if response["emergency"]:
            print(f"  〔紧急情况 {response['emergency']}：按规则识别，未检索，未使用模型〕\n")
            continue
        _show(response)
        for name, other in beside.items():
            # nothing is refused here, so that methods can be compared; doses without a passage are withheld all the same
            compared = responses.answered(other, question, replace(run.answer, refuse_below=0.0))
            said = compared["answer"] if compared["refused"] else _cited(compared["sentences"])
            print(f"  对照（{name}，置信度 {compared['confidence']:.2f}）：{said}\n")
    print(f"【{responses.LABEL}】")
    return 0


def _streamed(pieces: Iterator[str | dict[str, Any]]) -> dict[str, Any]:
    """Print an answer as it comes, and after it where each sentence stands, or that it is none."""
    told = False
    for piece in pieces:
        if isinstance(piece, str):
            told = True
            print(piece, end="", flush=True)
        elif piece["emergency"]:
            print(piece["answer"])
        elif piece["refused"]:
            print(("\n〔以上文字依据不足，不作为回答〕\n" if told else "") + piece["answer"])
        else:
            print("\n  逐句依据：" + "".join(_mark(sentence) for sentence in piece["sentences"]))
    assert isinstance(piece, dict)
    return piece


def _cited(sentences: Sequence[dict[str, Any]]) -> str:
    """The sentences of an answer, each run of them with what it rests on."""
    return "".join("".join(sentence["text"] for sentence in run) + mark for mark, run in groupby(sentences, _mark))


def _mark(sentence: dict[str, Any]) -> str:
    return "〔无依据〕" if sentence["passage"] is None else f"[{sentence['passage']}]"


def _show(response: dict[str, Any]) -> None:
    quoted = any(evidence["text"] == response["answer"] for evidence in response["evidence"])
    origin = "未作答" if response["refused"] else "原文：检索到的最相关回答" if quoted else "模型生成"
    print(
        f"  方法 {response['method']}（{origin}）；置信度 {response['confidence']:.2f}"
        + (f"；拒答原因 {response['reason']}" if response["refused"] else "")
        + (f"；{sum(response['withheld'].values())} 句因剂量没有依据而未显示" if response["withheld"] else "")
    )
    for number, evidence in enumerate(response["evidence"], 1):
        about = evidence["title"] or evidence["text"]
        print(f"  [{number}] {evidence['id']}（{evidence['score']:.2f}） {about[:60]}")
    print()


def _infer(positional: list[str], overrides: list[str]) -> int:
    from medrag import config, files, infer
    from medrag.assemble import trained

    if len(positional) != 2:
        raise ValueError("medrag infer needs two files: QUESTIONS.jsonl (or .csv) and ANSWERS.jsonl")
    run = config.compose(overrides)
    artifact, index = trained.newest(Path(run.store), run.answer.method)
    identity = files.fingerprint([artifact.hash, index.hash if index else ""])
    counts = infer.infer(trained.live(run, artifact, index), run.answer, Path(positional[0]), Path(positional[1]), identity)
    told = ", ".join(f"{what} {counts[what]}" for what in ("answered", "refused", "emergencies", "errors"))
    print(f"{positional[1]}: {counts['rows']} rows; {told}")
    return 0


def _evaluate(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import contest

    _nothing(positional, "evaluate")
    report = contest.report(config.compose(overrides)).path
    print((report / "table.txt").read_text("utf-8"))
    print(f"report: {report / 'report.html'}")
    return 0


def _serve(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import serving

    _nothing(positional, "serve")
    serving.run_service(config.compose(overrides))
    return 0


def _doctor(positional: list[str], overrides: list[str]) -> int:
    from medrag import config, files
    from medrag.plan import machine

    _nothing(positional, "doctor")
    presets = {name: config.compose([*overrides, f"hardware={name}"]) for name in config.presets("hardware")}
    found = machine.this_machine(Path(presets["cpu"].store))
    print(machine.doctor(found, {name: run.hardware for name, run in presets.items()}, files.versions()))
    return 0


def _config(positional: list[str], overrides: list[str]) -> int:
    from medrag import config

    _nothing(positional, "config")
    print(config.show(config.compose(overrides)))
    return 0


def _done(path: Path) -> int:
    print(f"artifact: {path}")
    return 0


VERBS: dict[str, Callable[[list[str], list[str]], int]] = {
    "prepare": _prepare,
    "plan": _plan,
    "train": _train,
    "index": _index,
    "cut": _cut,
    "ask": _ask,
    "infer": _infer,
    "evaluate": _evaluate,
    "serve": _serve,
    "doctor": _doctor,
    "config": _config,
}


def entry() -> None:
    """The ``medrag`` command."""
    status = main(sys.argv[1:])
    if "deepspeed" in sys.modules:
        # all is written and closed; the libraries' own threads, taken down with the interpreter, abort the process once in a few dozen times
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    entry()
