"""Gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): the vectors of a batch of
any size with the activations of one chunk of it at a time.

A chunk that does not fit beside the others is encoded under a checkpoint: only its vectors stay, and the backward pass encodes it again, with
the same draws of dropout, when it comes to it. So there is one forward pass, one backward pass and one step, as DeepSpeed wants them. Two
public attempts fail because they call ``backward`` once a chunk: ZeRO reduces a parameter's gradient at the end of each such call and refuses
a second ("Gradient computed twice for this partition", sentence-transformers 3173). GradCache's own remedy, ``no_sync`` around all calls but
the last, is for DistributedDataParallel alone, and ZeRO 2 refuses it (tevatron 206).

Shapes: N texts, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PADDING_TOKENS = 512
"""padding that a chunk may hold: about what starting another one costs in time"""


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be held at once; 0: any number."""

    texts: int = 0
    tokens: int = 0
    """padding included"""

    def allows(self, texts: int, tokens: int) -> bool:
        return not 0 < self.texts < texts and not 0 < self.tokens < tokens


def cut(lengths: Sequence[int], limit: Limit, padding_tokens: int = PADDING_TOKENS) -> list[list[int]]:
    """Row numbers of texts of these lengths in chunks of like length, the longest texts last.

    A chunk keeps within ``limit`` (a text that is beyond it alone makes a chunk of its own) and has at most ``padding_tokens`` of padding.
    """
    chunks: list[list[int]] = []
    longest = held = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        size = len(chunks[-1]) + 1 if chunks else 0
        if not chunks or not limit.allows(size, size * longest) or size * longest - held - lengths[row] > padding_tokens:
            chunks.append([])
            longest, held = lengths[row], 0
        chunks[-1].append(row)
        held += lengths[row]
    return chunks[::-1]


def encode(inputs: Sequence[tuple[nn.Module, Tensor, Tensor]], limit: Limit) -> list[Tensor]:
    """Vectors (N, D) for each ``(encoder, ids_NL, mask_NL)``, with at most ``limit`` of all the texts' activations held at once.

    The chunks at the end that fit into the limit together are not encoded twice: theirs are the first activations that the backward pass asks
    for, and it has let them go when it comes to the others.
    """
    lengths = [mask_NL.sum(1).tolist() for _, _, mask_NL in inputs]
    # an encoder that says it is light holds next to nothing for the backward pass, while each more call costs it a gradient of its whole table
    whole = [getattr(encoder, "light", False) for encoder, _, _ in inputs]
    parts = [[list(range(len(rows_of)))] if light else cut(rows_of, limit) for rows_of, light in zip(lengths, whole, strict=True)]
    chunks = [(number, rows) for number, rows_of in enumerate(parts) for rows in rows_of]
    texts = [len(rows) for _, rows in chunks]
    tokens = [len(rows) * max(lengths[number][row] for row in rows) for number, rows in chunks]
    first_kept = next((place for place in range(len(chunks)) if limit.allows(sum(texts[place:]), sum(tokens[place:]))), len(chunks) - 1)
    found: list[list[Tensor]] = [[] for _ in inputs]
    order: list[list[int]] = [[] for _ in inputs]
    for place, (number, rows) in enumerate(chunks):
        encoder, ids_NL, mask_NL = inputs[number]
        longest = max(lengths[number][row] for row in rows)
        some = torch.tensor(rows, device=ids_NL.device)
        ids, mask = ids_NL[some, :longest], mask_NL[some, :longest]
        twice = place < first_kept and not whole[number] and torch.is_grad_enabled()
        x = checkpoint(encoder, ids, mask, use_reentrant=False, preserve_rng_state=True) if twice else encoder(ids, mask)
        found[number].append(x)
        order[number] += rows
    return [torch.cat(some)[torch.tensor(rows, device=some[0].device).argsort()] for some, rows in zip(found, order, strict=True)]
