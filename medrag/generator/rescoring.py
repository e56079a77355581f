"""What a text would be worth under other sources than the one it was written from.

Shapes: K sources, L source tokens, H texts, T target tokens, M tokens packed, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medrag.generator.head import target_logp
from medrag.generator.network import T5, Block, Rows


@torch.no_grad()
def across(network: T5, state_KLD: Tensor, mask_KL: Tensor, target_HT: Tensor, pad: int) -> Tensor:
    """Log-probability (K, H, T) of every text's tokens under every source: fp32, zero at padding.

    As ``Generator.decode`` of K x H rows, but a source is projected once and read by all texts at a time: to cross-attention, which knows no
    order, the H texts are one row.
    """
    sources, texts, length = len(state_KLD), *target_HT.shape
    before_HT = torch.cat([torch.full_like(target_HT[:, :1], pad), target_HT[:, :-1]], dim=1)
    kept_KHT = ((target_HT != pad).flip(1).cumsum(1).flip(1) > 0).expand(sources, -1, -1)
    apart, joined, source = Rows.of(kept_KHT.flatten(0, 1)), Rows.of(kept_KHT.flatten(1)), Rows.of(mask_KL)
    source_MD = source.pack(state_KLD)
    bias_HTT = network.decoder.bias(length)
    x_MD = network.shared(before_HT.expand(sources, -1, -1)[kept_KHT])
    for block in network.decoder.block:
        assert isinstance(block, Block)
        x_MD = block.layer[0](x_MD, apart, bias_HTT)
        x_MD = block.layer[1](x_MD, joined, source_MD, source)
        x_MD = block.layer[2](x_MD)
    logp_M = target_logp(network.decoder.final_layer_norm(x_MD), network.lm_head.weight, target_HT.expand(sources, -1, -1)[kept_KHT], pad)
    return torch.zeros((sources, texts, length), device=logp_M.device).masked_scatter(kept_KHT, logp_M)
