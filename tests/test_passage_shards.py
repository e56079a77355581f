"""Passages on disk against a list and a dictionary of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medrag import passages as kept
from medrag.passages import Passages, Rows, said, write_ids, write_shard
from medrag.types import Passage

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PASSAGES = st.lists(
    st.builds(Passage, id=WORDS, text=WORDS, source=WORDS, title=WORDS, group=WORDS), min_size=1, max_size=40, unique_by=lambda p: p.id
)


def _written(folder: Path, passages: list[Passage], at_once: int, first: int = 0) -> Passages:
    (folder / kept.SHARDS).mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(passages), at_once), first):
        write_shard(folder / kept.SHARDS, number, passages[start : start + at_once])
    return Passages(folder)


def _some(count: int, first: int = 0) -> list[Passage]:
    return [Passage(f"p{number}", f"第{number}条：多喝水。", "test", "" if number % 3 else f"题{number}") for number in range(first, first + count)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(passages=PASSAGES, at_once=st.integers(1, 50))
def test_what_is_written_is_read(passages: list[Passage], at_once: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Line separators, quotes, null bytes: whatever stands in a text, a line is a line."""
    folder = tmp_path_factory.mktemp("any")
    found = _written(folder, passages, at_once)
    assert list(found) == passages and len(found) == len(passages)
    assert [found[row] for row in range(len(found))] == passages == found[:]
    assert found[-1] == passages[-1] and found[1:-1:2] == passages[1:-1:2]
    write_ids(folder, found)
    rows, texts = Rows(folder, found), Rows(folder, found, by="texts")
    assert dict(rows) == {passage.id: row for row, passage in enumerate(passages)}
    assert list(rows) == [passage.id for passage in passages]
    assert all(said(passages[texts[said(passage)]]) == said(passage) for passage in passages)


def test_a_row_beyond_the_end_and_a_strange_id_are_not_there(tmp_path: Path) -> None:
    found = _written(tmp_path, _some(7), 3)
    write_ids(tmp_path, found)
    assert found.numbers == [0, 1, 2] and found.first.tolist() == [0, 3, 6, 7]
    for row in (7, -8):
        with pytest.raises(IndexError, match=f"passage {row} of 7"):
            found[row]
    rows = Rows(tmp_path, found)
    assert rows["p6"] == 6 and found[np.int64(6)].id == "p6" and "p7" not in rows and rows.get("") is None
    with pytest.raises(KeyError, match="p7"):
        rows["p7"]


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three hash values for fifty ids, every lookup must look at the passages."""
    plain = kept._hash
    monkeypatch.setattr(kept, "_hash", lambda key: plain(key) % 3)
    found = _written(tmp_path, _some(50), 20)
    write_ids(tmp_path, found)
    rows = Rows(tmp_path, found)
    assert dict(rows) == {f"p{number}": number for number in range(50)}
    assert "p50" not in rows
    with pytest.raises(ValueError, match="1 passages have the id of another, as 'p4'"):
        write_ids(tmp_path, [*_some(9), Passage("p4", "别的", "test")])


def test_the_lookup_goes_on_where_passages_come_and_go(tmp_path: Path) -> None:
    """Against a dictionary, over rounds of removals and additions; a removed id comes back in another row."""
    folder = tmp_path / "0"
    passages = _some(30)
    write_ids_in(folder, passages)
    live = {passage.id: row for row, passage in enumerate(passages)}
    draw = np.random.default_rng(0)
    removed: set[int] = set()
    for turn in range(1, 7):
        names = sorted(live)
        gone = [names[place] for place in draw.choice(len(names), 8, replace=False)]
        removed |= {live.pop(name) for name in gone}
        back = [Passage(name, f"新的{turn}{name}", "test") for name in gone[:4]]
        new = [*back, *_some(3, 100 * turn)]
        after = tmp_path / str(turn)
        after.mkdir()
        write_ids(after, new, len(passages), folder, sorted(removed))
        live |= {passage.id: row for row, passage in enumerate(new, len(passages))}
        passages += new
        folder = after
        rows = Rows(folder, passages)
        assert dict(rows) == live and len(rows) == len(live)
        texts = Rows(folder, passages, by="texts")
        assert {texts[said(passages[row])] for row in live.values()} == set(live.values())
        assert not any(said(passages[row]) in texts for row in removed)


def write_ids_in(folder: Path, passages: list[Passage]) -> None:
    folder.mkdir()
    write_ids(folder, passages)


def test_texts_are_one_where_only_width_and_punctuation_differ(tmp_path: Path) -> None:
    one, same, other = Passage("a", "每天１片。", "x"), Passage("b", "每天1片", "y"), Passage("c", "每天1片", "x", "叶酸")
    assert said(one) == said(same) != said(other)


def test_what_is_damaged_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no passages to write"):
        write_shard(tmp_path, 0, [])
    found = _written(tmp_path, _some(5), 5)
    path = tmp_path / kept.SHARDS / "00000.jsonl"
    assert [json.loads(line)["id"] for line in path.read_text("utf-8").splitlines()] == [passage.id for passage in found]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00000\.jsonl: \d+ bytes, but its offsets count \d+"):
        Passages(tmp_path)
    write_ids(tmp_path, _some(5))
    np.save(tmp_path / "ids.npy", np.arange(4))
    with pytest.raises(ValueError, match=r"4 hashes for 5 rows"):
        Rows(tmp_path, _some(5))
    assert len(Passages(tmp_path / "nothing")) == 0
