"""ask, infer, evaluate, serve: what is done with trained methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from medrag.commands.endings import nothing


def ask(positional: list[str], overrides: list[str]) -> int:
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
            response = streamed(responses.stream(method, question, run.answer))
        else:
            response = responses.answered(method, question, run.answer)
            print(response["answer"] if response["refused"] or response["emergency"] else cited(response["sentences"]))
        if response["emergency"]:
            print(f"  〔紧急情况 {response['emergency']}：自动识别，未检索，未生成〕\n")
            continue
        _show(response)
        for name, other in beside.items():
            # nothing is refused here, so that methods can be compared; doses without a passage are withheld all the same
            compared = responses.answered(other, question, replace(run.answer, refuse_below=0.0))
            said = compared["answer"] if compared["refused"] else cited(compared["sentences"])
            print(f"  对照（{name}，置信度 {compared['confidence']:.2f}）：{said}\n")
    print(f"【{responses.LABEL}】")
    return 0


def streamed(pieces: Iterator[str | dict[str, Any]]) -> dict[str, Any]:
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


def cited(sentences: Sequence[dict[str, Any]]) -> str:
    """The sentences of an answer, each run of them with what it rests on."""
    return "".join("".join(sentence["text"] for sentence in run).rstrip() + mark for mark, run in groupby(sentences, _mark))


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


def infer_command(positional: list[str], overrides: list[str]) -> int:
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


def evaluate_command(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import contest

    nothing(positional, "evaluate")
    report = contest.report(config.compose(overrides)).path
    print((report / "table.txt").read_text("utf-8"))
    print(f"report: {report / 'report.html'}")
    return 0


def serve_command(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import serving

    nothing(positional, "serve")
    serving.run_service(config.compose(overrides))
    return 0
