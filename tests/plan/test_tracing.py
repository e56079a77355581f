"""What fake tensors count: a pass's own peak to the byte, by the part that made what was held."""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import most_held
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from medrag import config
from medrag.assemble.rehearsal import rehearse
from medrag.generator import head
from medrag.plan.tracing import Held, NothingPadded, Stand, Within

SMALL = [
    "model=reference",
    "task=closed_book",
    "task.global_batch=4",
    "task.options.source_tokens=64",
    "task.options.answer_tokens=48",
    "hardware.devices=1",
    *(f"model.generator.{name}" for name in ("layers=2", "width=128", "heads=2", "feed_forward=256", "vocabulary_tokens=8000")),
]
LONG = ["task.options.answer_tokens=256", "task.global_batch=8", "hardware.micro_batch.closed_book=8", "model.generator.layers=3"]
"""so long that the backward pass holds more than the optimizer's step"""


def parts(*arguments: str) -> dict[str, int]:
    return rehearse(config.compose([*SMALL, *arguments])).memory.parts


def passes() -> tuple[nn.Module, Callable[[nn.Module], None]]:
    """A network whose middle is recomputed, and its forward and backward pass."""
    network = nn.Sequential(nn.Linear(64, 256), nn.Sequential(nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 256)), nn.Linear(256, 1000))

    def both(network: nn.Module) -> None:
        first, middle, last = network.children()
        states = checkpoint(middle, first(torch.ones(50, 64)), use_reentrant=False, preserve_rng_state=False)
        target = torch.zeros(50, dtype=torch.long)
        head.target_logp(states, last.weight, target, pad=1).sum().backward()  # type: ignore[no-untyped-call, arg-type]

    return network, both


def test_the_peak_of_a_pass_is_the_profilers_to_the_byte() -> None:
    network, both = passes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        both(network)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    with FakeTensorMode():
        network, both = passes()
        held = Held()
        held.add(network.parameters(), "weights")
        with held, Within("cpu"), NothingPadded():
            both(network)
    assert held.most_bytes == most_held(found) + weights
    assert held.at_peak()["weights"] == weights


def test_activations_grow_with_the_micro_batch_and_nothing_else_does() -> None:
    one, two = parts("hardware.micro_batch.closed_book=2"), parts("hardware.micro_batch.closed_book=4")
    for name in ("generator encoder", "decoder"):
        assert 1.9 < two[name] / one[name] < 2.1, name
    assert two["weights"] == one["weights"] and two["optimizer"] == one["optimizer"]


def test_recomputing_keeps_what_goes_into_each_block_alone() -> None:
    plain, recomputed = parts(*LONG), parts(*LONG, "hardware.checkpointing=true")
    assert recomputed["decoder"] < 0.4 * plain["decoder"]
    assert recomputed["generator encoder"] < 0.4 * plain["generator encoder"]


def test_accumulated_gradients_are_there_from_the_start() -> None:
    accumulated, at_once = parts(*LONG, "task.global_batch=16"), parts(*LONG)
    assert accumulated["gradients"] > at_once["gradients"]
    assert accumulated["decoder"] == at_once["decoder"]


def test_a_card_is_planned_with_its_own_chunks_and_kernels() -> None:
    card = ["hardware.device=cuda", "hardware.compute_capability=6.1"]
    on_cpu, on_card = parts(*LONG), parts(*LONG, *card)
    assert on_card["logits"] > 2 * on_cpu["logits"], "a card's chunk of logits is larger"
    assert on_card["decoder"] < on_cpu["decoder"], "a card keeps a byte for each element that may be dropped, and fuses norms"
    assert on_card["context"] > 0


def test_what_is_not_known_of_fake_tensors_is_answered_as_if_rows_were_full() -> None:
    with FakeTensorMode(), NothingPadded(), Stand("cpu"):
        mask = torch.ones(3, 5, dtype=torch.bool)
        assert bool(mask.all())
        assert mask.sum(1).tolist() == [5, 5, 5]
        assert int(mask.sum(1).max()) == 5
        assert mask.flatten().nonzero().shape == (15, 1)
        assert torch.ones(2, 2).numpy().tolist() == [[0.0, 0.0], [0.0, 0.0]]
