"""Log-probabilities of target tokens from the decoder's states.

Shapes: M tokens, D width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def target_logp(hidden_MD: Tensor, weight_VD: Tensor, target_M: Tensor, pad: int) -> Tensor:
    """``log softmax_V(weight hidden)`` at each target (M,), fp32; zero where the target is padding."""
    logp_M = -F.cross_entropy(F.linear(hidden_MD, weight_VD).float(), target_M, reduction="none")
    return logp_M * (target_M != pad)
