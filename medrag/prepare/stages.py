"""Rows of sources -> cleaned rows -> signed rows: what is done shard by shard, before rows are compared with each other."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medrag import cleaning, duplicates, files, privacy, sources, text
from medrag.prepare.settings import Config
from medrag.prepare.shards import SAMPLES, SHARD_ROWS, Work, added, fields_of, save_arrays, write_rows
from medrag.sources import SPLITS, Document, Record, Reject

KINDS = ("record", "document", "query")
"""what a row is; arrays hold the place in this list"""
SPLIT_CODES = ("", *SPLITS)
"""arrays hold the place in this list: the higher wins where rows that belong together are declared for several splits"""
ANSWERS_SAMPLED = 100_000
"""distinct answers among which boilerplate is looked for"""
RULES = (
    "question empty",
    "answer empty",
    "question too short",
    "question too long",
    "answer too short",
    "answer too long",
    "answer repeats the question",
    "id of another record",
    "equal pair",
    "nearly equal pair",
)
"""the rules that drop records, in the order in which they are asked"""
TEXTS = {"record": ("question", "answer"), "document": ("title", "text"), "query": ("question",)}


def read(work: Work, name: str) -> None:
    """One source -> shards of its rows as they are, and its rejects."""
    counts: Counter[str] = Counter()
    shards = 0
    some: list[dict[str, Any]] = []
    with open(work.path("read", f"{name}.rejects.jsonl"), "w", encoding="utf-8") as rejects:
        for row in sources.read(work.sources[int(name)]):
            if isinstance(row, Reject):
                counts["rejects"] += 1
                rejects.write(json.dumps(fields_of(row), ensure_ascii=False) + "\n")
                continue
            kind = "record" if isinstance(row, Record) else "document" if isinstance(row, Document) else "query"
            counts[kind] += 1
            some.append({"kind": kind, **fields_of(row)})
            if len(some) == SHARD_ROWS:
                write_rows(work.path("read", f"{name}-{shards:05d}.jsonl"), some)
                some, shards = [], shards + 1
    if some:
        write_rows(work.path("read", f"{name}-{shards:05d}.jsonl"), some)
        shards += 1
    work.finish("read", name, {"shards": shards, **counts})


def clean(work: Work, name: str) -> None:
    """Texts cleaned and redacted; the edges of a sample of distinct answers beside them, for boilerplate to be found in.

    The sample is chosen by hash, so that it depends neither on the order of rows nor on who cleans which.
    """
    cleaner = cleaning.Cleaner(work.config.clean)
    edits: Counter[str] = Counter()
    personal: Counter[str] = Counter()
    samples: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    rows = []
    for row in files.read_jsonl(work.path("read", f"{name}.jsonl")):
        changed: dict[str, None] = {}
        for field in TEXTS[row["kind"]]:
            row[field], rules = cleaned(row[field], cleaner, work.config, field == "answer", personal)
            changed |= dict.fromkeys(rules)
            for rule, before in rules.items():
                if len(samples[rule]) < SAMPLES and (shown := _without_personal_data(before, cleaner)):
                    samples[rule].append({"before": text.shorten(shown, 300), "after": text.shorten(row[field], 300)})
        if "answers" in row:
            row["answers"] = [cleaned(answer, cleaner, work.config, True, personal)[0] for answer in row["answers"]]
        if row.get("department"):
            row["department"] = cleaned(row["department"], cleaner, work.config, False, personal)[0]
        edits.update(changed.keys())
        rows.append(row)
    write_rows(work.path("clean", f"{name}.jsonl"), rows)
    if work.config.clean.boilerplate:
        write_rows(work.path("clean", f"{name}.edges.jsonl"), _sampled_edges(work, rows))
    work.finish("clean", name, {"edits": edits, "privacy": personal, "samples": samples})


def cleaned(raw: str, cleaner: cleaning.Cleaner, config: Config, is_answer: bool, personal: Counter[str]) -> tuple[str, dict[str, str]]:
    """The text without damage of form, advertisements and personal data, and for each rule that changed it, what it was before."""
    found, rules = cleaner.clean(raw)
    if is_answer:
        kept, dropped = cleaner.without_advertisements(found)
        if dropped:
            found, rules = kept, [*rules, "advertisements"]
    if config.privacy:
        found, kinds = privacy.redact(found)
        personal.update(kinds)
    return found, dict.fromkeys(rules, raw)


def _without_personal_data(raw: str, cleaner: cleaning.Cleaner) -> str:
    """A raw text that may be shown; empty where something personal shows only once it is cleaned, as in ``139<b>1234</b>5678``."""
    shown, kinds = privacy.redact(raw)
    return shown if kinds == privacy.redact(cleaner.clean(raw)[0])[1] else ""


def _sampled_edges(work: Work, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    records = sum(work.counts("read", f"{number:03d}").get("record", 0) for number in range(len(work.sources)))
    below = 2**64 * min(1.0, ANSWERS_SAMPLED / max(records, 1))
    answers = [row["answer"] for row in rows if row["kind"] == "record"]
    for answer, digest in zip(answers, duplicates.hashes([text.key(answer) for answer in answers]).tolist(), strict=True):
        if 0 < digest <= below:
            yield {"hash": digest, "edges": cleaning.edges(answer)}


def boilerplate(work: Work, names: list[str]) -> None:
    """Find the lines that stand in many distinct answers of the sample, and put them down for all shards."""
    path, seen = work.folder / "boilerplate.json", set[int]()
    if path.exists():
        return

    def distinct() -> Iterator[list[str]]:
        for name in names if work.config.clean.boilerplate else ():
            for row in files.read_jsonl(work.path("clean", f"{name}.edges.jsonl")):
                if row["hash"] not in seen:
                    seen.add(row["hash"])
                    yield row["edges"]

    medical = text.read_dictionary(Path(work.config.dictionary)) if work.config.dictionary else []
    found = cleaning.boilerplate(distinct(), work.config.clean, medical)
    files.write_json(path, {"answers_sampled": len(seen), **found.to_json()})


def sign(work: Work, name: str) -> None:
    """Rows that pass every rule which looks at one row alone, with the arrays by which rows are compared."""
    lines = cleaning.Boilerplate.from_json(json.loads((work.folder / "boilerplate.json").read_text("utf-8")))
    config = work.config
    counts: dict[str, Counter[str]] = {part: Counter() for part in ("dropped", "departments")}
    question_lengths: Counter[int] = Counter()
    answer_lengths: Counter[int] = Counter()
    samples: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    stripped = 0
    kept: list[dict[str, Any]] = []
    compared: list[tuple[str, str]] = []
    for row in files.read_jsonl(work.path("clean", f"{name}.jsonl")):
        if row["kind"] == "record":
            row["answer"], lines_dropped = lines.strip(row["answer"])
            stripped += lines_dropped > 0
        question, answer = keys(row)
        rule = _broken_rule(row["kind"], question, answer, config)
        if rule:
            counts["dropped"][rule] += 1
            if len(samples[rule]) < SAMPLES:
                samples[rule].append(sample(row))
            continue
        if row["kind"] == "record":
            counts["departments"][row["department"]] += 1
            question_lengths[len(row["question"])] += 1
            answer_lengths[len(row["answer"])] += 1
        kept.append(row)
        compared.append((question, answer))
    starts = write_rows(work.path("sign", f"{name}.jsonl"), kept)
    save_arrays(work.path("sign", f"{name}.npz"), {"start": np.array(starts, np.int64), **_arrays(kept, compared, config)})
    work.finish(
        "sign",
        name,
        {**counts, "boilerplate": stripped, "samples": samples, "question_lengths": question_lengths, "answer_lengths": answer_lengths},
    )


def keys(row: dict[str, Any]) -> tuple[str, str]:
    """The keys of what a row asks and of what it says; a document's title belongs to what it says."""
    if row["kind"] == "document":
        return "", text.key(row["text"]) and text.key(row["title"] + row["text"])
    return text.key(row["question"]), text.key(row["answer"]) if row["kind"] == "record" else ""


def _broken_rule(kind: str, question: str, answer: str, config: Config) -> str:
    """The first rule that drops a row, or nothing. Documents and mapped questions are dropped only where they are empty."""
    if kind == "document":
        return "" if answer else "document empty"
    if kind == "query":
        return "" if question else "mapped question empty"
    if not question or not answer:
        return "answer empty" if question else "question empty"
    for part, size, least, most in (
        ("question", len(question), config.question_characters_min, config.question_characters_max),
        ("answer", len(answer), config.answer_characters_min, config.answer_characters_max),
    ):
        if size < least:
            return f"{part} too short"
        if most and size > most:
            return f"{part} too long"
    return "answer repeats the question" if config.echoes and answer == question else ""


def sample(row: dict[str, Any]) -> dict[str, str]:
    """What is shown of a row."""
    said = row.get("answer", row.get("text", ""))
    return {"question": text.shorten(row.get("question", ""), 200), "answer": text.shorten(said, 300), "source": row["source"]}


def _arrays(rows: list[dict[str, Any]], keys: list[tuple[str, str]], config: Config) -> dict[str, Any]:
    """One entry a row; zero where a row has no question, no answer or no id. Ids count within their source, and everywhere."""
    found: dict[str, Any] = {
        "kind": np.array([KINDS.index(row["kind"]) for row in rows], np.uint8),
        "split": np.array([SPLIT_CODES.index(row.get("split", "")) for row in rows], np.uint8),
        "id": duplicates.hashes([row["id"] for row in rows]),
        "own_id": duplicates.hashes([_own(row, row["id"]) for row in rows]),
        "tie": duplicates.hashes([_own(row, row.get("group", "")) for row in rows]),
    }
    for side, texts in (("question", [key[0] for key in keys]), ("answer", [key[1] for key in keys])):
        found[side] = duplicates.hashes(texts)
        if config.near_similarity:
            found[f"{side}_signature"], found[f"{side}_bands"] = duplicates.sketch(texts)
    named = [
        (place, name, negative)
        for place, row in enumerate(rows)
        if row["kind"] == "query"
        for negative, names in ((False, row["answer_ids"]), (True, row["negative_ids"]))
        for name in names
    ]
    found["named_by"] = np.array([place for place, _, _ in named], np.int64)
    found["named_id"] = duplicates.hashes([name for _, name, _ in named])
    found["named_own_id"] = duplicates.hashes([_own(rows[place], name) for place, name, _ in named])
    found["named_negative"] = np.array([negative for _, _, negative in named], bool)
    return found


def _own(row: dict[str, Any], name: str) -> str:
    return f"{row['source']}\0{name}" if name else ""


def rejects_of(work: Work) -> Iterator[dict[str, Any]]:
    """Every row that could not be used, in the order of the sources; after them the mapped questions that name rows which are not there."""
    for number in range(len(work.sources)):
        yield from files.read_jsonl(work.path("read", f"{number:03d}.rejects.jsonl"))
    for name in work.names():
        yield from files.read_jsonl(work.path("write", f"{name}.rejects.jsonl"))


def dropped(work: Work) -> dict[str, int]:
    """How many rows each rule that looks at one row alone has dropped."""
    return dict(added(work.counts("sign", name)["dropped"] for name in work.names()))
