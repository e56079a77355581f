"""DeepSpeed's engine behind what the loop asks of it. The only importer of deepspeed, and the only reader of its insides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medrag import weights
from medrag.hardware import Hardware
from medrag.methods import Batch, Method
from medrag.schedule import Shares, Task


def deepspeed() -> Any:
    """DeepSpeed without its chatter and, on machines without a compiler, without its compiled extensions."""
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(task: Task, hardware: Hardware, cut: Shares) -> dict[str, Any]:
    """DeepSpeed's JSON. Buckets are small: the default would take 2 GB of an 11 GB card."""
    return {
        "train_batch_size": task.global_batch,
        "train_micro_batch_size_per_gpu": cut.micro,
        "gradient_accumulation_steps": cut.accumulation,
        "gradient_clipping": task.clip,
        "optimizer": {"type": "AdamW", "params": {"lr": task.learning_rate, "betas": [0.9, 0.999], "eps": 1e-8, "torch_adam": True}},
        "zero_optimization": {"stage": hardware.zero_stage, "reduce_bucket_size": 5_000_000, "allgather_bucket_size": 5_000_000},
        "fp16": {"enabled": hardware.precision == "fp16", "initial_scale_power": 12},
        "bf16": {"enabled": hardware.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
    }


class Engine:
    """A method in training: forward and backward a micro batch at a time, then one step, or none.

    All ranks call each of these together.
    """

    def __init__(self, method: Method, task: Task, hardware: Hardware, cut: Shares) -> None:
        self.method = method
        self._engine, *_ = deepspeed().initialize(
            model=method, model_parameters=_groups(method, task.weight_decay), config=deepspeed_config(task, hardware, cut)
        )

    def set_rate(self, learning_rate: float) -> None:
        """The learning rate of the next step."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def forward(self, batch: Batch) -> Tensor:
        """The method's loss on a micro batch."""
        loss: Tensor = self._engine(batch)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro batch; after the last of a step comes ``step`` or ``discard``, after each other ``more``."""
        self._engine.backward(loss)

    def more(self) -> None:
        """Another micro batch of the same step comes."""
        self._engine.step()

    def step(self) -> None:
        """Change the weights by the gradient gathered since the last step."""
        self._engine.step()

    def discard(self) -> None:
        """Forget the gradient gathered since the last step; weights, moments and loss scale stay as they are."""
        self._engine.zero_grad()
        self._engine.micro_steps += 1

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to go on, on the CPU, by name, whole whatever the number of devices and the stage of ZeRO; empty on other ranks.

        ``weight.NAME`` in fp32 and ``first.NAME`` and ``second.NAME`` (Adam's moments) of each trained parameter, ``frozen.NAME`` of the others, and
        ``steps`` (how often Adam has stepped). A tensor with several names stands once.
        """
        if dist.get_rank():
            return {}
        moments = self._engine.optimizer.state
        found = {"steps": torch.tensor(0)}
        for name, parameter in self.method.named_parameters():
            found[f"weight.{name}"] = parameter.detach().float().cpu().clone()
            if parameter in moments:
                found["steps"] = torch.tensor(int(moments[parameter]["step"]))
                found[f"first.{name}"] = moments[parameter]["exp_avg"].cpu().clone()
                found[f"second.{name}"] = moments[parameter]["exp_avg_sq"].cpu().clone()
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave, on any number of devices and at any stage of ZeRO. Every rank gives the same tensors."""
        moments = self._engine.optimizer.state
        for name, parameter in self.method.named_parameters():
            parameter.data.copy_(state[f"weight.{name}"])
            if f"first.{name}" in state:
                moments[parameter] = {
                    "step": torch.tensor(float(state["steps"])),
                    "exp_avg": state[f"first.{name}"].to(parameter.device).clone(),
                    "exp_avg_sq": state[f"second.{name}"].to(parameter.device).clone(),
                }

    def weights(self) -> dict[str, Tensor]:
        """The method's weights in fp32 on the CPU, under the names that ``weights.save`` gives them; empty on other ranks than the first."""
        return {} if dist.get_rank() else {name: tensor.detach().float().cpu() for name, tensor in weights.named(self.method).items()}

    def close(self) -> None:
        """Let go of gradients, optimizer and hooks."""
        self._engine.destroy()


def _groups(method: Method, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
