"""Training of ``medrag.safety.network``, for ``emergencies.py``: vectors of characters from what stands near what in any text, then a few epochs.

Deterministic on one machine with one thread; another processor may round otherwise.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from torch import Tensor, nn
from torch.nn import functional

from medrag.safety.network import UNKNOWN, WIDTHS, Network

SIZE, FILTERS, EPOCHS, BATCH, RATE = 48, 48, 8, 48, 3e-3
READ = 130
"""characters of a question that are learned from"""


def vectors(texts: Sequence[str], row: dict[str, int]) -> NDArray[np.float32]:
    """Singular vectors of positive pointwise mutual information between characters up to four apart (Levy and Goldberg, 2014)."""
    pairs = collections.Counter[tuple[int, int]]()
    for text in texts:
        ids = [row.get(letter, UNKNOWN) for letter in text]
        for apart in (1, 2, 3, 4):
            for pair in zip(ids, ids[apart:], strict=False):
                pairs[pair] += 12 // apart
    at = np.array(list(pairs))
    size = max(row.values()) + 1
    counts = sparse.coo_matrix((np.array(list(pairs.values()), float) / 12, (at[:, 0], at[:, 1])), (size, size)).tocsr()
    counts = (counts + counts.T).tocoo()
    each = np.bincount(counts.row, counts.data, size) + 1e-9
    information = np.log(counts.data * each.sum() / (each[counts.row] * each[counts.col]))
    kept = information > 0
    left, strength, _ = svds(sparse.csr_matrix((information[kept], (counts.row[kept], counts.col[kept])), (size, size)), SIZE, v0=np.ones(size))
    found = left * np.sqrt(strength)
    found[0] = 0
    return np.asarray(found / found.std() * 0.3, np.float32)


class Convolution(nn.Module):
    """The trained form of ``Network``."""

    def __init__(self, start_VD: NDArray[np.float32]) -> None:
        super().__init__()
        self.vectors = nn.Embedding(len(start_VD), SIZE, padding_idx=0, _weight=torch.from_numpy(start_VD))
        self.filters = nn.ModuleList(nn.Conv1d(SIZE, FILTERS, width, padding=width // 2) for width in WIDTHS)
        self.out = nn.Linear(len(WIDTHS) * 2 * FILTERS, 1)

    def forward(self, ids_BL: Tensor) -> Tensor:
        inner = functional.dropout(self.vectors(ids_BL), 0.1, self.training).transpose(1, 2)
        if self.training:
            inner = inner * (torch.rand(inner.shape[0], 1, inner.shape[2]) > 0.12)
        there = (ids_BL > 0).float().unsqueeze(1)
        answers: list[Tensor] = []
        for filters in self.filters:
            heard = torch.relu(filters(inner))[..., : ids_BL.shape[1]] * there
            answers += [heard.amax(2), heard.sum(2) / there.sum(2).clamp(min=1) ** 0.5 / 3]
        scores: Tensor = self.out(functional.dropout(torch.cat(answers, 1), 0.4, self.training))
        return scores.squeeze(1)


def train(texts: Sequence[str], told: Sequence[bool], weights: Sequence[float], unlabelled: Sequence[str], seed: int = 0) -> Network:
    """Trained on classed texts; ``unlabelled`` ones only say which characters are used alike."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    cut = [text[:READ] for text in texts]
    counts = collections.Counter(letter for text in (*unlabelled, *cut) for letter in text)
    row = {letter: at + 2 for at, letter in enumerate(sorted(letter for letter, count in counts.items() if count > 2))}
    model = Convolution(vectors([*unlabelled, *cut], row))
    ids = [torch.tensor([row.get(letter, UNKNOWN) for letter in text] or [UNKNOWN]) for text in cut]
    wanted, worth = torch.tensor(told).float() * 0.96 + 0.02, torch.tensor(weights)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = EPOCHS * -(-len(ids) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        order = np.argsort(np.array([len(one) for one in ids]) + random.uniform(0, 12, len(ids)))
        batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        for place in random.permutation(len(batches)):
            rows = torch.from_numpy(batches[place])
            padded = nn.utils.rnn.pad_sequence([ids[at] for at in rows.tolist()], batch_first=True)
            losses = functional.binary_cross_entropy_with_logits(model(padded), wanted[rows], reduction="none")
            optimizer.zero_grad()
            torch.autograd.backward((losses * worth[rows]).mean())
            optimizer.step()
            schedule.step()
    return exported(model, row)


def exported(model: Convolution, row: dict[str, int]) -> Network:
    """In half precision, which is what is shipped."""

    def array(tensor: Tensor) -> NDArray[np.float32]:
        return tensor.detach().half().float().numpy()

    convolutions = [one for one in model.filters if isinstance(one, nn.Conv1d)]
    return Network(
        row,
        array(model.vectors.weight),
        tuple(array(one.weight.permute(2, 1, 0).reshape(-1, FILTERS)) for one in convolutions),
        np.stack([array(one.bias) for one in convolutions if one.bias is not None]),
        array(model.out.weight[0]),
        float(model.out.bias.detach()[0]),
    )
