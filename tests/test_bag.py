"""The bag against units counted in plain Python, and as part of an encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medrag import encoder, weights
from medrag.bag import Bag
from medrag.encoding import Encoding
from medrag.vocabulary import Wordpiece

TOKENS = ["", "", "", "", "", "孕", "期", "孕期", "糖尿病", "b12", "可"]


def bag(width: int = 8, buckets: int = 1000, dropout: float = 0.0) -> Bag:
    torch.manual_seed(0)
    made = Bag(len(TOKENS), width, buckets, dropout)
    made.read(TOKENS)
    return made.eval()


def rows(made: Bag, ids: list[int]) -> list[int]:
    """Rows of a text's units, sorted, padding left out."""
    return sorted(row for row in made.units(torch.tensor([ids]))[0].tolist() if row)


@given(st.lists(st.integers(5, len(TOKENS) - 1), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_units_are_the_words_characters_and_pairs_of_the_text(ids: list[int]) -> None:
    """However a text is cut, its characters and pairs are those of the whole text; words of two characters and more come on top."""
    made = bag()
    text = "".join(TOKENS[number] for number in ids)
    single = {token: number for number, token in enumerate(TOKENS) if len(token) == 1}
    expected = len(text) + len(text) - 1 + sum(len(TOKENS[number]) > 1 for number in ids)
    assert len(rows(made, ids)) == expected
    if all(character in single for character in text):
        spelled = rows(made, [single[character] for character in text])
        word = [row for number in ids for row in made.unit_VU[number, :1].tolist() if row]
        assert rows(made, ids) == sorted(spelled + word)


def test_units_of_different_texts_differ() -> None:
    made = bag(buckets=100_000)
    seen = {tuple(rows(made, ids)) for ids in ([5], [6], [5, 6], [6, 5], [7], [8], [9], [10], [5, 10], [10, 5])}
    assert len(seen) == 10


def test_order_of_far_words_and_padding_change_nothing_special_tokens_carry_nothing() -> None:
    made = bag()
    one = made(torch.tensor([[2, 8, 3]]))
    assert torch.equal(one, made(torch.tensor([[2, 8, 3, 0, 0]])))
    assert torch.equal(one, made(torch.tensor([[8]])))
    assert torch.linalg.norm(one).item() == pytest.approx(1)
    assert torch.equal(made(torch.tensor([[2, 3]])), torch.zeros(1, 8))


def test_vector_is_the_weighted_sum_by_hand() -> None:
    made = bag()
    nn.init.normal_(made.weight.weight)
    found = made(torch.tensor([[5, 6]]))[0]
    total = sum(made.weight.weight[row] * made.vector.weight[row] for row in rows(made, [5, 6]))
    assert isinstance(total, torch.Tensor)
    assert torch.allclose(found, nn.functional.normalize(total, dim=0), atol=1e-6)


def test_dropout_leaves_units_out_in_training_only() -> None:
    made = bag(dropout=0.5)
    ids = torch.tensor([[5, 6, 8, 9]])
    assert torch.equal(made(ids), made(ids))
    made.train()
    assert not torch.equal(made(ids), made(ids))


@pytest.mark.parametrize(("change", "message"), [({"buckets": 1}, "bag_buckets=1"), ({"dropout": 1.0}, "bag_dropout=1.0")])
def test_values_out_of_range(change: dict[str, float], message: str) -> None:
    settings: dict[str, float] = {"buckets": 100, "dropout": 0.1} | change
    with pytest.raises(ValueError, match=message):
        Bag(10, 8, int(settings["buckets"]), settings["dropout"])


def config(**changes: object) -> encoder.Config:
    made = encoder.Config(embedding=16, width=32, layers=1, heads=4, feed_forward=48, dropout=0.0, similarity="cosine", bag=24, bag_buckets=500)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("layers", [0, 1])
def test_encoder_with_a_bag_is_described_saved_and_restored(tiny: Tiny, tmp_path: Path, layers: int) -> None:
    made = encoder.build(config(layers=layers), tiny.wordpiece).eval()
    assert made.width == 24 + 32 * layers
    weights.save(made, tmp_path / "w.safetensors")
    again = encoder.restore(made.describe()).eval()
    weights.load(again, tmp_path / "w.safetensors")
    ids_BL, mask_BL = tiny.wordpiece.batch(tiny.questions, 32)
    assert torch.equal(made(ids_BL, mask_BL), again(ids_BL, mask_BL))
    assert torch.allclose(torch.linalg.norm(made(ids_BL, mask_BL), dim=1), torch.tensor(0.05**-0.5))


def test_share_of_the_bag_is_that_of_the_squared_length(tiny: Tiny) -> None:
    made = encoder.build(config(bag_share=0.7, temperature=1.0), tiny.wordpiece).eval()
    x_BD = made(*tiny.wordpiece.batch(tiny.questions, 32))
    assert torch.allclose(x_BD[:, :24].square().sum(1), torch.tensor(0.7), atol=1e-5)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_encoding_takes_encoders_with_bags(tiny: Tiny, layers: int, precision: str) -> None:
    made = encoder.build(config(layers=layers), tiny.wordpiece).eval()
    found = torch.from_numpy(Encoding(made, tiny.wordpiece, 32, precision)(tiny.questions))
    with torch.no_grad():
        whole = made(*tiny.wordpiece.batch(tiny.questions, 32))
    assert torch.cosine_similarity(found, whole).min() > 0.995


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"bag": 0, "layers": 0}, "model.encoder.bag above 0"), ({"similarity": "dot"}, "needs cosine"), ({"bag_share": 1.0}, "bag_share=1.0")],
)
def test_encoder_refuses(tiny: Tiny, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.build(config(**changes), tiny.wordpiece)


def test_vocabulary_tells_what_its_tokens_stand_for(tiny: Tiny) -> None:
    texts = tiny.wordpiece.texts()
    assert len(texts) == tiny.wordpiece.size
    assert texts[0] == "" and "孕" in texts
    words = Wordpiece.build_words(tiny.texts() * 2, 500, tiny.segmenter)
    assert any(len(text) > 1 for text in words.texts())


def test_bf16_learns_in_the_direction_of_fp32() -> None:
    """As on CPUs and cards that train in it: the normalised sum is made in fp32 all the same."""
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        made = bag().to(dtype)
        x_BD = made(torch.tensor([[5, 6, 8, 0], [7, 10, 9, 5]]))
        assert x_BD.dtype == torch.float32
        (x_BD * torch.arange(8)).sum().backward()
        assert made.vector.weight.grad is not None
        gradients.append(made.vector.weight.grad.float().flatten())
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99
