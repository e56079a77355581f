"""Shards of rows and the plan for them -> passages and examples of the splits, with BM25 hard negatives.

A shard writes the passages and examples that its rows name; what other rows add to them is read where it stands. So parts joined in the order
of the shards are in the order of the rows, whoever wrote them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medrag import files, text
from medrag.lexical import Lexical
from medrag.prepare.groups import RECORD, Near, Plan, Table
from medrag.prepare.shards import Shards, Work, example_of, fields_of, load_arrays, save_arrays, write_rows
from medrag.prepare.stages import SPLIT_CODES
from medrag.sources import SPLITS
from medrag.text import Segmenter
from medrag.types import Example, Passage

TERM_ROWS = 10_000
"""rows, chosen by hash, in which medical terms are counted"""
_BLOCKS = "blocks.json"
_PLAN = ("passage", "example", "split", "group", "same_id", "taken", "named")


def save_plan(work: Work, table: Table, plan: Plan, questions: Near, answers: Near) -> None:
    """Put down what every shard needs, so that any process can read its part."""
    folder = work.folder / "plan"
    folder.mkdir(exist_ok=True)
    members = np.argsort(plan.example, kind="stable")
    named_order = np.argsort(table.named_by, kind="stable")
    told = np.flatnonzero((table.kind == RECORD) & (plan.passage >= 0))
    links = np.flatnonzero((plan.named >= 0) & ~table.named_negative)
    asked = questions.near[np.concatenate([told, table.named_by[links]])]
    right = np.unique(np.stack([asked, plan.group[np.concatenate([plan.passage[told], plan.named[links]])]]), axis=1)
    arrays = {
        **{name: getattr(plan, name) for name in _PLAN},
        "named": plan.named[named_order],
        "named_by": table.named_by[named_order],
        "named_negative": table.named_negative[named_order],
        "members": members,
        "example_of_member": plan.example[members],
        "near_question": questions.near,
        "right_question": right[0],
        "right_group": right[1],
        "near_answer": answers.near,
        "crowd": np.bincount(answers.near[plan.passage == np.arange(table.count)], minlength=table.count),
        "question": table.question,
        "answer": table.answer,
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)


class _Planned(Shards):
    """Any row by its number, and what the plan says of it."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        paths = (work.folder / "plan").iterdir()
        self.plan: dict[str, npt.NDArray[Any]] = {path.stem: np.load(path, mmap_mode="r").view(np.ndarray) for path in paths}
        self.own: dict[int, dict[str, Any]] = {}
        """the rows of the shard in hand"""

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.own[number] if number in self.own else super().__getitem__(number)

    def members(self, example: int) -> list[int]:
        where = self.plan["example_of_member"]
        low, high = np.searchsorted(where, example), np.searchsorted(where, example, "right")
        return [int(row) for row in np.sort(self.plan["members"][low:high])]

    def passage(self, number: int) -> int:
        return int(self.plan["passage"][number])

    def named(self, query: int, negative: bool) -> list[int]:
        where = self.plan["named_by"]
        some = slice(np.searchsorted(where, query), np.searchsorted(where, query, "right"))
        return [int(row) for row in self.plan["named"][some][self.plan["named_negative"][some] == negative]]

    def right_groups(self, number: int) -> list[int]:
        """The groups of all passages that answer what this row asks, or nearly that, whoever asks it."""
        asked, where = self.plan["near_question"][number], self.plan["right_question"]
        return [int(group) for group in self.plan["right_group"][np.searchsorted(where, asked) : np.searchsorted(where, asked, "right")]]

    def name(self, number: int, row: dict[str, Any], letter: str) -> str:
        """The id of the passage (letter p) or example (e) that a row names: its own where it has one, else by the hash of its text."""
        if row["id"] and not (letter == "e" and self.plan["taken"][number]):
            return f"{row['source']}:{row['id']}" if self.plan["same_id"][number] else str(row["id"])
        return f"{letter}{int(self.plan['answer' if letter == 'p' else 'question'][number]):016x}"


def write(work: Work, name: str) -> None:
    """The passages, examples and late rejects of one shard."""
    rows = _Planned(work)
    plan = rows.plan
    first = int(rows.base[rows.names.index(name)])
    counts: dict[str, Counter[str]] = {part: Counter() for part in ("splits", "unanswerable", "terms", *SPLITS)}
    lengths: Counter[int] = Counter()
    segmenter = _segmenter(work.config.dictionary)
    entries = frozenset(segmenter.entries)
    every = max(1, len(plan["passage"]) // TERM_ROWS)
    passages: list[dict[str, Any]] = []
    groups: list[int] = []
    examples: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    rejects: list[dict[str, Any]] = []
    sampled = 0
    rows.own = dict(enumerate(files.read_jsonl(work.path("sign", f"{name}.jsonl")), first))
    for number, row in rows.own.items():
        if plan["passage"][number] == number:
            passage = _passage(rows, number, row)
            passages.append(fields_of(passage))
            groups.append(int(plan["group"][number]))
            lengths[len(passage.text)] += 1
            if plan["answer"][number] % every == 0:
                sampled += 1
                said = segmenter.words(f"{row.get('question', '')} {passage.text}")
                counts["terms"].update({word for word in said if len(word) > 1} & entries)
        if row["kind"] == "query" and -1 in rows.named(number, False):
            missing = [wanted for wanted, found in zip(row["answer_ids"], rows.named(number, False), strict=True) if found < 0]
            rejects.append(
                {"file": row["file"], "line": row["line"], "byte": row["byte"], "reason": f"answer_ids that no row of the sources has: {missing[:5]}"}
            )
        elif plan["example"][number] == number:
            example, exclude = _example(rows, number)
            split = SPLIT_CODES[plan["split"][number]]
            examples[split].append({"example": fields_of(example), "exclude": exclude})
            counts["splits"][split] += 1
            counts["unanswerable"][split] += not example.positives
            counts[split][example.label] += 1
    write_rows(work.path("write", f"{name}.passages.jsonl"), passages)
    for split in SPLITS:
        write_rows(work.path("write", f"{name}.{split}.jsonl"), examples[split])
    files.write_jsonl(work.path("write", f"{name}.rejects.jsonl"), rejects)
    save_arrays(work.path("write", f"{name}.npz"), {"group": np.array(groups, np.int64)})
    work.finish("write", name, {**counts, "passages": len(passages), "lengths": lengths, "sampled": sampled, "rejects": len(rejects)})


@lru_cache(1)
def _segmenter(dictionary: str) -> Segmenter:
    """One for each process: it takes a second to make."""
    return Segmenter(Path(dictionary) if dictionary else None)


def _passage(rows: _Planned, number: int, row: dict[str, Any]) -> Passage:
    near = int(rows.plan["near_answer"][number])
    group = f"g{int(rows.plan['answer'][near]):016x}" if rows.plan["crowd"][near] > 1 else ""
    title = row["title"] if row["kind"] == "document" else row["question"] if rows.work.config.titles else ""
    return Passage(rows.name(number, row, "p"), _said(row), row["source"], title, group)


def _example(rows: _Planned, number: int) -> tuple[Example, list[int]]:
    """The example that row ``number`` names, of all rows that ask the same, and the groups whose passages are no negatives for it."""
    first = rows[number]
    answers: list[str] = []
    passages: dict[int, dict[str, Any]] = {}
    negatives: dict[int, dict[str, Any]] = {}
    exclude = {*rows.right_groups(number)}
    for member in rows.members(number):
        row = first if member == number else rows[member]
        found = {where: rows[where] for where in ([rows.passage(member)] if row["kind"] == "record" else rows.named(member, False))}
        answers += [row["answer"]] if row["kind"] == "record" else row["answers"] or [_said(passage) for passage in found.values()]
        passages |= found
        negatives |= {where: rows[where] for where in rows.named(member, True) if where >= 0}
    source, asked = first["source"], first["question"]
    if first["kind"] == "record":
        asked += first["answer"]
    else:
        source = next(iter(passages.values()))["source"] if passages else "unanswerable"
    example = Example(
        rows.name(number, first, "e"),
        first["question"],
        text.unique(answers),
        text.unique(rows.name(where, passage, "p") for where, passage in passages.items()),
        text.unique(rows.name(where, passage, "p") for where, passage in negatives.items() if where not in passages),
        (not passages and first.get("reason")) or ("maternal" if text.is_maternal(asked) or "maternal" in source else "consultation"),
        source,
    )
    return example, sorted(exclude)


def _said(row: dict[str, Any]) -> str:
    said: str = row["text"] if row["kind"] == "document" else row["answer"]
    return said


def blocks(work: Work) -> list[str]:
    """Put down which shards' questions look for hard negatives among which passages, and return the blocks' names.

    A block is a run of shards with about ``negatives_pool`` passages.
    """
    names = work.names()
    sizes = [work.counts("write", name)["passages"] for name in names]
    count = max(1, round(sum(sizes) / work.config.negatives_pool))
    before = np.cumsum([0, *sizes[:-1]])
    block_of = {name: f"{min(count - 1, int(start) * count // max(sum(sizes), 1)):05d}" for name, start in zip(names, before, strict=True)}
    files.write_json(work.folder / _BLOCKS, block_of)
    return list(text.unique(block_of.values()))


def _block_of(work: Work) -> dict[str, str]:
    """The block of each shard, in their order."""
    found: dict[str, str] = json.loads((work.folder / _BLOCKS).read_text("utf-8"))
    return found


def index(work: Work, name: str) -> None:
    """The BM25 index of one block's passages, beside their ids and groups."""
    names = [part for part, block in _block_of(work).items() if block == name]
    passages = [row for part in names for row in files.read_jsonl(work.path("write", f"{part}.passages.jsonl"))]
    lexical = Lexical(_segmenter(work.config.dictionary))
    lexical.build(passage["text"] for passage in passages)
    lexical.save(work.path("index", name))
    groups = np.concatenate([load_arrays(work.path("write", f"{part}.npz"))["group"] for part in names])
    save_arrays(work.path("index", f"{name}.npz"), {"group": groups, "id": np.array([passage["id"] for passage in passages])})
    work.finish("index", name, {"passages": len(passages)})


def mine(work: Work, name: str) -> None:
    """The training examples of one shard with the best BM25 passages that do not answer them (Karpukhin et al. 2020, section 3.2).

    A source's own negatives come first. Passages of the example's group are left out: equal and nearly equal answers, and answers to
    nearly equal questions. An example keeps fewer where fewer are found.
    """
    config = work.config
    counts: Counter[str] = Counter()
    if config.negatives:
        block = _block_of(work)[name]
        arrays = load_arrays(work.path("index", f"{block}.npz"))
        group_of, id_of = arrays["group"].tolist(), arrays["id"].tolist()
        lexical = Lexical.load(work.path("index", block), _segmenter(config.dictionary), "words")

    def mined() -> Iterator[dict[str, Any]]:
        for row in files.read_jsonl(work.path("write", f"{name}.train.jsonl")):
            example = example_of(row["example"])
            wrong = list(example.negatives[: config.negatives])
            given = len(wrong)
            if example.positives and given < config.negatives:
                exclude = set(row["exclude"])
                found = (place for place in lexical.search(example.question, config.negatives_depth) if group_of[place] not in exclude)
                right = (id_of[place] for place in found if id_of[place] not in example.positives and id_of[place] not in wrong)
                wrong += islice(right, config.negatives - given)
            counts.update(questions=1, negatives=len(wrong), without=not wrong, from_source=given)
            yield fields_of(replace(example, negatives=tuple(wrong)))

    write_rows(work.path("mine", f"{name}.jsonl"), mined())
    work.finish("mine", name, counts)
