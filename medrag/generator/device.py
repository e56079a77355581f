"""Which kind of device sizes and kernels are chosen for: the one a tensor is on, unless memory is planned for another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_PLANNED: ContextVar[str] = ContextVar("planned", default="")


def kind_of(tensor: Tensor) -> str:
    """``cpu`` or ``cuda``."""
    return _PLANNED.get() or tensor.device.type


@contextmanager
def planned_for(device: str) -> Iterator[None]:
    """Within, everything is laid out as on this kind of device wherever tensors are: not even fake ones can be on a card where torch has none."""
    before = _PLANNED.set(device)
    try:
        yield
    finally:
        _PLANNED.reset(before)
