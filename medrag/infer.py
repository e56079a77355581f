"""Questions -> answers, many at a time, resumable: the batch inference script."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medrag import files, methods, text
from medrag.methods import Method
from medrag.responses import Config, answer_in_batches, check, respond, settled, threshold

QUESTION_LIMIT_CHARACTERS = 2000


def infer(method: Method, config: Config, source: Path, target: Path, identity: str, progress: bool = True) -> dict[str, int]:
    """Answer every row of ``source`` (JSONL or CSV with a ``question`` column) into ``target`` (JSONL), one output row for each input row.

    Output grows in ``target.partial``, in input order, and is renamed when it is whole; killed at any moment and called again, it
    goes on after the last whole row. ``identity`` stands for what answers, the method and its index; a partial output of something else is
    refused with ValueError, as is an output that is already there. Bad rows become error records.
    """
    check(config)
    partial, claim = target.with_name(target.name + ".partial"), target.with_name(target.name + ".state.json")
    if not source.is_file():
        raise ValueError(f"{source}: " + ("a folder was given where a file is needed" if source.is_dir() else "no such file"))
    if source.suffix not in (".jsonl", ".csv"):
        raise ValueError(f"{source}: the input must be .jsonl or .csv")
    if target.exists():
        raise ValueError(f"{target} is already there; remove it, or name another output")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent}: no such folder for the output")
    total = sum(1 for _ in _rows(source))
    stated = {
        "input": files.sha256(source),
        "method": identity,
        "decoding": asdict(config.decoding),
        "precision": config.precision,
        "refuse_below": threshold(method, config),
        "evidence": config.evidence,
    }
    if partial.exists():
        if not claim.is_file() or json.loads(claim.read_text("utf-8")) != stated:
            raise ValueError(f"{partial} was begun with another input, method, index, decoding or threshold; remove it, or name another output")
    else:
        files.write_json(claim, stated)
    done = _whole_rows(partial)
    counts = {"rows": total, "answered": 0, "refused": 0, "emergencies": 0, "errors": 0}
    rows = _rows(source)
    for _ in range(done):
        next(rows)
    with (
        open(partial, "a", encoding="utf-8") as stream,
        tqdm(total=total, initial=done, desc="answering", unit=" rows", disable=not progress, file=sys.stderr) as bar,
    ):
        while window := [row for _, row in zip(range(config.window_rows), rows, strict=False)]:
            for out in _window(method, config, window):
                stream.write(json.dumps(out, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
            bar.update(len(window))
    for written in files.read_jsonl(partial):
        counts[
            "errors" if "error" in written else "refused" if written["refused"] else "emergencies" if written.get("emergency") else "answered"
        ] += 1
    os.replace(partial, target)
    claim.unlink()
    return counts


def _window(method: Method, config: Config, window: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    good = [place for place, row in enumerate(window) if "error" not in row]
    out = [dict(row) for row in window]
    refuse_below = threshold(method, config)
    calm = list[int]()
    for place in good:
        response = settled(str(window[place]["question"]))
        if response is None:
            calm.append(place)
        else:
            out[place] = _named(window[place]) | response
    questions = [str(window[place]["question"]) for place in calm]
    for place, answer in answer_in_batches(method, questions, config.batch_questions):
        out[calm[place]] = _named(window[calm[place]]) | respond(questions[place], answer, config, methods.name_of(method), refuse_below)
    return out


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """What an output row keeps of its input row, besides the question."""
    return {"row": row["row"]} | ({"id": row["id"]} if "id" in row else {})


def _whole_rows(partial: Path) -> int:
    """How many whole rows a partial output holds; a torn last row is cut off."""
    if not partial.exists():
        return 0
    whole, size_bytes = 0, 0
    with open(partial, "rb+") as stream:
        for line in stream:
            try:
                json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole, size_bytes = whole + 1, size_bytes + len(line)
        stream.truncate(size_bytes)
    return whole


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    """``{"row", "question"[, "id"]}`` or ``{"row", "error"}`` of each input row that is not blank; rows count from 1."""
    for number, raw in enumerate(_csv_rows(source) if source.suffix == ".csv" else _jsonl_rows(source), 1):
        yield {"row": number} | _checked(raw)


def _checked(raw: Any) -> dict[str, Any]:
    if isinstance(raw, ValueError):
        return {"error": str(raw)}
    if not isinstance(raw, dict) or not isinstance(raw.get("question"), str):
        return {"error": "the row has no question, which must be a string"}
    kept = {"id": raw["id"]} if isinstance(raw.get("id"), str | int) else {}
    question = text.clean(raw["question"])
    if not text.key(question):
        return kept | {"error": "the question is empty"}
    if len(question) > QUESTION_LIMIT_CHARACTERS:
        return kept | {"error": f"the question has {len(question)} characters; at most {QUESTION_LIMIT_CHARACTERS} are allowed"}
    return kept | {"question": question}


def _jsonl_rows(source: Path) -> Iterator[Any]:
    with open(source, "rb") as stream:
        for line in stream:
            if line.strip():
                try:
                    yield json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield ValueError(f"not a row of UTF-8 JSON: {type(error).__name__}")


def _csv_rows(source: Path) -> Iterator[Any]:
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(line.replace("\0", "") for line in stream)
        if "question" not in (reader.fieldnames or []):
            raise ValueError(f"{source}: columns {reader.fieldnames} lack one named question")
        for row in reader:
            value = row.get("question")
            broken = value is None or any("\udc80" <= character <= "\udcff" for character in value)
            yield ValueError("the row is not UTF-8, or has no question cell") if broken else row
