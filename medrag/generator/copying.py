"""Random weights that copy from the source before they have learned anything.

A network learns late, after thousands of steps, to find the place in its source where the words it has just written stand, and to go on as the
source does there (Olsson et al. 2022, "In-context Learning and Induction Heads": one head looks at the token before, another finds the token
that followed). Both heads can be written down at the start, and are then trained like all others. Shapes: D width, d = width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medrag.generator.attention import relative_bucket
from medrag.generator.network import T5

FOUND = 4.0
"""times sqrt(d): score of a place whose token before is the token written last"""
COPIED = 4.0
"""weight of the token copied beside what the residual stream holds"""
BEFORE = 8.0
"""bias of the token before over all others"""


@torch.no_grad()
def start_copying(network: T5) -> None:
    """Make the first head of each attention over the source one that copies, out of random bases drawn by torch's generator.

    - In the encoder's first layer the first head looks at the token before (the bias of that distance), and writes it into a subspace of its own.
    - In each layer of the decoder the first head asks that subspace for the token written last, and passes on the token that stands there.
    - The head over the vocabulary starts as the embedding, so that a token passed on is the likeliest.
    """
    shape = network.shape
    d = shape.head_width
    seen_Dd, before_Dd = _basis(shape.width, d), _basis(shape.width, d)
    own = network.encoder.blocks[0].own.SelfAttention
    bucket = int(relative_bucket(torch.tensor([-1]), True, shape.buckets, shape.distance_tokens))
    own.relative_attention_bias.weight[:, 0] = 0.0
    own.relative_attention_bias.weight[bucket, 0] = BEFORE
    own.q.weight[:d] *= 0.1
    own.v.weight[:d] = seen_Dd.T
    own.o.weight[:, :d] = before_Dd
    for block in network.decoder.blocks:
        cross, passed_Dd = block.cross.EncDecAttention, _basis(shape.width, d)
        cross.q.weight[:d] = FOUND * seen_Dd.T / d**0.5
        cross.k.weight[:d] = before_Dd.T
        cross.v.weight[:d] = passed_Dd.T
        cross.o.weight[:, :d] = COPIED * passed_Dd
    network.lm_head.weight.copy_(network.shared.weight * shape.width**-0.5)


def _basis(width: int, head_width: int) -> Tensor:
    """Orthonormal columns (D, d)."""
    basis_Dd: Tensor = torch.linalg.qr(torch.randn(width, head_width))[0]
    return basis_Dd
