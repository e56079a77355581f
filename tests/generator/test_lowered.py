"""A generator in lower precision: near fp32, token by token and in the answers; what is scored whole stays exact under int8."""

from __future__ import annotations

import pytest
import torch
from conftest import Tiny
from torch import Tensor, nn

from medrag import generator, responses
from medrag.generator import Generator
from medrag.generator.quantized import PRECISIONS, lower
from medrag.quantized import Int8Linear


def steps(made: Generator, ids_NL: Tensor, mask_NL: Tensor, count: int = 4) -> Tensor:
    """Log-probabilities (count, N, B, V) along one and the same path, beams changing places on it."""
    with torch.no_grad():
        stepper = made.stepper(made.encode(ids_NL, mask_NL), mask_NL, beams=2)
        token_NB, found = torch.zeros(len(ids_NL), 2, dtype=torch.long), []
        for number in range(count):
            found.append(stepper.step(token_NB))
            stepper.reorder(torch.tensor([[1, 0]]).expand(len(ids_NL), 2))
            token_NB = torch.tensor([[400 + number, 410 + number]]).expand(len(ids_NL), 2)
    return torch.stack(found)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_log_probabilities_are_near_those_of_fp32(tiny: Tiny, precision: str) -> None:
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:5], 40)
    made = tiny.generator()
    exact, target_NT = steps(made, ids_NL, mask_NL), ids_NL[:, :6]
    with torch.no_grad():
        state_NLD = made.encode(ids_NL, mask_NL)
        whole_NT = made.decode(state_NLD, mask_NL, target_NT)
    lower(made, precision)
    near = steps(made, ids_NL, mask_NL)
    assert near.dtype == torch.float32
    assert 1e-5 < (near - exact).abs().max() < 0.15, "it is another precision, and not another function"
    assert (near - exact).abs().mean() < 0.02
    torch.testing.assert_close(near.exp().sum(-1), torch.ones(near.shape[:-1]), atol=1e-4, rtol=0)
    if precision == "int8":
        with torch.no_grad():
            torch.testing.assert_close(made.decode(state_NLD, mask_NL, target_NT), whole_NT, rtol=0, atol=0)


def test_every_linear_map_of_a_step_is_in_8_bits(tiny: Tiny) -> None:
    made = tiny.generator()
    lower(made, "int8")
    assert made.joined is not None
    maps = [getattr(layer, name) for layer in made.joined.layers for name in layer.__slots__]
    assert len(maps) == 2 * 7
    assert {type(each) for each in [*maps, made.joined.head]} == {Int8Linear}
    assert not [module for module in made.network.encoder.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_fp32_is_untouched(tiny: Tiny, precision: str) -> None:
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:3], 40)
    made = tiny.generator()
    exact = steps(made, ids_NL, mask_NL)
    lower(made, precision)
    torch.testing.assert_close(steps(made, ids_NL, mask_NL), exact, rtol=0, atol=0)


def test_what_cannot_be_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"answer\.precision='int4'; allowed: auto, fp32, bf16, int8"):
        lower(tiny.generator(), "int4")
    with pytest.raises(ValueError, match=r"answer\.precision='half'; allowed"):
        responses.check(responses.Config(precision="half"))
    for precision in PRECISIONS:
        responses.check(responses.Config(precision=precision))
    shape = generator.Config(width=32, head_width=8, heads=4, layers=1, feed_forward=48)
    with torch.device("meta"):
        elsewhere = generator.build(shape, tiny.sentencepiece)
    with pytest.raises(ValueError, match=r"answer\.precision=int8 runs on a CPU only"):
        lower(elsewhere, "int8")
