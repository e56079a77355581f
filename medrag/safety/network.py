"""A small convolution over the characters of a question, in numpy: sees what stands next to what, where the linear model only counts.

Vectors of characters, three widths of windows, the strongest and the mean answer of each filter, one weight for each of these.
``tests/benchmarks/emergency_network.py`` trains it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTHS = (2, 3, 5)
UNKNOWN = 1
"""row of a character that was not learned; row 0 is what stands before and after a text"""
_READ_MAX = 200


@dataclass(frozen=True, slots=True)
class Network:
    """Trained weights."""

    row: dict[str, int]
    """character -> row"""
    vectors_VD: NDArray[np.float32]
    filters: tuple[NDArray[np.float32], ...]
    """for each of ``WIDTHS`` (width * D, F)"""
    biases: NDArray[np.float32]
    """(widths, F)"""
    out: NDArray[np.float32]
    """(widths * 2 * F,)"""
    bias: float

    def score(self, classed: str) -> float:
        """Log odds of an emergency, of a text that went through ``classifier.classed``."""
        row = self.row
        ids = [row.get(letter, UNKNOWN) for letter in classed[:_READ_MAX]]
        length = len(ids)
        if not length:
            return 0.0
        edge = max(WIDTHS) // 2
        padded_LD = self.vectors_VD[[0] * edge + ids + [0] * edge]
        answers = []
        for width, filters, bias in zip(WIDTHS, self.filters, self.biases, strict=True):
            start = edge - width // 2
            windows = np.concatenate([padded_LD[start + at : start + at + length] for at in range(width)], axis=1)
            heard_LF = np.maximum(windows @ filters + bias, 0)
            answers += [heard_LF.max(0), heard_LF.sum(0) * (length**-0.5 / 3)]
        return float(np.concatenate(answers) @ self.out) + self.bias
