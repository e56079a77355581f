"""Signatures estimate what they should, bands find what they should, and groups are groups, whatever the order of the texts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag import duplicates

HAN = [chr(0x4E00 + place) for place in random.Random(5).sample(range(3000), 800)]
HOSTILE = st.text(st.sampled_from("头痛发烧ab19\ud800\udfff😀"), max_size=12)
"""letters of every size in UTF-16, and halves of letters"""
ours = settings(derandomize=True, deadline=None, max_examples=60)


def _sentence(draw: random.Random, characters: int) -> str:
    return "".join(draw.choices(HAN, k=characters))


def _changed(draw: random.Random, text: str, times: int) -> str:
    letters = list(text)
    for _ in range(times):
        letters[draw.randrange(len(letters))] = draw.choice(HAN)
    return "".join(letters)


def _pairs(text: str) -> set[str]:
    return {text[place : place + 2] for place in range(len(text) - 1)} or set(text)


def _jaccard(first: str, second: str) -> float:
    one, other = _pairs(first), _pairs(second)
    return len(one & other) / len(one | other) if one and other else 0.0


def _families(draw: random.Random, count: int) -> list[str]:
    """Texts of 15 to 80 characters, some with up to three near doubles, mixed."""
    texts = []
    for _ in range(count):
        text = _sentence(draw, draw.randint(15, 80))
        texts += [text, *(_changed(draw, text, draw.randint(0, len(text) // 6)) for _ in range(draw.randint(0, 3)))]
    draw.shuffle(texts)
    return texts


def _labels(texts: Sequence[str], threshold: float) -> npt.NDArray[np.int64]:
    """What ``prepare`` does: the candidates of every band, those that are near without doubt, and their groups."""
    signatures, bands = duplicates.sketch(texts)
    first, second = list[int](), list[int]()
    for band in range(duplicates.BANDS):
        one, other, compared = duplicates.near_pairs(bands[:, band], np.arange(len(texts)), signatures, threshold)
        assert compared >= len(one) == len(other)
        for here, there in zip(one.tolist(), other.tolist(), strict=True):
            if duplicates.jaccard(duplicates.character_pairs(texts[here]), duplicates.character_pairs(texts[there])) >= threshold:
                first.append(here)
                second.append(there)
    return duplicates.components(len(texts), np.array(first, np.int64), np.array(second, np.int64))


def test_jaccard_by_hand() -> None:
    assert duplicates.character_pairs("头痛头痛") == {"头痛", "痛头"}
    assert duplicates.character_pairs("头") == {"头"} and duplicates.character_pairs("") == frozenset()
    both = duplicates.jaccard(duplicates.character_pairs("头痛发烧"), duplicates.character_pairs("头痛发热"))
    assert both == 2 / 4
    assert duplicates.jaccard(frozenset(), frozenset()) == 0


@given(st.lists(HOSTILE, max_size=12))
@ours
def test_hashes_tell_texts_apart_and_only_the_empty_one_is_zero(texts: list[str]) -> None:
    found = duplicates.hashes(texts)
    assert found.dtype == np.uint64 and found.shape == (len(texts),)
    for one, text in zip(found.tolist(), texts, strict=True):
        assert (one == 0) == (text == "")
        assert [other == one for other in found.tolist()] == [other == text for other in texts]
    assert duplicates.hashes(texts[::-1]).tolist() == found.tolist()[::-1]


@given(st.lists(HOSTILE, max_size=12))
@ours
def test_a_sketch_does_not_depend_on_the_texts_beside_it(texts: list[str]) -> None:
    signatures, bands = duplicates.sketch(texts)
    assert signatures.dtype == np.uint8 and bands.dtype == np.uint32
    assert signatures.shape == (len(texts), duplicates.PERMUTATIONS) and bands.shape == (len(texts), duplicates.BANDS)
    for row, text in enumerate(texts):
        alone_signature, alone_bands = duplicates.sketch([text])
        assert (alone_signature[0] == signatures[row]).all() and (alone_bands[0] == bands[row]).all()
        assert bands[row].any() == bool(text)


@given(HOSTILE.filter(lambda text: len(text) > 1))
@ours
def test_texts_with_the_same_pairs_have_the_same_sketch(text: str) -> None:
    """It is of a set: how often a pair stands there and in which order does not matter."""
    once, twice = duplicates.sketch([text + text[0], text + text + text[0]])[0]
    assert (once == twice).all()


def test_texts_longer_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    texts = ["", _sentence(draw, 30_000), "痛", "", "头痛", _sentence(draw, 9000), _sentence(draw, 20), ""]
    signatures, bands = duplicates.sketch(texts)
    monkeypatch.setattr(duplicates, "PAIRS_AT_ONCE", 7)
    small = duplicates.sketch(texts[2:])
    assert (small[0] == signatures[2:]).all() and (small[1] == bands[2:]).all()
    assert not bands[[0, 3, 7]].any() and bands[[1, 2, 4, 5, 6]].all(axis=1).all()


def test_the_estimate_has_neither_bias_nor_more_spread_than_theory_says() -> None:
    """96 draws: standard error sqrt(J (1 - J) / 96)."""
    draw = random.Random(2)
    texts = [_sentence(draw, draw.randint(20, 200)) for _ in range(3000)]
    others = [_changed(draw, text, draw.randint(0, len(text) // 2)) for text in texts]
    exact = np.array([_jaccard(*pair) for pair in zip(texts, others, strict=True)])
    signatures, bands = duplicates.sketch(texts + others)
    rows = np.arange(len(texts))
    found = duplicates.similarity(signatures, rows, rows + len(texts))
    middle = (exact > 0.05) & (exact < 0.95)
    errors = (found - exact)[middle] / np.sqrt(exact * (1 - exact) / duplicates.PERMUTATIONS)[middle]
    assert middle.sum() > 2500
    assert abs(errors.mean()) < 4 / np.sqrt(middle.sum()) and 0.95 < errors.std() < 1.08
    assert (found[exact == 1] == 1).all() and (found[exact < 0.01] < 0.1).all()

    shared = (bands[: len(texts)] == bands[len(texts) :]).any(axis=1)
    theory = 1 - (1 - exact**6) ** 16
    for low, high in ((0.0, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)):
        some = (exact >= low) & (exact < high)
        spread = np.sqrt((theory * (1 - theory))[some].sum()) / some.sum()
        assert abs(shared[some].mean() - theory[some].mean()) < 4 * spread + 0.005, (low, high)


def test_nearly_all_near_pairs_are_found_and_no_others() -> None:
    draw = random.Random(3)
    texts = _families(draw, 250)
    label = _labels(texts, 0.8)
    near = [(one, other) for one in range(len(texts)) for other in range(one) if _jaccard(texts[one], texts[other]) >= 0.8]
    assert len(near) > 150
    assert sum(label[one] == label[other] for one, other in near) >= 0.97 * len(near)
    chained = _union_find(len(texts), near)
    assert all(chained[row] == chained[label[row]] for row in range(len(texts))), "a group holds what near pairs join, and nothing else"


def test_near_doubles_are_found_among_thousands_of_texts_of_one_template() -> None:
    """A band's runs of equal values are long there, and not all pairs of a run are compared."""
    draw = random.Random(4)
    frame = _sentence(draw, 60)
    texts = [frame[:30] + _sentence(draw, 12) + frame[30:] for _ in range(1000)]
    texts += [_changed(draw, text, 3) for text in texts]
    near = [row for row in range(1000) if _jaccard(texts[row], texts[1000 + row]) >= 0.8]
    assert len(near) > 700 and _jaccard(texts[0], texts[1]) < 0.8
    label = _labels(texts, 0.8)
    assert sum(label[row] == label[1000 + row] for row in near) >= 0.97 * len(near)


def test_the_order_of_the_texts_does_not_matter() -> None:
    draw = random.Random(6)
    texts = list(dict.fromkeys(_families(draw, 120)))

    def groups(some: Sequence[str]) -> set[frozenset[str]]:
        label = _labels(some, 0.8).tolist()
        return {frozenset(text for text, other in zip(some, label, strict=True) if other == one) for one in set(label)}

    assert groups(texts) == groups(texts[::-1]) == groups(draw.sample(texts, len(texts)))
    assert any(len(group) > 2 for group in groups(texts))


def test_near_pairs_hold_runs_together() -> None:
    """Each row of a run with the one before it and with the first; rows of other values are never compared."""
    signatures = np.zeros((9, duplicates.PERMUTATIONS), np.uint8)
    signatures[7] = 1
    rows = np.array([1, 3, 4, 6, 7, 8])
    first, second, compared = duplicates.near_pairs(np.array([5, 9, 5, 5, 9, 5], np.uint32), rows, signatures, 0.8)
    assert {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)} == {
        frozenset(pair) for pair in ((1, 4), (4, 6), (6, 8), (1, 6), (1, 8))
    }, "3 and 7 share a value, but not their signatures"
    assert compared == 6
    none = duplicates.near_pairs(np.zeros(0, np.uint32), np.zeros(0, np.int64), signatures, 0.8)
    assert (len(none[0]), len(none[1]), none[2]) == (0, 0, 0)


def _union_find(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The smallest member of each row's group."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(row) for row in range(count)]


@given(st.integers(1, 25).flatmap(lambda count: st.tuples(st.just(count), st.lists(st.tuples(*[st.integers(0, count - 1)] * 2), max_size=30))))
@ours
def test_components_are_those_of_a_union_find(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = case
    first, second = (np.array([pair[end] for pair in pairs], np.int64) for end in (0, 1))
    assert duplicates.components(count, first, second).tolist() == _union_find(count, pairs)
    assert duplicates.components(count, second[::-1], first[::-1]).tolist() == _union_find(count, pairs)


@given(st.lists(st.integers(0, 6), max_size=20))
@ours
def test_smallest_is_the_first_row_of_a_label(labels: list[int]) -> None:
    found = duplicates.smallest(np.array(labels, np.int64))
    assert found.dtype == np.int64 and found.tolist() == [labels.index(label) for label in labels]
