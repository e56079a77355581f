"""How long a step takes: what its operations compute and move, against what a device computes and moves in a second (Williams et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

NOTHING_DONE = frozenset({"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "_local_scalar_dense"})
"""calls that touch no element, beside views"""
OVERWRITTEN = frozenset({"zero_", "fill_", "copy_", "bernoulli_", "uniform_", "normal_", "random_", "exponential_"})
"""calls that write their first tensor without reading it"""
PICKED = frozenset({"embedding", "gather", "index", "index_select", "scatter_add_", "index_add_", "index_put_", "_index_put_impl_"})
"""calls that touch no more of their first tensor than the others tell them to"""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: what it computes and what it reads and writes."""

    name: str
    flops: int
    """of matrix products; what is done to each element by itself takes less time than moving it"""
    bytes: int


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every call that computes or moves something while this is entered, real or under FakeTensorMode (enter that first)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if func.namespace == "aten" and not func.is_view and name not in NOTHING_DONE and (moved := _bytes(name, args, kwargs or {}, result)):
            self.operations.append(Operation(name, _flops(name, args, result), moved))
        return result

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)

    @property
    def bytes(self) -> int:
        return sum(operation.bytes for operation in self.operations)


def _flops(name: str, args: Any, result: Any) -> int:
    if name.startswith("_scaled_dot_product_flash_attention_for_cpu"):  # torch has formulas for the others only
        shapes = [value.shape for value in args if isinstance(value, Tensor)]
        count = sdpa_backward_flop_count(*shapes[:4]) if name.endswith("backward") else sdpa_flop_count(*shapes[:3])  # type: ignore[no-untyped-call]
        return int(count)
    formula = flop_registry.get(getattr(torch.ops.aten, name.removesuffix("_"), None))
    return 0 if formula is None else int(formula(*(value for value in args if not isinstance(value, torch.dtype)), out_val=result))


def _bytes(name: str, args: Any, kwargs: Any, result: Any) -> int:
    """Read and written once each; what is expanded or picked from, no more than there is or than is picked."""
    read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    written = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    if name in PICKED:
        others = sum(map(_size, read[1:])) + sum(_size(value) for value in written if value is not read[0])
        return 2 * others
    if name in OVERWRITTEN:
        read = read[1:]
    return sum(map(_size, read)) + sum(map(_size, written))


def _size(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
