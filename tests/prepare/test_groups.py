"""The plan for all rows against a slow one with dicts and loops, and proofs by brute force that no held-out text is known to training."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import ALONE, DATA, config, corpus, record

from medrag import duplicates, prepare, sources, text
from medrag.prepare import groups, stages
from medrag.prepare.groups import DOCUMENT, QUERY, RECORD, Near, Plan, Table
from medrag.prepare.shards import Shards
from medrag.prepare.stages import SPLIT_CODES
from medrag.types import Example

NO_SPLIT, TRAIN, DEV, TEST = range(len(SPLIT_CODES))


@dataclass(frozen=True)
class Row:
    """What the plan may know of a row."""

    kind: int
    source: int = 0
    question: str = ""
    answer: str = ""
    split: int = 0
    id: str = ""
    tie: str = ""
    named: tuple[tuple[str, bool], ...] = ()
    """ids of rows, and whether they are negatives"""


Pairs = frozenset[frozenset[str]]
"""texts that are nearly equal"""


class Joined:
    """Things that belong together, over any number of steps."""

    def __init__(self) -> None:
        self.parent: dict[Hashable, Hashable] = {}

    def root(self, thing: Hashable) -> Hashable:
        while self.parent.setdefault(thing, thing) != thing:
            thing = self.parent[thing]
        return thing

    def join(self, one: Hashable, other: Hashable) -> None:
        self.parent[self.root(one)] = self.root(other)


def _table(rows: list[Row]) -> Table:
    def own(row: Row, name: str) -> str:
        return f"{row.source}\0{name}" if name else ""

    named = [(number, name, negative) for number, row in enumerate(rows) for name, negative in row.named]
    return Table(
        kind=np.array([row.kind for row in rows], np.uint8),
        source=np.array([row.source for row in rows], np.uint16),
        split=np.array([row.split for row in rows], np.uint8),
        question=duplicates.hashes([row.question for row in rows]),
        answer=duplicates.hashes([row.answer for row in rows]),
        id=duplicates.hashes([row.id for row in rows]),
        own_id=duplicates.hashes([own(row, row.id) for row in rows]),
        tie=duplicates.hashes([own(row, row.tie) for row in rows]),
        named_by=np.array([number for number, _, _ in named], np.int64),
        named_id=duplicates.hashes([name for _, name, _ in named]),
        named_own_id=duplicates.hashes([own(rows[number], name) for number, name, _ in named]),
        named_negative=np.array([negative for _, _, negative in named], bool),
    )


def _near(hashes: duplicates.U64, texts: list[str], pairs: Pairs) -> Near:
    """As ``near_of`` does it: pairs of the first rows of equal texts."""
    same = groups.same(hashes)
    first_row = {row: texts[row] for row in sorted(set(same.tolist())) if texts[row]} if pairs else {}
    found = [(one, other) for one in first_row for other in first_row if one < other and frozenset((first_row[one], first_row[other])) in pairs]
    first, second = (np.array([pair[end] for pair in found], np.int64) for end in (0, 1))
    return Near(same, duplicates.components(len(texts), first, second)[same], first, second)


def _planned(rows: list[Row], pairs: Pairs, **changes: Any) -> tuple[Table, Near, Near, Plan]:
    table = _table(rows)
    questions = _near(table.question, [row.question for row in rows], pairs)
    answers = _near(table.answer, [row.answer for row in rows], pairs)
    return table, questions, answers, groups.plan(table, questions, answers, config(**changes))


class Slow:
    """The same decisions, read off the rules, with nothing held out but what is declared."""

    def __init__(self, rows: list[Row], pairs: Pairs) -> None:
        self.rows, self.dropped = rows, defaultdict[str, list[int]](list)
        texts = Joined()
        for pair in pairs:
            texts.join(*pair)
        self.near = texts.root
        self.alive = {number for number, row in enumerate(rows) if row.kind != QUERY}
        self._other_answers_of_an_id()
        self.keeper = {number: number for number in range(len(rows))}
        for rule, form in (("equal pair", lambda said: said), ("nearly equal pair", self.near)):
            self._doubles(rule, form)
        self._passages()
        self._references()
        self._groups()
        self._examples()

    def drop(self, rule: str, number: int) -> None:
        self.dropped[rule].append(number)
        self.alive.discard(number)

    def _other_answers_of_an_id(self) -> None:
        meant: dict[tuple[int, str], str] = {}
        for number, row in enumerate(self.rows):
            if row.kind != QUERY and row.id and meant.setdefault((row.source, row.id), row.answer) != row.answer:
                self.drop("id of another record" if row.kind == RECORD else "id of another document", number)

    def _doubles(self, rule: str, form: Any) -> None:
        first: dict[Hashable, int] = {}
        for number in sorted(
            (number for number in self.alive if self.rows[number].kind == RECORD), key=lambda number: (-self.rows[number].split, number)
        ):
            row = self.rows[number]
            keeper = first.setdefault((form(row.question), form(row.answer)), number)
            if keeper != number:
                self.drop(rule, number)
            self.keeper = {other: keeper if kept == number else kept for other, kept in self.keeper.items()}

    def _passages(self) -> None:
        self.passage = [-1] * len(self.rows)
        by_text: dict[str, int] = {}
        for number, row in enumerate(self.rows):
            if number in self.alive:
                self.passage[number] = by_text.setdefault(row.answer, number)
        for number, keeper in self.keeper.items():
            self.passage[number] = self.passage[keeper]

    def _references(self) -> None:
        own: dict[tuple[int, str], int] = {}
        anywhere: dict[str, set[int]] = defaultdict(set)
        for number, row in enumerate(self.rows):
            if self.passage[number] >= 0 and row.id:
                own.setdefault((row.source, row.id), self.passage[number])
                anywhere[row.id].add(self.passage[number])
        self.named = []
        for row in self.rows:
            for name, _ in row.named:
                only = min(anywhere[name]) if len(anywhere[name]) == 1 else -1
                self.named.append(own.get((row.source, name), only))
        askers: dict[str, set[int]] = defaultdict(set)
        for row in self.rows:
            if row.kind == QUERY:
                askers[row.id].add(row.source)
        self.same_id = [
            bool(row.id) and (len(askers[row.id]) > 1 if row.kind == QUERY else self.passage[number] >= 0 and len(anywhere[row.id]) > 1)
            for number, row in enumerate(self.rows)
        ]

    def references(self, number: int) -> Iterable[tuple[int, bool]]:
        before = sum(len(row.named) for row in self.rows[:number])
        return [(self.named[before + place], negative) for place, (_, negative) in enumerate(self.rows[number].named)]

    def _groups(self) -> None:
        self.joined = Joined()
        self.drawn = {number for number in self.alive if self.rows[number].kind == RECORD}
        self.drawn |= {number for number, row in enumerate(self.rows) if row.kind == QUERY and not row.split}
        for number, row in enumerate(self.rows):
            if number in self.alive:
                self.joined.join(number, ("answer", self.near(row.answer)))
            if number in self.drawn:
                self.joined.join(number, ("question", self.near(row.question)))
                if row.tie:
                    self.joined.join(number, ("tie", row.source, row.tie))
                for passage, negative in self.references(number):
                    if passage >= 0 and not negative:
                        self.joined.join(number, passage)
        declared: dict[Hashable, int] = defaultdict(int)
        for number in self.drawn:
            root = self.joined.root(number)
            declared[root] = max(declared[root], self.rows[number].split)
        self.group_split = {root: split or TRAIN for root, split in declared.items()}

    def _examples(self) -> None:
        self.example = [-1] * len(self.rows)
        split: dict[int, int] = {}
        for number, row in enumerate(self.rows):
            if row.kind == QUERY and any(passage < 0 and not negative for passage, negative in self.references(number)):
                continue
            if row.kind == QUERY and row.split:
                split[number] = row.split
            elif number in self.drawn:
                split[number] = self.group_split[self.joined.root(number)]
                if row.kind == RECORD and row.split not in (NO_SPLIT, split[number]):
                    self.drop("declared for another split", number)
                    del split[number]
        highest: dict[Hashable, int] = defaultdict(int)
        for number, one in split.items():
            asked = self.near(self.rows[number].question)
            highest[asked] = max(highest[asked], one)
        first: dict[tuple[str, bool, int], int] = {}
        for number, one in split.items():
            row = self.rows[number]
            if one != highest[self.near(row.question)]:
                self.dropped["question of a held-out split"].append(number)
            else:
                self.example[number] = first.setdefault((row.question, row.kind == QUERY and row.split > 0, one), number)
        self.split = split


def _random_rows(draw: random.Random) -> tuple[list[Row], Pairs]:
    """A handful of texts, ids and sources, so that nearly everything clashes somewhere."""
    questions, answers = [f"q{place}" for place in range(draw.randint(3, 14))], [f"a{place}" for place in range(draw.randint(3, 14))]
    ids = ["", *(f"i{place}" for place in range(draw.randint(1, 12)))]
    ties = ["", "", *(f"t{place}" for place in range(draw.randint(0, 4)))]
    splits = [NO_SPLIT] * draw.randint(2, 12) + [TRAIN, DEV, TEST]
    pairs = {frozenset(draw.sample(side, 2)) for side in (questions, answers) for _ in range(draw.randint(0, 3))}
    rows = []
    for _ in range(draw.randint(1, 25)):
        kind, origin, name = draw.choice((RECORD, RECORD, RECORD, DOCUMENT, QUERY)), draw.randint(0, 2), draw.choice(ids)
        if kind == RECORD:
            row = Row(kind, origin, draw.choice(questions), draw.choice(answers), draw.choice(splits), name, draw.choice(ties))
        elif kind == DOCUMENT:
            row = Row(kind, origin, "", draw.choice(answers), id=name)
        else:
            named = tuple((draw.choice(ids[1:]), draw.random() < 0.3) for _ in range(draw.randint(0, 3)))
            row = Row(kind, origin, draw.choice(questions), "", draw.choice(splits), name, "", named)
        rows.append(row)
    present = {row.question for row in rows} | {row.answer for row in rows}
    return rows, frozenset(pair for pair in pairs if pair <= present)


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_that_of_dicts_and_loops(seed: int) -> None:
    draw = random.Random(seed)
    seen: dict[str, int] = defaultdict(int)
    for _ in range(100):
        rows, pairs = _random_rows(draw)
        table, questions, answers, plan = _planned(rows, pairs)
        slow = Slow(rows, pairs)
        case = "\n".join([str(pairs), *(f"{number}: {row}" for number, row in enumerate(rows))])
        assert {rule: where.tolist() for rule, where in plan.dropped.items() if len(where)} == {
            rule: sorted(where) for rule, where in slow.dropped.items()
        }, case
        assert plan.passage.tolist() == slow.passage, case
        assert plan.named.tolist() == slow.named, case
        assert plan.same_id.tolist() == slow.same_id, case
        assert plan.example.tolist() == slow.example, case
        for number, split in slow.split.items():
            assert plan.split[number] == split, case
        told = [number for number in range(len(rows)) if number in slow.drawn or plan.passage[number] == number]
        for one in told:
            for other in told:
                assert (plan.group[one] == plan.group[other]) == (slow.joined.root(one) == slow.joined.root(other)), (one, other, case)
        sizes: dict[Hashable, int] = defaultdict(int)
        for number in slow.drawn:
            sizes[slow.joined.root(number)] += 1
        assert (plan.groups, plan.largest_group) == (len(sizes), max(sizes.values(), default=0)), case
        groups.check_leaks(table, questions, answers, plan.example, plan.split)
        for rule in plan.dropped:
            seen[rule] += len(slow.dropped[rule])
    assert len(seen) == 6 and all(count > 10 for count in seen.values()), f"every rule has had something to drop: {seen}"


@pytest.mark.parametrize("seed", range(4))
def test_the_leak_check_sees_what_all_pairs_show(seed: int) -> None:
    """Splits moved at random: refused where, and only where, two equal or nearly equal texts come to stand in two."""
    draw = random.Random(seed)
    outcomes = {True: 0, False: 0}
    for _ in range(150):
        rows, pairs = _random_rows(draw)
        table, questions, answers, plan = _planned(rows, pairs)
        split = plan.split.copy()
        for number in draw.sample(range(len(rows)), min(len(rows), draw.randint(0, 2))):
            split[number] = draw.choice((TRAIN, DEV, TEST))
        stands = [(row, int(split[number])) for number, row in enumerate(rows) if plan.example[number] >= 0]
        leaks = any(
            one_split != other_split and _belong(one, other, pairs)
            for place, (one, one_split) in enumerate(stands)
            for other, other_split in stands[:place]
        )
        outcomes[leaks] += 1
        if leaks:
            with pytest.raises(ValueError, match=r"^leak: \d+ pairs of .* stand in two splits, the first of them in rows \d+ and \d+$"):
                groups.check_leaks(table, questions, answers, plan.example, split)
        else:
            groups.check_leaks(table, questions, answers, plan.example, split)
    assert min(outcomes.values()) > 15


def _belong(one: Row, other: Row, pairs: Pairs) -> bool:
    def near(first: str, second: str) -> bool:
        return first == second != "" or frozenset((first, second)) in pairs

    records = one.kind == other.kind == RECORD
    tied = records and one.source == other.source and one.tie == other.tie != ""
    return near(one.question, other.question) or (records and near(one.answer, other.answer)) or tied


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("questions", Row(RECORD, 0, "q1", "a1"), Row(RECORD, 0, "q1", "a2")),
        ("questions", Row(RECORD, 0, "q1", "a1"), Row(RECORD, 0, "q2", "a2")),
        ("questions", Row(RECORD, 0, "q1", "a1", id="i1"), Row(QUERY, 1, "q2", named=(("i1", False),))),
        ("answers", Row(RECORD, 0, "q1", "a1"), Row(RECORD, 1, "q3", "a1")),
        ("answers", Row(RECORD, 0, "q1", "a1"), Row(RECORD, 1, "q3", "a2")),
        ("parts of one group", Row(RECORD, 0, "q1", "a1", tie="t"), Row(RECORD, 0, "q3", "a3", tie="t")),
    ],
)
def test_one_row_moved_is_refused(what: str, first: Row, second: Row) -> None:
    pairs = frozenset({frozenset({"q1", "q2"}), frozenset({"a1", "a2"})})
    rows = [Row(RECORD, 0, "q8", "a8"), first, Row(RECORD, 0, "q9", "a9"), second]
    if what == "questions":
        rows[1], rows[3] = replace(first, answer="a5"), replace(second, answer="a6" if second.kind == RECORD else "")
    table, questions, answers, plan = _planned(rows, pairs)
    assert groups.check_leaks(table, questions, answers, plan.example, plan.split) > 0
    for row in (1, 3):
        for split in (DEV, TEST):
            moved = plan.split.copy()
            moved[row] = split
            with pytest.raises(ValueError, match=f"equal or nearly equal {what} stand in two splits, the first of them in rows (1 and 3|3 and 1)$"):
                groups.check_leaks(table, questions, answers, plan.example, moved)
    moved = plan.split.copy()
    moved[[0, 2]] = DEV, TEST
    groups.check_leaks(table, questions, answers, plan.example, moved)


def test_a_leak_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = groups.plan

    def tampered(*arguments: Any) -> Plan:
        plan = planned(*arguments)
        plan.split[0] = TEST
        return plan

    monkeypatch.setattr(groups, "plan", tampered)
    rows = [record("头痛发烧应该怎么办呢", "要多休息，多喝水，少看手机。"), record("宝宝发烧怎么办呢", "要多休息，多喝水，少看手机。")]
    with pytest.raises(ValueError, match=r"^leak: 1 pairs of equal or nearly equal answers stand in two splits, the first of them in rows 1 and 0$"):
        corpus(tmp_path, rows)
    assert not list((tmp_path / "store" / "corpus").iterdir()), "nothing is published, and the work is not begun again from there"


def _declared(count: int, per_group: int) -> list[Row]:
    return [Row(RECORD, 0, f"q{group}-{row}", f"a{group}") for group in range(count) for row in range(per_group)]


def test_shares_are_of_groups_and_drawn_by_the_seed() -> None:
    rows = _declared(3000, 2)
    drawn = {seed: _planned(rows, frozenset(), dev_share=0.1, test_share=0.2, seed=seed)[3] for seed in (0, 1, -1)}
    for plan in drawn.values():
        assert (plan.split[::2] == plan.split[1::2]).all() and plan.groups == 3000 and plan.largest_group == 2
        shares = np.bincount(plan.split[::2], minlength=4) / 3000
        for split, share in ((TRAIN, 0.7), (DEV, 0.1), (TEST, 0.2)):
            assert abs(shares[split] - share) < 4 * np.sqrt(share * (1 - share) / 3000)
    both = np.mean((drawn[0].split == TEST) & (drawn[1].split == TEST))
    assert abs(both - 0.04) < 0.02, "another seed draws anew"
    fewer = _planned(rows[1000:], frozenset(), dev_share=0.1, test_share=0.2)[3]
    assert (fewer.split == drawn[0].split[1000:]).all(), "more rows do not change the split of those that were there"
    wider = _planned(rows, frozenset(), dev_share=0.1, test_share=0.3)[3]
    assert (wider.split[drawn[0].split == TEST] == TEST).all(), "a larger test set holds the smaller one"


def test_the_highest_declared_split_wins_and_large_groups_are_not_held_out() -> None:
    small = [Row(RECORD, 0, f"q{row}", "a0") for row in range(groups.LARGE_ROWS)]
    large = [*small, Row(RECORD, 0, "one more", "a0")]
    everything = {"dev_share": 0.499, "test_share": 0.499}
    for seed in range(10):
        held = _planned(small, frozenset(), seed=seed, **everything)[3].split
        assert len(set(held.tolist())) == 1 and held[0] in (DEV, TEST)
        assert set(_planned(large, frozenset(), seed=seed, **everything)[3].split.tolist()) == {TRAIN}
    for splits, wins in (((TRAIN, NO_SPLIT), TRAIN), ((TRAIN, DEV), DEV), ((DEV, TEST, TRAIN), TEST)):
        rows = [replace(row, split=split) for row, split in zip(large, (*splits, *[NO_SPLIT] * len(large)), strict=False)]
        plan = _planned(rows, frozenset(), **everything)[3]
        assert set(plan.split.tolist()) == {wins}
        others = [row for row, split in enumerate(splits) if split not in (NO_SPLIT, wins)]
        assert plan.dropped["declared for another split"].tolist() == others and (plan.example[others] == -1).all()
        assert (plan.passage == 0).all(), "what it says stays to be found"


def _real(folder: Path) -> list[sources.Source]:
    """About 3,000 rows of real consultations: two files that overlap, and another."""
    if not DATA.is_dir():
        pytest.skip(f"the real data is not at {DATA}")
    parts = (("toyhom/internal_medicine_sample.csv", 1500), ("toyhom/internal_medicine_pairs.txt", 3000), ("huatuo_llama/llama_data.json", 1200))
    found = []
    for name, lines in parts:
        part = folder / Path(name).name
        with open(DATA / name, "rb") as stream:
            part.write_bytes(b"".join(stream.readline() for _ in range(lines)))
        found.append(sources.recognise(str(part)))
    return found


def _similar(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two sets of pairs reach 0.8; sizes that differ by more than a fifth cannot."""
    low, high = sorted((len(one), len(other)))
    if low < 0.8 * high or not low:
        return False
    both = len(one & other)
    return both >= 0.8 * (low + high - both) - 1e-9


def test_no_held_out_text_is_known_to_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of real questions, and of real answers: of those near, nearly all were found; in the corpus, none is left across splits."""
    near_of, seen = prepare._near, dict[str, tuple[list[frozenset[str]], Near]]()

    def looked_at(work: Any, crew: Any, side: str, hashes: Any, progress: bool) -> Near:
        near = near_of(work, crew, side, hashes, progress)
        rows = Shards(work)
        keys = [stages.keys(rows[number])[groups.SIDES.index(side)] for number in range(len(hashes))]
        seen[side] = [duplicates.character_pairs(key) for key in keys], near
        return near

    monkeypatch.setattr(prepare, "_near", looked_at)
    settings = config(dev_share=0.15, test_share=0.15)
    artifact = prepare.prepare(_real(tmp_path), settings, tmp_path / "store", False, ALONE)
    made = prepare.read(artifact)
    assert min(len(made.train), len(made.dev), len(made.test)) > 100

    for side, (said, near) in seen.items():
        for one, other in zip(near.first_E.tolist(), near.second_E.tolist(), strict=True):
            assert _similar(said[one], said[other]), (side, one, other)
        first = sorted(set(near.same.tolist()))
        pairs = [(one, other) for place, one in enumerate(first) for other in first[:place] if _similar(said[one], said[other])]
        assert len(pairs) > 2
        assert sum(near.near[one] == near.near[other] for one, other in pairs) >= 0.97 * len(pairs), side

    for side in groups.SIDES:
        sets = [[_texts(example, side) for example in examples] for examples in (made.train, [*made.dev, *made.test])]
        train, held = ([duplicates.character_pairs(key) for keys in part for key in keys] for part in sets)
        assert not any(_similar(known, asked) for asked in held for known in train), side


def _texts(example: Example, side: str) -> list[str]:
    return [text.key(example.question)] if side == "question" else [text.key(answer) for answer in example.answers]
