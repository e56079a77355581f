"""Linear maps on a CPU in 8 bits.

Shapes: T input vectors, D width of the output, I width of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer on a CPU with weights and inputs in 8 bits, summed in 32.

    Each row of the weight has a scale, and so has each input vector (found as it comes): what stands beside a text changes nothing.
    The layer-wise scheme is that of LLM.int8() (Dettmers et al. 2022, equation 3) without its outliers.
    """

    def __init__(self, weight_DI: Tensor, bias_D: Tensor | None = None) -> None:
        super().__init__()
        weight_DI = weight_DI.detach().float()
        # another CPU adds two products in 16 bits first, which hold 2 * 255 * 63 but not twice that
        levels = 127 if sums_bytes() else 63
        self.scale_D = weight_DI.abs().amax(1).clamp(min=1e-8) / levels
        self.whole_ID = (weight_DI / self.scale_D.unsqueeze(1)).round().to(torch.int8).t()
        self.bias_D = None if bias_D is None else bias_D.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        row_TI = x.flatten(0, -2)
        scale_T1 = row_TI.abs().amax(1, keepdim=True).clamp_(min=1e-8) / 127
        whole_TI = (row_TI * scale_T1.reciprocal()).round_().to(torch.int8)
        y_TD = torch._int_mm(whole_TI, self.whole_ID).float().mul_(scale_T1)
        y_TD = y_TD.mul_(self.scale_D) if self.bias_D is None else torch.addcmul(self.bias_D, y_TD, self.scale_D)
        return y_TD.view(*x.shape[:-1], len(self.scale_D))


def lower(module: nn.Module) -> None:
    """Put an ``Int8Linear`` in the place of every linear layer within."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear):
                setattr(part, name, Int8Linear(child.weight, child.bias))


def sums_bytes() -> bool:
    """Whether this CPU adds products of 8 bits straight into 32 (VNNI): four times as many at once as in fp32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_vnni") or found.get("avx_vnni"))
