"""Linear maps in 8 bits: against the same product in 64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medrag.quantized import Int8Linear, lower, sums_bytes


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bias", [True, False])
def test_integer_sums_overflow_nowhere(bias: bool, sign: int, vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest inputs and weights there can be, and random ones."""
    if vnni and not sums_bytes():
        pytest.skip("this CPU has no VNNI")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": vnni})
    linear = nn.Linear(256, 40, bias=bias)
    with torch.no_grad():
        linear.weight[:2] = sign
    made = Int8Linear(linear.weight, linear.bias)
    x = torch.cat([torch.ones(1, 256), torch.linspace(-1, 1, 256).expand(1, -1), torch.randn(7, 256)])
    scale_T1 = x.abs().amax(1, keepdim=True) / 127
    exact = (x / scale_T1).round().long() @ made.whole_ID.long() * scale_T1 * made.scale_D + (linear.bias if bias else 0)
    torch.testing.assert_close(made(x), exact, rtol=1e-5, atol=1e-5)
    assert (made(x) - linear(x)).abs().max() < 0.02 * linear(x).abs().max(), "and it is the layer that it was made from"
    torch.testing.assert_close(made(x.view(3, 3, 256)).view(9, 40), made(x), rtol=0, atol=0)


def test_every_linear_layer_within_is_replaced() -> None:
    whole = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 4, bias=False), nn.GELU()), nn.LayerNorm(4))
    expected = whole(x := torch.randn(3, 8))
    lower(whole)
    assert [type(module) for module in whole.modules() if not isinstance(module, nn.Sequential)] == [Int8Linear, Int8Linear, nn.GELU, nn.LayerNorm]
    torch.testing.assert_close(whole(x), expected, atol=0.15, rtol=0)
