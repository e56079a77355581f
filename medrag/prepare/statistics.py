"""The counts of all shards -> ``statistics.json``: what became of the rows. No personal data, and no figure that depends on the machine."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from medrag.duplicates import BANDS
from medrag.prepare.groups import SIDES, Near, Plan, Table
from medrag.prepare.shards import SAMPLES, Counts, Shards, Work, added
from medrag.prepare.stages import KINDS, RULES, rejects_of, sample
from medrag.sources import SPLITS, source_files

LENGTH_BINS = (5, 10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 2560, 5120, 10_000_000)
"""upper edges, in characters"""
DEPARTMENTS = 40
BOILERPLATE_LINES = 200
TERM_WORDS = 60
"""how many the report shows of each"""


def statistics(work: Work, table: Table, questions: Near, answers: Near, plan: Plan, checked: int) -> Counts:
    """Everything that the report shows."""
    names, numbers = work.names(), [f"{number:03d}" for number in range(len(work.sources))]
    read = [work.counts("read", number) for number in numbers]
    clean, sign, write = ([work.counts(stage, name) for name in names] for stage in ("clean", "sign", "write"))
    total = {part: added(counts[part] for counts in write) for part in ("splits", "unanswerable", "terms", *SPLITS)}
    dropped = added(counts["dropped"] for counts in sign) + Counter({rule: len(rows) for rule, rows in plan.dropped.items()})
    by_source = [[counts for name, counts in zip(names, write, strict=True) if name.startswith(f"{number}-")] for number in numbers]
    passage_lengths = _lengths(counts["lengths"] for counts in write)
    edits = added(counts["edits"] for counts in clean)
    return {
        "rows": sum(sum(counts.get(kind, 0) for kind in KINDS) for counts in read),
        "sources": [
            {
                "name": source.name,
                "file": source.path.name,
                "kind": source.kind,
                "encoding": source.encoding.removesuffix("-sig"),
                "bytes": sum(path.stat().st_size for path in source_files(source)),
                "records": counts.get("record", 0),
                "documents": counts.get("document", 0),
                "queries": counts.get("query", 0),
                "rejects": counts.get("rejects", 0),
                "passages": sum(counts["passages"] for counts in made),
                "examples": sum(sum(counts["splits"].values()) for counts in made),
            }
            for source, counts, made in zip(work.sources, read, by_source, strict=True)
        ],
        "dropped": {rule: count for rule, count in dropped.items() if count},
        "funnel": _funnel(sum(counts.get("record", 0) for counts in read), dropped),
        "edits": dict(edits) | {"boilerplate": sum(counts["boilerplate"] for counts in sign)},
        "boilerplate": _boilerplate(json.loads((work.folder / "boilerplate.json").read_text("utf-8"))),
        "privacy": dict(added(counts["privacy"] for counts in clean).most_common()),
        "lengths": {side: _lengths(counts[f"{side}_lengths"] for counts in sign) for side in SIDES},
        "departments": _departments(added(counts["departments"] for counts in sign)),
        "terms": dict(sorted(total["terms"].items(), key=lambda item: (-item[1], item[0]))[:TERM_WORDS]),
        "terms_sampled_rows": sum(counts["sampled"] for counts in write),
        "duplicates": _duplicates(work, table, questions, answers, plan),
        "splits": {split: total["splits"][split] for split in SPLITS},
        "unanswerable": {split: total["unanswerable"][split] for split in SPLITS},
        "labels": {split: dict(total[split].most_common()) for split in SPLITS},
        "leaks": {"pairs_checked": checked, "found": 0},
        "negatives": _negatives(work),
        "passages": sum(counts["passages"] for counts in write),
        "passage_characters": {name: passage_lengths[name] for name in ("median", "p95", "max")},
        "dropped_samples": _samples([counts["samples"] for counts in sign], plan, work),
        "edited_samples": _first_samples([counts["samples"] for counts in clean]),
        "rejected_rows": sum(counts.get("rejects", 0) for counts in read) + sum(counts["rejects"] for counts in write),
        "rejects": dict(Counter(_class(row["reason"]) for row in rejects_of(work)).most_common(30)),
        "reject_samples": list(islice(rejects_of(work), 4 * SAMPLES)),
    }


def _boilerplate(found: dict[str, Any]) -> dict[str, Any]:
    lines = {side: list(found[side].values())[:BOILERPLATE_LINES] for side in ("removed", "kept")}
    return {"answers_sampled": found["answers_sampled"], **lines}


def _funnel(records: int, dropped: Mapping[str, int]) -> list[dict[str, Any]]:
    """Records in and out of every rule that drops some, in the order in which the rules are asked."""
    steps = [{"rule": "read", "dropped": 0, "left": records}]
    for rule in RULES:
        records -= dropped[rule]
        steps.append({"rule": rule, "dropped": dropped[rule], "left": records})
    return steps


def _lengths(counts: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    """Median, 95th percentile, longest, and a histogram, in characters."""
    exact = {int(length): count for length, count in added(dict(some) for some in counts).items()}
    sizes = np.array(sorted(exact), np.int64)
    if len(sizes) == 0:
        return {"median": 0, "p95": 0, "max": 0, "bins": list(LENGTH_BINS), "counts": [0] * len(LENGTH_BINS)}
    weights = np.array([exact[size] for size in sizes.tolist()])
    below = np.cumsum(weights)
    median, p95 = (int(sizes[np.searchsorted(below, share * below[-1], "right").clip(max=len(sizes) - 1)]) for share in (0.5, 0.95))
    bins = np.bincount(np.searchsorted(np.array(LENGTH_BINS), sizes), weights, len(LENGTH_BINS))
    return {"median": median, "p95": p95, "max": int(sizes[-1]), "bins": list(LENGTH_BINS), "counts": [int(count) for count in bins]}


def _departments(found: Counter[str]) -> dict[str, int]:
    named = sorted(((name, count) for name, count in found.items() if name), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in named[DEPARTMENTS:])
    return dict(named[:DEPARTMENTS]) | ({"其他": rest} if rest else {}) | ({"": found[""]} if found[""] else {})


def _duplicates(work: Work, table: Table, questions: Near, answers: Near, plan: Plan) -> dict[str, Any]:
    """Rows that have an equal or nearly equal text elsewhere: how many, and in which source."""
    rows = np.arange(table.count)
    found: dict[str, Any] = {
        "threshold": work.config.near_similarity,
        "groups": plan.groups,
        "largest_group": plan.largest_group,
        "index_bytes": table.bytes,
        "sources": [source.name for source in work.sources],
        "pairs_checked": 0,
    }
    for side, near in zip(SIDES, (questions, answers), strict=True):
        filled = np.flatnonzero(getattr(table, side) != 0)
        found[f"exact_{side}s"] = int((near.same != rows).sum())
        found[f"near_{side}s"] = int((near.near != rows).sum()) - found[f"exact_{side}s"]
        found[f"{side}s_matrix"] = _matrix(near.near[filled], table.source[filled], len(work.sources))
        if work.config.near_similarity:
            bands = [work.counts("near", f"{side}-{band:02d}") for band in range(BANDS)]
            found["pairs_checked"] += sum(counts["compared"] for counts in bands)
    return found


def _matrix(labels: npt.NDArray[np.int64], sources: npt.NDArray[np.uint16], count: int) -> list[list[int]]:
    """[s][t]: rows of source s with another row of the same label in source t."""
    _, where, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    some = sizes[where] > 1
    if not some.any():
        return [[0] * count for _ in range(count)]
    label, source = where[some], sources[some].astype(np.int64)
    cells, inside = np.unique(label * count + source, return_counts=True)
    matrix = np.zeros((count, count), np.int64)
    for other in range(count):
        held = np.zeros(len(sizes), np.int64)
        of_other = cells % count == other
        held[cells[of_other] // count] = inside[of_other]
        others = held[label] - (source == other)
        np.add.at(matrix[:, other], source[others > 0], 1)
    return [[int(value) for value in row] for row in matrix]


def _negatives(work: Work) -> dict[str, Any]:
    total = added(json.loads(path.read_text("utf-8")) for path in sorted((work.folder / "mine").glob("*.json")))
    return {
        "questions": total["questions"],
        "mean": round(total["negatives"] / max(total["questions"], 1), 3),
        "without": total["without"],
        "from_source": total["from_source"],
        "depth": work.config.negatives_depth,
    }


def _first_samples(shards: Iterable[Mapping[str, list[dict[str, str]]]]) -> dict[str, list[dict[str, str]]]:
    found: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for samples in shards:
        for rule, some in samples.items():
            found[rule] += some[: SAMPLES - len(found[rule])]
    return dict(found)


def _samples(shards: list[dict[str, list[dict[str, str]]]], plan: Plan, work: Work) -> dict[str, list[dict[str, str]]]:
    """A few rows that each rule dropped, those dropped by comparison among them."""
    found, row = _first_samples(shards), Shards(work)
    for rule, rows in plan.dropped.items():
        found |= {rule: [sample(row[number]) for number in rows[:SAMPLES].tolist()]} if len(rows) else {}
    return found


def _class(reason: str) -> str:
    """What sort of reject it is: the reason without its numbers and details."""
    return reason.split(":")[0].split("(")[0].strip()[:80]
