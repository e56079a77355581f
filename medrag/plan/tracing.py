"""What a step will hold, part by part, before anything is loaded.

A method's own forward and backward pass is run with fake tensors, which have a shape and no bytes, and every storage is counted from when it is
made to when it is let go. Nothing is estimated: what the code allocates is what is counted, checkpoints and chunks included.

Shapes: N rows, L places, D width.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from medrag import methods
from medrag.encoder import Encoder
from medrag.generator import head
from medrag.generator.device import planned_for
from medrag.generator.network import T5
from medrag.methods import Batch, Method

WEIGHTS, GRADIENTS, OTHER = "weights", "gradients", "other activations"
LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class Traced:
    """What is held at the moment of a forward and backward pass when most is held."""

    parts: dict[str, int]
    """bytes by who made them"""
    gradient_bytes: int
    """of all gradients, once the backward pass is over"""

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


def trace(
    method: Method,
    batch: Batch,
    device: str,
    accumulated: bool = False,
    work: TorchDispatchMode | None = None,
    passed_on: Callable[[nn.Parameter], None] | None = None,
) -> Traced:
    """Forward and backward pass of a batch by a method made under ``FakeTensorMode``, laid out as on a ``device`` (cpu, cuda).

    ``accumulated``: gradients are there from the micro batch before; ``work``: another mode that sees every operation; ``passed_on``: called
    with each parameter as soon as its gradient is whole, and may take it away, as ZeRO does.
    """
    fake: Any = next(method.parameters()).fake_mode  # type: ignore[attr-defined]
    held = Held(_owners(method))
    with ExitStack() as modes:
        modes.enter_context(fake)
        held.add((*method.parameters(), *method.buffers()), WEIGHTS)
        batch = Batch(batch.examples, {name: fake.from_tensor(tensor) for name, tensor in batch.tensors.items()}, batch.weight)
        held.add(batch.tensors.values(), OTHER)
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        if accumulated:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
                held.add([parameter.grad], GRADIENTS)
        handles = [parameter.register_post_accumulate_grad_hook(held.gradient(passed_on)) for parameter in trained]  # type: ignore[no-untyped-call]
        for mode in (held, *([work] if work else []), Within(device, trained), NothingPadded(), planned_for(device), Stand(device)):
            modes.enter_context(mode)
        loss = method(batch)
        # not ``loss.backward()``, within which a mode over functions stands aside, so that what is recomputed would not be laid out as before
        _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
        for handle in handles:
            handle.remove()
    gradient_bytes = sum(parameter.grad.nbytes for parameter in trained if parameter.grad is not None)
    for parameter in trained:
        parameter.grad = None
    return Traced(held.at_peak(), gradient_bytes)


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes held by the storages made under it, by the part of the model that made them.

    In the forward pass a part is known by the Python function that is running, in the backward pass by the number of the node of autograd's
    graph, which its forward pass drew. (torch's own MemTracker refuses modules that are called twice, as an embedding is.)
    """

    def __init__(self, owners: dict[CodeType, str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners = owners or {}
        self.part: list[str] = []
        """of each storage"""
        self.moves: list[tuple[int, int]] = []
        """storage, and the bytes that it takes or gives back"""
        self._known: dict[int, tuple[int, Any]] = {}
        self._drawn: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return made
        part = self._current()
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._hold(tensor, part)
        return made

    def add(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count what is there already."""
        for tensor in tensors:
            self._hold(tensor, part)

    def gradient(self, passed_on: Callable[[nn.Parameter], None] | None) -> Callable[[Tensor], None]:
        """A hook for when a parameter's gradient is whole: it has been one ever since it was made."""

        def whole(parameter: Tensor) -> None:
            assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
            number, _ = self._known[id(parameter.grad.untyped_storage())]
            self.part[number] = GRADIENTS
            if passed_on is not None:
                passed_on(parameter)

        return whole

    @property
    def most_bytes(self) -> int:
        """Held at once."""
        return sum(self.at_peak().values())

    def at_peak(self) -> dict[str, int]:
        """Bytes by part when most was held."""
        sizes = np.cumsum([0, *(size for _, size in self.moves)])
        parts: dict[str, int] = {}
        for number, size in self.moves[: int(sizes.argmax())]:
            parts[self.part[number]] = parts.get(self.part[number], 0) + size
        return {name: size for name, size in parts.items() if size}

    def _current(self) -> str:
        node = torch._C._current_autograd_node()
        part = self._by_function()
        if node is None:
            # a node is numbered before its operation runs; what draws no node must not rename the one before
            self._drawn.setdefault(torch.autograd._get_sequence_nr() - 1, part or OTHER)
        elif not part:
            part = GRADIENTS if node.name() == "torch::autograd::AccumulateGrad" else self._drawn.get(node._sequence_nr(), OTHER)
        return part or OTHER

    def _by_function(self) -> str | None:
        frame = sys._getframe(2)
        while frame is not None:
            if found := self.owners.get(frame.f_code):
                return found
            frame = frame.f_back  # type: ignore[assignment]
        return None

    def _hold(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        name, size = id(storage), storage.nbytes()
        if name not in self._known:
            number = len(self.part)
            self._known[name] = number, weakref.ref(storage, lambda _: self._drop(name, number, size))
            self.part.append(part)
            self.moves.append((number, size))

    def _drop(self, name: int, number: int, size: int) -> None:
        del self._known[name]
        self.moves.append((number, -size))


class NothingPadded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what fake tensors cannot: every mask is true everywhere, every seed 0.

    What would have been found is allocated, so that it is counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = WeakTensorKeyDictionary()
        """how many marks of a mask each element stands for"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or self.counts.get(args[0], 0)  # type: ignore[no-untyped-call]
        if func is aten.nonzero.default:
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.long)
        if func is aten.index.Tensor:
            args = (args[0], [part for index in args[1] for part in self._places(index)])
        made = func(*args, **(kwargs or {}))
        if func in (aten.sum.default, aten.sum.dim_IntList) and args[0].dtype == torch.bool:
            self.counts[made] = args[0].numel() // max(made.numel(), 1)
        elif func in (aten.max.default, aten.unbind.int, aten._to_copy.default) and args[0] in self.counts:
            for tensor in tree_leaves(made):
                self.counts[tensor] = self.counts[args[0]]
        return made

    @staticmethod
    def _places(index: Tensor | None) -> list[Tensor | None]:
        if index is None or index.dtype != torch.bool:
            return [index]
        return list(torch.empty(index.ndim, index.numel(), dtype=torch.long).unbind(0))


class Within(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Allocates what kernels of a device (cpu, cuda) allocate beside their results, for as long as they run.

    And sums the gradients of a parameter that is used twice in place, as autograd does with all but fake tensors.
    """

    def __init__(self, device: str, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = device == "cuda"
        self.shapes = {parameter.shape for parameter in parameters}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, beside = torch.ops.aten, None
        if func is aten.logsumexp.default:
            beside = torch.empty_like(args[0])
        elif func is aten.bernoulli_.float and not self.card:  # MKL draws integers
            beside = torch.empty_like(args[0], dtype=torch.int32)
        elif (
            func is aten.add.Tensor and args[0].shape in self.shapes and torch._C._current_autograd_node() is not None and not torch.is_grad_enabled()
        ):
            return args[0].add_(args[1])
        made = func(*args, **(kwargs or {}))
        del beside
        return made


class Stand(TorchFunctionMode):
    """Stands in for what a fake tensor on a CPU has not: values for numpy, all zero, and the kernels of a card."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.card = device == "cuda"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.numpy:
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        if self.card and func in _CARD:
            return _CARD[func](*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A card keeps which elements stay in a byte each; a CPU keeps a factor."""
    return torch.native_dropout(x, p, training)[0] if training and p else x


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """Memory-efficient attention, which every card has: kept are what goes in and out, and a normaliser for each row."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype)
    attend = torch.ops.aten._scaled_dot_product_efficient_attention.default
    out: Tensor = attend(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return out


class _Norm(torch.autograd.Function):
    """A card's fused norm: kept are what goes in and one number for each row."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight, torch.empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = context.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _norm(x: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:
    normed: Tensor = _Norm.apply(x, weight)  # type: ignore[no-untyped-call]
    return normed


_CARD: dict[Any, Callable[..., Tensor]] = {F.dropout: _dropout, F.scaled_dot_product_attention: _attention, F.rms_norm: _norm}


def _owners(method: Method) -> dict[CodeType, str]:
    """The functions whose tensors belong to a part; where one calls another, the inner one counts."""
    found: dict[Callable[..., Any], str] = {
        Encoder.forward: "encoder",
        T5.encode: "generator encoder",
        T5.decode: "decoder",
        T5.first_attention: "decoder",
        head.target_logp: LOGITS,
    }
    if methods.name_of(method) == "mlm":  # its head is its own
        found[type(method).forward] = LOGITS
    for module in method.modules():
        if isinstance(module, Encoder) and module.albert is not None:
            found[type(module.albert).forward] = "encoder"
    return {inspect.unwrap(function).__code__: part for function, part in found.items()}
