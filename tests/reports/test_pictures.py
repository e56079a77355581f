"""The picture of memory by part: any figures, the same bytes, every part a colour of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from medrag.plan.memory import PARTS
from medrag.reports import memory
from medrag.reports.memory import GIB, Stage


def _stages(*totals_gib: float) -> list[Stage]:
    parts = [{name: round(total * GIB / len(PARTS)) for name in PARTS} for total in totals_gib]
    return [Stage(f"stage {place}", part, 2, "3 x 9 GB", 9e9) for place, part in enumerate(parts)]


@pytest.mark.parametrize("totals_gib", [(3.0, 7.4, 12.6), (0.0, 0.001), (40.0,)])
def test_all_figures_give_a_picture_and_the_same_one(totals_gib: tuple[float, ...], tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        memory.write(_stages(*totals_gib), 10.9 * GIB, "memory of a device", "a title", tmp_path / name)
    one = (tmp_path / "one.png").read_bytes()
    assert one[:8] == b"\x89PNG\r\n\x1a\n" and len(one) > 10_000
    assert one == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_sizes_and_capacity_are_seen(tmp_path: Path) -> None:
    drawn = []
    for number, (total, capacity) in enumerate([(3.0, 10.9), (3.1, 10.9), (3.0, 7.9), (3.0, 900.0), (3.0, 800.0)]):
        memory.write(_stages(total), capacity * GIB, "memory of a device", "a title", tmp_path / f"{number}.png")
        drawn.append((tmp_path / f"{number}.png").read_bytes())
    assert len(set(drawn[:4])) == 4
    assert drawn[3] == drawn[4]  # a line far above the bars would leave them no room


def test_every_part_has_a_colour_of_its_own() -> None:
    assert len(set(memory.COLOURS)) == len(memory.COLOURS) == len(PARTS)
