"""Half precision: mT5's known overflow, forced, and what rescaling makes of it; training in it as DeepSpeed does."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Tiny
from oracle import transformers_t5
from test_network import batch
from torch import Tensor

from medrag.assemble import FP16_RESCALE
from medrag.generator import Generator

LARGEST_FP16 = 65_504
ROOT = Path(__file__).parent.parent.parent


def forced(made: Generator, factor: float = 350.0) -> Generator:
    """The same with a feed-forward that puts out ``factor`` squared as much; its weights are far from overflowing themselves."""
    with torch.no_grad():
        for stack in (made.network.encoder, made.network.decoder):
            for block in stack.blocks:
                block.ahead.DenseReluDense.wi_1.weight *= factor
                block.ahead.DenseReluDense.wo.weight *= factor
    return made


def largest_output(made: Generator, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """The largest magnitude that any feed-forward puts out."""
    found: list[float] = []
    gated = [block.ahead.DenseReluDense for stack in (made.network.encoder, made.network.decoder) for block in stack.blocks]
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: found.append(float(output.detach().abs().max()))) for module in gated]
    logits(made, inputs)
    for hook in hooks:
        hook.remove()
    return max(found)


def logits(made: Generator, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(M, V) of the target tokens, in fp32."""
    ids_NL, mask_NL, target_NT = inputs
    kept_NT = target_NT != made.pad
    found: Tensor = made.network.lm_head(made.network.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT, kept_NT))
    return found.float()


def error(found: Tensor, expected: Tensor) -> float:
    """The largest, beside the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


def test_rescale_changes_nothing_in_fp32(tiny: Tiny) -> None:
    """Neither values nor gradients; and it sets a scale, it does not add one."""
    plain, rescaled = tiny.generator(), tiny.generator()
    rescaled.rescale(8.0)
    rescaled.rescale(FP16_RESCALE)
    ids_NL, mask_NL, target_NT = batch(tiny)
    for made in (plain, rescaled):
        logp_NT = made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT)
        logp_NT.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(logits(plain, batch(tiny)), logits(rescaled, batch(tiny)), atol=1e-5)
    for (name, one), two in zip(plain.named_parameters(), rescaled.parameters(), strict=True):
        assert torch.equal(one, two) and one.grad is not None and two.grad is not None, name
        assert torch.allclose(one.grad, two.grad, atol=1e-5 * max(1.0, float(one.grad.abs().max()))), name
    assert largest_output(rescaled, batch(tiny)) == pytest.approx(largest_output(plain, batch(tiny)) / FP16_RESCALE, rel=1e-4)
    state = [made.first_attention(made.encode(ids_NL, mask_NL), mask_NL) for made in (plain, rescaled)]
    assert torch.allclose(state[0], state[1], atol=1e-5)
    steps = [made.stepper(made.encode(ids_NL, mask_NL), mask_NL).step(torch.zeros(4, 1, dtype=torch.long)) for made in (plain, rescaled)]
    assert torch.allclose(steps[0], steps[1], atol=1e-5)


@torch.no_grad()
def test_rescale_survives_a_forced_overflow(tiny: Tiny) -> None:
    """``wo`` puts out more than fp16's 65,504. Plain fp16 gives NaN, transformers' clamp finite and wrong numbers, rescaled fp16 right ones."""
    whole, inputs = forced(tiny.generator()), batch(tiny)
    expected = logits(whole, inputs)
    assert LARGEST_FP16 < largest_output(whole, inputs) < FP16_RESCALE * LARGEST_FP16
    assert not logits(copy.deepcopy(whole).half(), inputs).isfinite().all()

    ids_NL, mask_NL, target_NT = inputs
    clamped = transformers_t5(whole).half()(input_ids=ids_NL, attention_mask=mask_NL.long(), decoder_input_ids=target_NT).logits.float()
    assert error(clamped[target_NT != whole.pad], expected) > 0.1

    rescaled = copy.deepcopy(whole)
    rescaled.rescale(FP16_RESCALE)
    half = logits(rescaled.half(), inputs)
    assert half.isfinite().all() and error(half, expected) < 0.02
    state_NLD = rescaled.encode(ids_NL, mask_NL)
    assert rescaled.stepper(state_NLD, mask_NL).step(torch.zeros(4, 1, dtype=torch.long)).isfinite().all()


def test_gradients_of_a_forced_overflow_are_finite_and_right(tiny: Tiny) -> None:
    whole, inputs = forced(tiny.generator()), batch(tiny)
    half = copy.deepcopy(whole)
    half.rescale(FP16_RESCALE)
    half.half()
    for made in (whole, half):
        (-made.decode(made.encode(*inputs[:2]), *inputs[1:]).mean() * 64).backward()  # type: ignore[no-untyped-call]
    for (name, one), two in zip(whole.named_parameters(), half.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name
        assert two.grad.isfinite().all() and error(two.grad.float(), one.grad) < 0.1, name


TRAINING = """
import json, sys
sys.path[:0] = ["tests", "tests/generator"]
import torch
from deepspeed.accelerator import get_accelerator
get_accelerator().is_fp16_supported = lambda: True
import conftest
from test_fp16 import FP16_RESCALE, batch, forced, largest_output
from medrag import train
from medrag.train import engines
from medrag.hardware import Hardware
from medrag.schedule import Shares, Task
from medrag.generator import Generator

class Learner(torch.nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made
    def forward(self, ids_NL, mask_NL, target_NT):
        return -self.made.decode(self.made.encode(ids_NL, mask_NL), mask_NL, target_NT).sum() / (target_NT != 0).sum()

torch.manual_seed(0)
tiny = conftest.tiny.__wrapped__()
made = forced(tiny.generator())
inputs = batch(tiny)
before = largest_output(made, inputs)
made.rescale(float(sys.argv[1]))
train.connect(Hardware())
settings = train.deepspeed_config(Task(global_batch=4, learning_rate=1e-3), Hardware(precision="fp16"), Shares(4, 1))
learner = Learner(made)
engine, *_ = engines.deepspeed().initialize(model=learner, model_parameters=learner.parameters(), config=settings)
losses = []
for _ in range(8):
    loss = engine(*inputs)
    losses.append(float(loss.detach()))
    engine.backward(loss)
    engine.step()
print(json.dumps({"before": before, "dtype": str(made.network.shared.weight.dtype), "losses": losses, "skipped": engine.skipped_steps}))
"""


def trained_in_fp16(scale: float) -> dict[str, object]:
    """What a process of its own says: DeepSpeed halves all that is in it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    command = [sys.executable, "-c", TRAINING, str(scale)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_deepspeed_trains_it_in_fp16(tmp_path: Path) -> None:
    """On a network that plain fp16 cannot even run."""
    found = trained_in_fp16(FP16_RESCALE)
    losses = found["losses"]
    assert isinstance(found["before"], float) and found["before"] > LARGEST_FP16 and found["dtype"] == "torch.float16"
    assert isinstance(losses, list) and torch.tensor(losses).isfinite().all() and losses[-1] < 0.8 * losses[0]
