"""The picture of a training run: right curves, any log, the same bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from medrag.reports import training


def _rows(steps: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "seconds": step / 3, "loss": 4 * math.exp(-step / 80) + 0.1 * (step % 3), "learning_rate": 1e-3, "units": 24})
        if step % 40 == 0:
            rate = 1 - math.exp(-step / 90)
            measured = {"MRR@10": 0.5 * rate, "recall@1": 0.4 * rate, "recall@10": 0.8 * rate, "recall@100": rate}
            named = {f"validation/{name}": value for name, value in measured.items()}
            rows.append({"step": step, "seconds": step / 3, "validation": measured["MRR@10"], "validation_seconds": 0.2, **named})
    return rows


def test_the_curves_are_the_log() -> None:
    curves = training.read(_rows(120))
    assert list(curves) == ["loss", "learning_rate", "MRR@10", "recall@1", "recall@10", "recall@100"]
    assert curves["loss"][0] == list(range(1, 121)) and curves["loss"][1][0] == pytest.approx(4 * math.exp(-1 / 80) + 0.1)
    steps, values = curves["recall@10"]
    assert steps == [40, 80, 120] and values == pytest.approx([0.8 * (1 - math.exp(-step / 90)) for step in steps])


def test_a_log_without_named_measures_and_values_that_are_no_numbers() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": math.nan, "learning_rate": 0.1},
        {"step": 1, "loss": 2.0, "note": "x"},
        {"step": 1, "validation": -2.5},
    ]
    assert training.read(rows) == {"learning_rate": ([1], [0.1]), "loss": ([1], [2.0]), "validation": ([1], [-2.5])}


def test_steps_that_were_skipped_are_marked(tmp_path: Path) -> None:
    """Whatever their loss was; their marks leave the scale of the others as it is."""
    rows = _rows(120)
    training.write(rows, 40, tmp_path / "healthy.png")
    for number, step in enumerate((50, 90), 1):
        rows[next(place for place, row in enumerate(rows) if row["step"] == step and "loss" in row)] = {"step": step, "skipped": number}
    curves = training.read(rows)
    assert curves["skipped"] == ([50, 90], [1, 2]) and not {50, 90} & set(curves["loss"][0])
    training.write(rows, 40, tmp_path / "skipped.png")
    assert (tmp_path / "skipped.png").read_bytes() != (tmp_path / "healthy.png").read_bytes()


def test_the_mean_looks_back_only() -> None:
    assert training._smoothed([4.0, 2.0, 0.0, 6.0], 2).tolist() == [4.0, 3.0, 1.0, 3.0]
    assert training._smoothed([4.0, 2.0, 3.0], 9).tolist() == [4.0, 3.0, 3.0]


@pytest.mark.parametrize("rows", [_rows(400), _rows(10), [], [{"step": 1, "validation/minus_nats": -3.0, "validation/tokens": 17}]])
def test_every_log_gives_a_picture_and_the_same_one(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        training.write(iter(rows), 40, tmp_path / name)
    one = (tmp_path / "one.png").read_bytes()
    assert one[:8] == b"\x89PNG\r\n\x1a\n" and len(one) > 5_000
    assert one == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_the_best_step_is_marked(tmp_path: Path) -> None:
    for best in (40, 80):
        training.write(_rows(120), best, tmp_path / f"{best}.png")
    assert (tmp_path / "40.png").read_bytes() != (tmp_path / "80.png").read_bytes()
