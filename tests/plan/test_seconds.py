"""Work counted call by call against torch's own counters and against arithmetic; the time that a step takes from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from medrag.generator import attention, head
from medrag.hardware import Hardware
from medrag.plan import seconds
from medrag.plan.seconds import Operation, Seconds, Speed, Work

SPEED = Speed(1e9, 1e8, 1e-3, "")


def network() -> None:
    """Embedding, attention with a learned bias, T5's head: forward and backward."""
    embedding, linear = nn.Embedding(100, 32), nn.Linear(32, 32)
    x_NHTd = linear(embedding(torch.zeros(4, 7, dtype=torch.long))).view(4, 7, 4, 8).transpose(1, 2)
    bias_HTL = torch.zeros(4, 7, 7, requires_grad=True)
    y_NHTd = attention.attend(x_NHTd, x_NHTd, x_NHTd, bias_HTL, torch.ones(4, 7, dtype=torch.bool), 0.0)
    hidden_MD = F.gelu(y_NHTd.transpose(1, 2).reshape(28, 32))
    logp_M: Tensor = head._TargetLogp.apply(hidden_MD, embedding.weight, torch.zeros(28, dtype=torch.long), 8)  # type: ignore[no-untyped-call]
    torch.autograd.backward(logp_M.sum())


def counted(call: str, *given: Tensor) -> list[tuple[int, int]]:
    """Flops and bytes of one call."""
    work = Work()
    with work:
        getattr(torch.ops.aten, call)(*given)
    return [(operation.flops, operation.bytes) for operation in work.operations]


def test_fake_tensors_do_the_same_work_as_real_ones() -> None:
    real, fake = Work(), Work()
    with real:
        network()
    with FakeTensorMode(), fake:
        network()
    assert real.operations == fake.operations
    assert len(real.operations) > 50 and real.flops > 500_000


def test_products_are_those_that_torch_counts_and_those_it_leaves_out() -> None:
    work, oracle = Work(), FlopCounterMode(display=False)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Conv1d(5, 3, 1), nn.Linear(64, 8))
    x_NLD = torch.randn(2, 5, 16)
    with oracle:
        model(x_NLD).sum().backward()
    with work:
        model(x_NLD).sum().backward()
    assert work.flops == oracle.get_total_flops() > 0
    q_NHTd = torch.randn(2, 3, 7, 8, requires_grad=True)
    attended = Work()
    with attended:
        torch.autograd.backward(F.scaled_dot_product_attention(q_NHTd, q_NHTd, q_NHTd).sum())
    product = 2 * 2 * 3 * 7 * 7 * 8
    assert attended.flops == 2 * product + 5 * product  # two products forward; the scores again and four more backward
    a, b = torch.zeros(3, 4), torch.zeros(4, 5)
    assert [flops for flops, _ in counted("addmm_", torch.zeros(3, 5), a, b)] == [2 * 3 * 4 * 5]
    assert [flops for flops, _ in counted("bmm", a[None], b[None])] == [2 * 3 * 4 * 5]


def test_bytes_are_what_is_read_and_written() -> None:
    x, y = torch.zeros(10, 20), torch.ones(10, 20)
    whole = x.nbytes
    assert counted("add", x, y) == [(0, 3 * whole)]
    assert counted("add_", x, y) == [(0, 3 * whole)]
    assert counted("copy_", x, y) == [(0, 2 * whole)]
    assert counted("mul", x, torch.ones(1, 1).expand(10, 20)) == [(0, 2 * whole + 4)]
    assert counted("transpose", x, *(0, 1)) == []  # type: ignore[arg-type]
    assert counted("sum", x) == [(0, whole + 4)]
    table, ids = torch.zeros(1000, 8), torch.arange(5)
    assert counted("embedding", table, ids) == [(0, 2 * (ids.nbytes + 5 * 8 * 4))]


def test_each_call_takes_what_takes_longest() -> None:
    work = Work()
    work.operations = [Operation("mm", 5_000_000, 100), Operation("add", 0, 1_000_000), Operation("neg", 0, 4)]
    assert seconds.estimate(work, SPEED) == pytest.approx(5e-3 + 1e-2 + 1e-3)


@pytest.mark.parametrize(
    ("hardware", "rounds", "own"),
    [
        (Hardware(devices=1), 0, 1),
        (Hardware(devices=2), 2 * 1 / 2, 1),
        (Hardware(devices=4, zero_stage=1), 2 * 3 / 4, 1 / 4),
        (Hardware(devices=4, precision="bf16"), 2 * 3 / 4 / 2, 1 / 4 * (1 + seconds.CAST_BYTES / seconds.ADAM_BYTES)),
        (Hardware(devices=4, zero_stage=2), (3 + 1) * 3 / 4, 1 / 4),
        (Hardware(devices=4, zero_stage=3), 3 * 3 * 3 / 4, 1 / 4),
    ],
)
def test_a_step_is_passes_optimizer_and_exchange(hardware: Hardware, rounds: float, own: float) -> None:
    work = Work()
    work.operations = [Operation("mm", 5_000_000, 100)]
    found = seconds.seconds(work, 3, 1_000_000, hardware, SPEED)
    expected = Seconds(3 * 5e-3, own * 1e6 * seconds.ADAM_BYTES / 1e8, rounds * 4e6 / seconds.LINK_BYTES_A_SECOND["cpu"])
    assert (found.passes, found.optimizer, found.exchange) == pytest.approx((expected.passes, expected.optimizer, expected.exchange))
    assert found.step == pytest.approx(expected.passes + expected.optimizer + expected.exchange)


def test_an_optimizer_in_the_machines_memory_waits_for_the_way_there() -> None:
    found = []
    for offload in (True, False):
        card = Hardware(device="cuda", zero_stage=1, precision="fp16", offload=offload)
        found.append(seconds.seconds(Work(), 1, 10_000_000, card, Speed(1e12, 4e11, 0, "")))
    there, here = found
    assert there.optimizer > 10 * here.optimizer > 0


def test_what_adamw_moves_is_counted() -> None:
    parameter = nn.Parameter(torch.zeros(100, 1000))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], weight_decay=0.01)
    optimizer.step()
    work = Work()
    with work:
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()
    assert work.bytes / parameter.numel() == pytest.approx(seconds.ADAM_BYTES, rel=0.02)


def test_a_card_does_a_share_of_what_is_stated_and_a_cpu_what_is_measured() -> None:
    card = seconds.speed_of(Hardware(device="cuda", teraflops=11.3, gigabytes_a_second=484))
    assert card.flops_a_second == pytest.approx(11.3e12 * seconds.REACHED_FLOPS)
    assert card.bytes_a_second == pytest.approx(484e9 * seconds.REACHED_BYTES)
    assert "50% of the 11.3 teraflops" in card.source and "not measured" in card.source
    with pytest.raises(ValueError, match=r"hardware.gigabytes_a_second=0"):
        seconds.speed_of(Hardware(device="cuda", teraflops=11.3))
    here = seconds.speed_of(Hardware(precision="bf16", threads=1))
    assert all(math.isfinite(value) and value > 0 for value in (here.flops_a_second, here.bytes_a_second, here.seconds_a_call))
    assert "bf16, 1 thread" in here.source and torch.get_num_threads() == 1
