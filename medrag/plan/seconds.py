"""How long a step takes: what its operations compute and move, against what a device computes and moves in a second (Williams et al. 2009).

Not counted are tokenising, looking passages up, validation and checkpoints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from medrag.hardware import Hardware, stage_run

NOTHING_DONE = frozenset({"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "_local_scalar_dense"})
"""calls that touch no element, beside views"""
OVERWRITTEN = frozenset({"zero_", "fill_", "copy_", "bernoulli_", "uniform_", "normal_", "random_", "exponential_"})
"""calls that write their first tensor without reading it"""
PICKED = frozenset({"embedding", "gather", "index", "index_select", "scatter_add_", "index_add_", "index_put_", "_index_put_impl_"})
"""calls that touch no more of their first tensor than the others tell them to"""
REACHED_FLOPS, REACHED_BYTES, LAUNCH_SECONDS = 0.5, 0.7, 8e-6
"""shares of what a card's maker states that matrices as narrow as these (192 to 2,048) and passes over memory are taken to reach, and what it costs
to start a call on a card: estimates that no card was measured for"""
ADAM_BYTES = 92
"""read and written by AdamW and the clipping before it, of each parameter in fp32: two passes of the norm, ten of the update"""
CAST_BYTES = 12
"""of each parameter in a half precision: its gradient to fp32 and the weight back"""
LINK_BYTES_A_SECOND = {"cuda": 10e9, "cpu": 1e9}
"""between devices: PCIe 3.0 with 16 lanes, as stated less a third; two processes on a CPU (gloo), measured for 128 MB"""
LEAST_TIMES = 10
"""that something is measured"""
HOST_BYTES_A_SECOND = 10e9
"""what the machine's memory gives an optimizer that is kept there: an estimate"""


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


@dataclass(frozen=True, slots=True)
class Speed:
    """Of a device."""

    flops_a_second: float
    """of matrix products"""
    bytes_a_second: float
    """read and written by everything else"""
    seconds_a_call: float
    """the least that a call takes"""
    source: str
    """where these come from, for a person"""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of a step, one after the other."""

    passes: float
    """forward and backward, all micro batches"""
    optimizer: float
    exchange: float
    """between the devices"""

    @property
    def step(self) -> float:
        return self.passes + self.optimizer + self.exchange


def estimate(work: Work, speed: Speed) -> float:
    """Seconds of all that was counted: each call takes as long as its matrix products, as its memory, or as a call takes at least."""
    by_bytes, by_flops = 1 / speed.bytes_a_second, 1 / speed.flops_a_second
    return sum(max(each.flops * by_flops, each.bytes * by_bytes, speed.seconds_a_call) for each in work.operations)


def seconds(work: Work, micro_batches: int, trained_parameters: int, hardware: Hardware, speed: Speed) -> Seconds:
    """Of a step, whose micro batches each take ``work``."""
    half = hardware.precision != "fp32"
    stage = stage_run(hardware)
    devices, width = hardware.devices, 2 if half else 4
    own = trained_parameters / (devices if stage else 1)
    moved = own * (ADAM_BYTES + CAST_BYTES * half)
    carried = own * 2 * width / LINK_BYTES_A_SECOND["cuda"]
    optimizer = moved / HOST_BYTES_A_SECOND + carried if hardware.offload else moved / speed.bytes_a_second
    # in rings: summing or gathering all of a tensor takes (n - 1) / n of it to each device and from it (Rajbhandari et al. 2020, section 7)
    rounds = {0: 2, 1: 2, 2: micro_batches + 1, 3: 3 * micro_batches}[stage]
    exchanged = rounds * (devices - 1) / devices * trained_parameters * width
    return Seconds(micro_batches * estimate(work, speed), optimizer, exchanged / LINK_BYTES_A_SECOND[hardware.device])


def speed_of(hardware: Hardware) -> Speed:
    """As the card's maker states, less what is not reached; of a CPU, as measured here. Raises ValueError where nothing is stated of a card."""
    if hardware.device == "cpu" and not (hardware.teraflops and hardware.gigabytes_a_second):
        return measured(hardware.precision, hardware.threads or max(1, len(os.sched_getaffinity(0)) // hardware.devices))
    for name in ("teraflops", "gigabytes_a_second"):
        if not getattr(hardware, name):
            raise ValueError(f"hardware.{name}=0; without it the time that a card takes cannot be told: say what its maker states")
    source = (
        f"{REACHED_FLOPS:.0%} of the {hardware.teraflops:g} teraflops and {REACHED_BYTES:.0%} of the {hardware.gigabytes_a_second:g} GB/s that the "
        "maker states, and 8 microseconds a call: an estimate, not measured on this card"
    )
    return Speed(REACHED_FLOPS * 1e12 * hardware.teraflops, REACHED_BYTES * 1e9 * hardware.gigabytes_a_second, LAUNCH_SECONDS, source)


def measured(precision: str, threads: int) -> Speed:
    """This CPU's, in about a second: products of the sizes that mT5-small has, elementwise passes over 8 MiB, a small network call by call."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    x_MD, w_DF, w_FD, passed_ND = (torch.randn(shape).to(kind) for shape in ((512, 512), (512, 1024), (1024, 512), (4096, 512)))
    small = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(8))).to(kind)
    calls = Work()

    def products() -> None:
        x_MD @ w_DF @ w_FD

    def passes() -> None:
        passed_DN = passed_ND.mT.contiguous()
        F.gelu(passed_DN, approximate="tanh") + passed_DN

    def network() -> None:
        small(x_MD[:8, :8]).sum().backward()

    with calls:
        network()
    torch.set_num_threads(1)  # calls as small as these are not shared out
    call = _fastest(network) / len(calls.operations)
    torch.set_num_threads(threads)
    speed = Speed(
        4 * x_MD.numel() * w_DF.shape[1] / _fastest(products),
        7 * passed_ND.nbytes / _fastest(passes, 0.8),
        call,
        f"this machine's CPU as measured now, {precision}, {threads} thread{'s' * (threads > 1)}",
    )
    torch.set_num_threads(before)
    return speed


def _fastest(work: Callable[[], None], seconds: float = 0.25) -> float:
    """Seconds that ``work`` takes this thread, which takes part in all of it, when no other process is in its way."""
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < LEAST_TIMES or time.perf_counter() < began + seconds:
        started = time.thread_time()
        work()
        found.append(time.thread_time() - started)
    return min(found)
