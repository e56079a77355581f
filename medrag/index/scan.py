"""Exact proposals: by Faiss on the CPU, by torch on a device that Faiss does not serve (a GTX 1080 Ti).

Shapes: B questions, C candidates, N rows of a chunk, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medrag.index.vectors import Vectors

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BLOCK_ROWS = 65_536
"""of the shards at once"""
QUESTIONS = 1024
"""at once: with ``BLOCK_ROWS`` 256 MiB of scores"""
SHARE = 0.8
"""of the device's free memory that vectors may take; the rest is for scores and the top-k"""


def merge(score_BC: Floats, row_BC: Rows, more_BN: Floats, names_BN: Rows, want: int) -> tuple[Floats, Rows]:
    """The ``want`` best of two lists, best first; among equals those of the first list, then in the order given."""
    score_BM, row_BM = np.concatenate([score_BC, more_BN], axis=1), np.concatenate([row_BC, names_BN], axis=1)
    order_BC = np.argsort(-score_BM, axis=1, kind="stable")[:, :want]
    return np.take_along_axis(score_BM, order_BC, axis=1), np.take_along_axis(row_BM, order_BC, axis=1)


@dataclass(frozen=True, slots=True)
class Scan:
    """Exact proposals by the CPU, straight from the shards."""

    vectors: Vectors

    def propose(self, q_BD: Floats, want: int, skip: Rows) -> tuple[Floats, Rows]:
        """``(guess_BC, row_BC)``: the ``want`` best rows but for ``skip`` (sorted), best first, scores as exact as BLAS."""
        guess_BC, row_BC = np.zeros((len(q_BD), 0), np.float32), np.zeros((len(q_BD), 0), np.int64)
        for start, x_ND in self.vectors.blocks(BLOCK_ROWS):
            gone = skip[np.searchsorted(skip, start) : np.searchsorted(skip, start + len(x_ND))] - start
            kept = np.ones(len(x_ND), bool)
            kept[gone] = False
            if len(gone) > want:  # a copy without them is cheaper than that many more neighbours
                names = start + np.flatnonzero(kept)
                x_ND, kept = x_ND[kept], np.ones(len(names), bool)
            else:
                names = np.arange(start, start + len(x_ND))
            if not len(x_ND):
                continue
            near_BC, at_BC = faiss.knn(q_BD, x_ND, min(len(x_ND), want + len(x_ND) - int(kept.sum())), metric=faiss.METRIC_INNER_PRODUCT)
            near_BC[(at_BC < 0) | ~kept[at_BC]] = -np.inf
            guess_BC, row_BC = merge(guess_BC, row_BC, near_BC, names[at_BC], want)
        return guess_BC, row_BC


class TorchScan:
    """The same by matrix products and top-k over blocks kept on a device; those that do not fit are sent to it anew in each search."""

    def __init__(self, vectors: Vectors, device: torch.device, memory_bytes: int | None = None) -> None:
        """``memory_bytes``: what vectors may take on the device; None: ``SHARE`` of what is free. They are kept in fp32 where all fit, else in fp16.

        fp16 halves the memory alone: products are taken in fp32, since a card like the 1080 Ti has no quick fp16 arithmetic.
        """
        if memory_bytes is None:
            memory_bytes = int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 4 * len(vectors) * vectors.width
        self._vectors, self._device = vectors, device
        self._kept: list[tuple[int, Tensor]] = []
        self.resident = 0
        """rows, from row 0 on, that the device keeps"""
        self.dtype = torch.float32 if 4 * len(vectors) * vectors.width <= memory_bytes else torch.float16
        room = memory_bytes // (vectors.width * self.dtype.itemsize)
        for start, x_ND in vectors.blocks(BLOCK_ROWS):
            chunk_ND = torch.tensor(x_ND).to(self.dtype)
            if len(x_ND) > room or not bool(chunk_ND.isfinite().all()):  # a component beyond 65,504 is no fp16 number
                break
            self._kept.append((start, chunk_ND.to(device)))
            self.resident, room = start + len(x_ND), room - len(x_ND)

    def propose(self, q_BD: Floats, want: int, skip: Rows) -> tuple[Floats, Rows]:
        """``(guess_BC, row_BC)``: the ``want`` best rows but for ``skip`` (sorted), best first, scores as exact as the number format."""
        found = [self._some(torch.tensor(q_BD[start : start + QUESTIONS]).to(self._device), want, skip) for start in range(0, len(q_BD), QUESTIONS)]
        return np.concatenate([guess_BC for guess_BC, _ in found]), np.concatenate([row_BC for _, row_BC in found])

    def _some(self, q_BD: Tensor, want: int, skip: Rows) -> tuple[Floats, Rows]:
        guess_BC = torch.empty(len(q_BD), 0, device=self._device)
        row_BC = torch.empty(len(q_BD), 0, dtype=torch.int64, device=self._device)
        sent = ((start, torch.tensor(x_ND).to(self._device)) for start, x_ND in self._vectors.blocks(BLOCK_ROWS, self.resident))
        for chunks in (self._kept, sent):
            for start, chunk_ND in chunks:
                score_BN = q_BD @ chunk_ND.float().T
                gone = skip[np.searchsorted(skip, start) : np.searchsorted(skip, start + len(chunk_ND))] - start
                score_BN[:, torch.from_numpy(gone).to(self._device)] = -torch.inf
                near_BC, at_BC = score_BN.topk(min(want, len(chunk_ND)), dim=1)
                guess_BC, row_BC = torch.cat([guess_BC, near_BC], dim=1), torch.cat([row_BC, at_BC + start], dim=1)
                guess_BC, order_BC = guess_BC.topk(min(want, guess_BC.shape[1]), dim=1)
                row_BC = row_BC.gather(1, order_BC)
        return guess_BC.cpu().numpy(), row_BC.cpu().numpy()
