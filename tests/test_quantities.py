"""Numbers with units: the same however they are written, and doses told from other numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrag.quantities import doses, quantities


@pytest.mark.parametrize(
    ("text", "unit", "values"),
    [
        ("每日三次", "day", (3,)),
        ("每天 3 次", "day", (3,)),
        ("一日3次", "day", (3,)),
        ("3次/日", "day", (3,)),
        ("tid", "day", (3,)),
        ("早中晚饭后各一次", "day", (3,)),
        ("每日一至两次", "day", (1, 2)),
        ("每周两次", "week", (2,)),
        ("每8小时一次", "hours", (8,)),
        ("q8h", "hours", (8,)),
        ("每次两片", "片", (2,)),
        ("每次服2片", "片", (2,)),
        ("一片半", "片", (1.5,)),
        ("半片", "片", (0.5,)),
        ("1/2片", "片", (0.5,)),
        ("两三粒", "粒", (2, 3)),
        ("500mg", "mg", (500,)),
        ("0.5 克", "mg", (500,)),
        ("五百毫克", "mg", (500,)),
        ("1,000mg", "mg", (1000,)),
        ("50μg", "mg", (0.05,)),
        ("5-10mg", "mg", (5, 10)),
        ("5毫克~10毫克", "mg", (5, 10)),
        ("10mg/kg", "mg/kg", (10,)),
        ("80万单位", "iu", (800_000,)),
        ("75%酒精", "%", (75,)),
        ("首剂加倍", "fold", (2,)),
        ("口服20毫升", "ml", (20,)),
    ],
)
def test_doses_are_the_same_however_they_are_written(text: str, unit: str, values: tuple[float, ...]) -> None:
    (found,) = doses(text)
    assert (found.unit, found.values) == (unit, tuple(map(float, values)))


@pytest.mark.parametrize(
    ("text", "unit", "values"),
    [
        ("十二岁", "岁", (12,)),
        ("血压高于140/90mmhg", "mmhg", (90,)),
        ("体温38.5℃", "度", (38.5,)),
        ("血红蛋白110g/l", "mg/l", (110_000,)),
        ("出生体重2500克", "mg", (2_500_000,)),
        ("出血500毫升", "ml", (500,)),
        ("有效率90%", "%", (90,)),
        ("怀孕三个月", "月", (3,)),
        ("连用两周", "周", (2,)),
        ("体重60公斤", "kg", (60,)),
        ("肺部一片阴影", "片", (1,)),
    ],
)
def test_other_numbers_are_no_doses(text: str, unit: str, values: tuple[float, ...]) -> None:
    assert doses(text) == []
    assert (quantities(text)[-1].unit, quantities(text)[-1].values) == (unit, tuple(map(float, values)))


@pytest.mark.parametrize("text", ["", "一般可以", "有一次", "1、多喝水。2.休息", "（3）注意", "几片", "百姓", "半夜"])
def test_what_counts_nothing_is_no_number(text: str) -> None:
    assert quantities(text) == []


@given(st.text(alphabet="每日天次片一二三两半十百千万0123456789.,/-~mgkl克毫升%小时隔各早晚，。 ", max_size=40))
def test_quantities_stand_in_order_and_apart(text: str) -> None:
    end = 0
    for found in quantities(text):
        assert end <= found.start < found.end <= len(text)
        assert found.values and all(value >= 0 for value in found.values)
        end = found.end
