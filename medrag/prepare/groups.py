"""All rows at once, as arrays: which are doubles, which belong together, in which split they stand, and the proof that none leaks.

A *same* label joins rows with equal texts, a *near* label those with nearly equal ones, too; a *group* joins records whose questions or answers
are nearly equal, over any number of steps. A group stands in one split. Labels are row numbers: the first row of those that share one.
What this takes of memory is stated by ``Table.bytes``: it is the duplicate index, and grows with the rows.

Shapes: N rows, E pairs of rows, R references of mapped questions to rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from medrag import duplicates
from medrag.duplicates import U64, Rows
from medrag.prepare.settings import Config
from medrag.prepare.shards import BASE, STARTS, Shards, Work, load_arrays, save_arrays
from medrag.prepare.stages import KINDS, SPLIT_CODES, keys

RECORD, DOCUMENT, QUERY = range(len(KINDS))
SIDES = ("question", "answer")
LARGE_SHARE = 0.002
LARGE_ROWS = 20
"""a group of more rows than this (the larger of share and number) is not drawn, but stands in train: it would make up too much of a test"""
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of every row without its text."""

    kind: npt.NDArray[np.uint8]
    source: npt.NDArray[np.uint16]
    split: npt.NDArray[np.uint8]
    question: U64
    answer: U64
    id: U64
    own_id: U64
    tie: U64
    """of the records that their source puts in one group"""
    named_by: Rows
    """(R,) the row of the mapped question"""
    named_id: U64
    named_own_id: U64
    named_negative: Bools

    @property
    def count(self) -> int:
        return len(self.kind)

    @property
    def bytes(self) -> int:
        """Of these arrays, and of signatures and bands on disk."""
        return sum(int(getattr(self, name).nbytes) for name in self.__slots__) + 2 * self.count * (duplicates.PERMUTATIONS + 4 * duplicates.BANDS)


def gather(work: Work, names: Sequence[str]) -> Table:
    """The arrays of all shards in one; bands and signatures in one file each, on disk."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    base = [0]
    folder = work.folder / "near"
    streams = {
        **{f"{side}_signature": open(folder / f"{side}.u8", "wb") for side in SIDES},  # noqa: SIM115
        **{f"{side}_bands-{band:02d}": open(folder / f"{side}-{band:02d}.u32", "wb") for side in SIDES for band in range(duplicates.BANDS)},  # noqa: SIM115
    }
    try:
        for name in names:
            arrays = load_arrays(work.path("sign", f"{name}.npz"))
            rows = len(arrays["kind"])
            for side in SIDES:
                if f"{side}_bands" in arrays:
                    arrays.pop(f"{side}_signature").tofile(streams[f"{side}_signature"])
                    bands = np.ascontiguousarray(arrays.pop(f"{side}_bands").T)
                    for band in range(duplicates.BANDS):
                        bands[band].tofile(streams[f"{side}_bands-{band:02d}"])
            arrays["source"] = np.full(rows, int(name.split("-")[0]), np.uint16)
            arrays["named_by"] = arrays["named_by"] + base[-1]
            base.append(base[-1] + rows)
            for part, values in arrays.items():
                parts.setdefault(part, []).append(values)
    finally:
        for stream in streams.values():
            stream.close()
    np.save(work.folder / BASE, np.array(base, np.int64))
    np.save(work.folder / STARTS, np.concatenate(parts.pop("start")))
    return Table(**{part: np.concatenate(values) for part, values in parts.items()})


def same(hashes_N: U64) -> Rows:
    """(N,) labels of equal texts; rows without a text (hash zero) are by themselves."""
    labels = np.arange(len(hashes_N))
    filled = np.flatnonzero(hashes_N)
    labels[filled] = filled[duplicates.smallest(hashes_N[filled])]
    return labels


def find_near(work: Work, name: str) -> None:
    """The near pairs that one band of one side finds; ``name`` is ``question-07``."""
    side, band = name.rsplit("-", 1)
    folder = work.folder / "near"
    rows = np.load(folder / f"{side}-rows.npy")
    values = np.fromfile(folder / f"{side}-{band}.u32", np.uint32)[rows]
    signatures = np.memmap(folder / f"{side}.u8", np.uint8, "r").reshape(-1, duplicates.PERMUTATIONS)
    first, second, compared = duplicates.near_pairs(values, rows, signatures, work.config.near_similarity)
    row, place = Shards(work), SIDES.index(side)

    @lru_cache(10_000)
    def pairs_of(number: int) -> frozenset[str]:
        return duplicates.character_pairs(keys(row[number])[place])

    pairs = zip(first.tolist(), second.tolist(), strict=True)
    similar = (duplicates.jaccard(pairs_of(one), pairs_of(other)) >= work.config.near_similarity for one, other in pairs)
    near = np.fromiter(similar, bool, len(first))
    save_arrays(folder / f"{name}.npz", {"first": first[near], "second": second[near]})
    work.finish("near", name, {"compared": compared})


@dataclass(frozen=True, slots=True)
class Near:
    """Rows with equal and with nearly equal texts, on the side of the questions or of the answers."""

    same: Rows
    near: Rows
    first_E: Rows
    second_E: Rows


def near_of(work: Work, side: str, same_N: Rows) -> Near:
    """The labels of one side from the pairs that its bands found."""
    first, second = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if work.config.near_similarity:
        pairs = [load_arrays(work.path("near", f"{side}-{band:02d}.npz")) for band in range(duplicates.BANDS)]
        first, second = (np.concatenate([pair[end] for pair in pairs]) for end in ("first", "second"))
    label = duplicates.components(len(same_N), first, second) if len(first) else np.arange(len(same_N))
    return Near(same_N, label[same_N], first, second)


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of every row; -1 where a row makes none."""

    dropped: dict[str, Rows]
    """the rows that each rule drops"""
    passage: Rows
    """(N,) the row whose text is the passage that this row's answer became"""
    example: Rows
    """(N,) the row that names the example that this row's question went to"""
    split: npt.NDArray[np.int8]
    """(N,) of that example, as its place in SPLIT_CODES"""
    group: Rows
    """(N,) records and documents that belong together"""
    same_id: Bools
    """(N,) whether the row's id is used in another source, too"""
    taken: Bools
    """(N,) whether the example that the row names would have the id of an earlier one"""
    named: Rows
    """(R,) the passage that each reference found; -1: none"""
    groups: int
    largest_group: int


def plan(table: Table, questions: Near, answers: Near, config: Config) -> Plan:
    """Decide what becomes of every row. The order of rows decides between equals, so that the same rows give the same plan."""
    count, rows = table.count, np.arange(table.count)
    record, query = table.kind == RECORD, table.kind == QUERY
    dropped: dict[str, Rows] = {}
    alive = np.ones(count, bool)

    def drop(rule: str, where: Bools) -> None:
        dropped[rule] = np.flatnonzero(where & alive)
        alive[where] = False

    other_id = answers.same != answers.same[same(np.where(query, 0, table.own_id))]
    drop("id of another record", record & other_id)
    drop("id of another document", (table.kind == DOCUMENT) & other_id)
    keeper = rows.copy()
    if config.duplicate_pairs:
        # What is declared for a held-out split stays, whatever stands before it.
        ranked = np.lexsort((rows, -table.split.astype(np.int64)))
        pool = ranked[(record & alive)[ranked]]
        for rule, question, answer in (
            ("equal pair", questions.same, answers.same),
            ("nearly equal pair", questions.near, answers.near),
        ):
            pool = pool[alive[pool]]
            first = pool[duplicates.smallest(question[pool] * count + answer[pool])]
            keeper[pool] = first
            away = np.zeros(count, bool)
            away[pool[first != pool]] = True
            drop(rule, away)
        keeper = keeper[keeper]

    told = np.flatnonzero(alive & ~query)
    passage = np.full(count, -1)
    passage[told] = told[duplicates.smallest(answers.same[told])]
    gone = np.flatnonzero(~alive & (keeper != rows))
    passage[gone] = passage[keeper[gone]]

    named, same_id = _look_up(table, passage)
    drawn = (record & alive) | (query & (table.split == 0))
    group = _groups(table, questions, answers, alive, drawn, passage, named)
    decided, largest = _draw(table, group, drawn, config)

    split = np.where(query & (table.split > 0), table.split, decided[group]).astype(np.int8)
    asked = drawn | query
    missing = np.zeros(count, bool)
    missing[table.named_by[(named < 0) & ~table.named_negative]] = True
    asked &= ~missing
    drop("declared for another split", asked & record & (table.split > 0) & (table.split != split))
    asked &= alive
    example = np.full(count, -1)
    asking = np.flatnonzero(asked)
    declared = (query & (table.split > 0)).astype(np.int64)
    example[asking] = asking[duplicates.smallest((questions.same[asking] * 2 + declared[asking]) * 4 + split[asking])]
    highest = np.zeros(count, np.int8)
    np.maximum.at(highest, questions.near[asking], split[asking])
    lost = asked & (split != highest[questions.near])
    dropped["question of a held-out split"] = np.flatnonzero(lost)
    example[lost] = -1
    naming = np.flatnonzero((example == rows) & (table.id != 0))
    taken = np.zeros(count, bool)
    taken[naming[naming[duplicates.smallest(np.where(same_id, table.own_id, table.id)[naming])] != naming]] = True
    _, sizes = np.unique(group[drawn], return_counts=True)
    return Plan(dropped, passage, example, split, group, same_id, taken, named, len(sizes), largest)


def _look_up(table: Table, passage: Rows) -> tuple[Rows, Bools]:
    """The passage that each reference means, by the ids of its own source first; and which ids mean different things in different sources."""
    rows = np.flatnonzero((passage >= 0) & (table.id != 0))
    asked = np.flatnonzero((table.kind == QUERY) & (table.id != 0))
    same_id = np.zeros(table.count, bool)
    for some, meant in ((rows, passage), (asked, table.source)):
        first = some[duplicates.smallest(table.id[some])]
        several = np.zeros(table.count, bool)
        several[first[meant[some] != meant[first]]] = True
        same_id[some] = several[first]
    named = np.full(len(table.named_id), -1)
    if len(rows) == 0:
        return named, same_id
    for ids, wanted in ((table.own_id, table.named_own_id), (table.id, table.named_id)):
        values, where = np.unique(ids[rows], return_index=True)
        place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
        hit = (values[place] == wanted) & (named < 0)
        if ids is table.id:
            hit &= ~same_id[rows[where[place]]]
        named[hit] = passage[rows[where[place[hit]]]]
    return named, same_id


def _groups(table: Table, questions: Near, answers: Near, alive: Bools, drawn: Bools, passage: Rows, named: Rows) -> Rows:
    told = np.flatnonzero(alive & (table.kind != QUERY))
    asking = np.flatnonzero(drawn)
    links = np.flatnonzero((named >= 0) & ~table.named_negative & drawn[table.named_by])
    tied = same(np.where(drawn, table.tie, 0))
    # Through the first of these rows, not through the label's own: that may be a row that was dropped, and would join what has nothing in common.
    same_asked, same_told = (some[duplicates.smallest(near[some])] for some, near in ((asking, questions.near), (told, answers.near)))
    first = np.concatenate([asking, told, table.named_by[links], asking])
    second = np.concatenate([same_asked, same_told, named[links], tied[asking]])
    return duplicates.components(table.count, first, second)


def _draw(table: Table, group: Rows, drawn: Bools, config: Config) -> tuple[npt.NDArray[np.uint8], int]:
    """(N,) the split of each group, at its label: the highest that a member declares, else drawn by the hash of its members."""
    members = np.flatnonzero(drawn)
    declared = np.zeros(table.count, np.uint8)
    np.maximum.at(declared, group[members], table.split[members])
    least = np.full(table.count, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, group[members], table.question[members] ^ (table.answer[members] << np.uint64(1)))
    mixed = (least + np.uint64(config.seed % 2**64)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    share = (mixed ^ (mixed >> np.uint64(31))).astype(np.float64) / 2.0**64
    test, dev, train = (SPLIT_CODES.index(split) for split in ("test", "dev", "train"))
    split = np.where(share < config.test_share, test, np.where(share < config.test_share + config.dev_share, dev, train)).astype(np.uint8)
    sizes = np.bincount(group[members], minlength=table.count)
    split[sizes > max(LARGE_ROWS, LARGE_SHARE * len(members))] = train
    return np.where(declared > 0, declared, split).astype(np.uint8), int(sizes.max(initial=0))


def check_leaks(table: Table, questions: Near, answers: Near, example: Rows, split: npt.NDArray[np.int8]) -> int:
    """How many pairs were looked at. Raises ValueError where two of a pair stand in different splits: nothing made from them could be trusted.

    Looked at are all equal and all nearly equal questions, the answers of all records, and what a source puts in one group; not the answers
    of mapped questions, whose source means them to be found in a collection that training knows.
    """
    checked = 0
    stands = np.where(example >= 0, split, 0)
    record = table.kind == RECORD
    none = np.zeros(0, np.int64)
    ties = same(table.tie)
    tied = Near(ties, ties, none, none)
    for what, near, among in (("questions", questions, ~np.zeros_like(record)), ("answers", answers, record), ("parts of one group", tied, record)):
        # A pair of texts stands for all rows that have them: the lowest and the highest split of one are compared with those of the other.
        low, high = np.full(table.count, 127, np.int8), np.zeros(table.count, np.int8)
        used = np.flatnonzero((stands > 0) & among)
        np.minimum.at(low, near.same[used], stands[used])
        np.maximum.at(high, near.same[used], stands[used])
        for first, second in ((np.arange(table.count), near.same), (near.first_E, near.second_E)):
            one, other = near.same[first], near.same[second]
            both = (first != second) & (high[one] > 0) & (high[other] > 0)
            leak = np.flatnonzero(both & (np.maximum(high[one], high[other]) != np.minimum(low[one], low[other])))
            checked += int(both.sum())
            if len(leak):
                rows = f"{int(first[leak[0]])} and {int(second[leak[0]])}"
                raise ValueError(f"leak: {len(leak)} pairs of equal or nearly equal {what} stand in two splits, the first of them in rows {rows}")
    return checked
