"""DeepSpeed's engine behind what the loop asks of it. The only importer of deepspeed, and the only reader of its insides (0.19).

What it does not do by itself, or does otherwise than one would think, is made good here:

- The weights that Adam changes (the masters) would start from weights that were rounded to half precision; here they start from those in fp32.
  Weights that are not trained are rounded in the model, and kept as they were beside it.
- Half precision without ZeRO is run as ZeRO 1, which computes the same: DeepSpeed's own path for it does not multiply the loss by the loss scale
  that it divides the gradient by, and takes an empty step of Adam before the first.
- ZeRO 3 gathers a layer's weights by hooks around its call, on all ranks at once. A method that contrasts the whole batch calls its encoders as
  often as its texts need, on each rank another number of times: its weights are gathered around the whole of it. What is called with no
  gradient in mind (validating, mining) is done within ``Engine.whole``.
- A step that is to be forgotten goes the way of one that DeepSpeed itself skips, since only that clears all that each stage has gathered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from medrag import weights
from medrag.hardware import Hardware, stage_run
from medrag.methods import Batch, Method
from medrag.schedule import Shares, Task

BUCKET_ELEMENTS = 5_000_000
"""of a buffer that gradients or weights are sent in; DeepSpeed's default would take 2 GB of an 11 GB card"""
KEPT_ELEMENTS = 1_000
"""ZeRO 3 keeps tensors up to this size whole on each device: norms and biases"""
MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def deepspeed() -> Any:
    """DeepSpeed without its chatter and, on machines without a compiler, without its compiled extensions."""
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # it calls torch by names that torch 2.13 has newer ones for, at each step
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(task: Task, hardware: Hardware, cut: Shares) -> dict[str, Any]:
    """DeepSpeed's JSON."""
    zero: dict[str, Any] = {
        "stage": stage_run(hardware),
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": KEPT_ELEMENTS,
        "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        "stage3_max_live_parameters": 4 * BUCKET_ELEMENTS,
        "stage3_max_reuse_distance": 0,
    }
    if hardware.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": hardware.device == "cuda"}
    return {
        "train_batch_size": task.global_batch,
        "train_micro_batch_size_per_gpu": cut.micro,
        "gradient_accumulation_steps": cut.accumulation,
        "gradient_clipping": task.clip,
        "optimizer": {"type": "AdamW", "params": {"lr": task.learning_rate, "betas": [0.9, 0.999], "eps": 1e-8, "torch_adam": True}},
        "zero_optimization": zero,
        "fp16": {"enabled": hardware.precision == "fp16", "initial_scale_power": 12},
        "bf16": {"enabled": hardware.precision == "bf16", "check_grad_overflow": True},
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
    }


class Engine:
    """A method in training: forward and backward a micro batch at a time, then one step, or none.

    All ranks call each of these together, with methods made alike.
    """

    def __init__(self, method: Method, task: Task, hardware: Hardware, cut: Shares) -> None:
        """Raises ValueError where ``hardware`` asks for what DeepSpeed cannot do."""
        self.method = method
        self._stage = stage_run(hardware)
        self._trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
        masters = {name: _kept(parameter) for name, parameter in self._trained.items()} if hardware.precision != "fp32" else {}
        self._frozen = {name: _kept(parameter) for name, parameter in method.named_parameters() if not parameter.requires_grad}
        self._buffers = weights.named(method).keys() - self._trained.keys() - self._frozen.keys()
        self._deepspeed = deepspeed()
        self._engine, *_ = self._deepspeed.initialize(
            model=method, model_parameters=_groups(method, task.weight_decay), config=deepspeed_config(task, hardware, cut)
        )
        self._optimizer = self._engine.optimizer
        self._adam = self._optimizer.optimizer if self._stage else self._optimizer
        self._scaler = self._optimizer.loss_scaler if hardware.precision == "fp16" else None
        if self._scaler is not None:
            self._scaler.raise_error_at_min_scale = False
        if self._stage == 3 and method.whole_batch:
            self._gather_around_the_whole()
        if masters:
            self._write_masters(masters)

    def set_rate(self, learning_rate: float) -> None:
        """The learning rate of the next step."""
        for group in self._optimizer.param_groups:
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

    def step(self) -> bool:
        """Change the weights by the gradient gathered since the last step.

        False where that was not finite, and nothing was changed but fp16's loss scale: usual in the first steps of fp16, which look for that scale.
        Raises ValueError where it is not finite at the smallest scale either.
        """
        if not self._stage and not torch.stack([gradient.isfinite().all() for gradient in self._gradients()]).all():
            self.discard()
            return False
        smallest = self._scaler is not None and self._scaler.cur_scale <= self._scaler.min_scale and self._scaler.cur_hysteresis == 1
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        if smallest and not applied:
            raise ValueError("the gradient overflows fp16 at a loss scale of 1; lower task.learning_rate, or use hardware.precision=fp32")
        return applied

    def discard(self) -> None:
        """Forget the gradient gathered since the last step, whatever is in it; weights, moments and loss scale stay as they are."""
        if not self._stage:
            self._engine.zero_grad()
            self._engine.micro_steps += 1
            return
        invalid = torch.tensor(-1.0)
        found = {"scaled_global_norm": lambda: invalid, "_get_norm_groups": lambda: [invalid], "_update_scale": lambda overflow: None}
        vars(self._optimizer).update(found)
        self._engine.step()
        for name in found:
            delattr(self._optimizer, name)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """While entered, ``method`` is an ordinary module that any rank may use, or copy, as it likes, but not change.

        Under ZeRO 3 each device holds all of the weights as long. At other stages it is that anyway.
        """
        if self._stage < 3:
            yield
            return
        modules = list(self.method.modules())
        hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in modules]
        with self._gathered(self.method.parameters()):
            for module in modules:
                module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
            try:
                yield
            finally:
                for module, (after, before) in zip(modules, hooks, strict=True):
                    module._forward_hooks, module._forward_pre_hooks = after, before

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to go on, on the CPU, by name, whole whatever the number of devices and the stage of ZeRO; empty on other ranks.

        ``weight.NAME`` in fp32 and ``first.NAME`` and ``second.NAME`` (Adam's moments) of each trained parameter, ``frozen.NAME`` of the others,
        ``steps`` (how often Adam has stepped) and, under fp16, ``scaler``: the loss scale, updates of it, the number of the last that found an
        overflow, overflows that are borne before the scale falls. A tensor with several names stands once.
        """
        found = {f"weight.{name}": tensor for name, tensor in self._masters().items()}
        found |= {f"frozen.{name}": tensor for name, tensor in self._frozen.items()}
        steps = [int(moments["step"]) for moments in self._adam.state.values()]
        found["steps"] = torch.tensor(steps[0] if steps else 0)
        if steps:
            self._link_moments()
        for kind, key in MOMENTS.items() if steps else ():
            found |= {f"{kind}.{name}": self._read(parameter, key) for name, parameter in self._trained.items()}
        if self._scaler is not None:
            found["scaler"] = torch.tensor([getattr(self._scaler, name) for name in SCALER], dtype=torch.float64)
        return {} if dist.get_rank() else found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state`` gave, on any number of devices, at any stage of ZeRO and in any precision. Every rank gives the same tensors."""
        # copied: what is read from a file keeps it on the disk, long after its checkpoint is dropped
        self._frozen = {name: _copied(state[f"frozen.{name}"]) for name in self._frozen}
        parameters = dict(self.method.named_parameters())
        for name, tensor in self._frozen.items():
            with self._gathered([parameters[name]], changed=True):
                parameters[name].data.copy_(tensor)
        self._write_masters({name: state[f"weight.{name}"] for name in self._trained})
        self._adam.state.clear()
        if steps := int(state["steps"]):
            for flat in self._flat():
                moments = {key: torch.zeros_like(flat) for key in MOMENTS.values()}
                self._adam.state[flat] = {"step": torch.tensor(float(steps)), **moments}
            self._link_moments()
            for kind, key in MOMENTS.items():
                for name, parameter in self._trained.items():
                    self._write(parameter, key, state[f"{kind}.{name}"])
        if self._scaler is not None and "scaler" in state:
            scale, *counts = state["scaler"].tolist()
            vars(self._scaler).update(zip(SCALER, (scale, *map(int, counts)), strict=True))

    def weights(self) -> dict[str, Tensor]:
        """The method's weights in fp32 on the CPU, under the names that ``weights.save`` gives them; empty on other ranks than the first."""
        found = self._masters() | self._frozen
        return {} if dist.get_rank() else found | {name: _copied(self.method.state_dict()[name]) for name in self._buffers}

    def close(self) -> None:
        """Let go of gradients, optimizer and hooks."""
        self._engine.destroy()

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._trained.values() if parameter.grad is not None]

    def _masters(self) -> dict[str, Tensor]:
        return {name: self._read(parameter, None) for name, parameter in self._trained.items()}

    def _read(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """A trained parameter's master (``key`` None) or moment, whole; on other ranks than the first nothing of worth."""
        if not self._stage:
            whole = parameter if key is None else self._adam.state[parameter][key]
        elif key is None:
            whole = self._deepspeed.utils.safe_get_full_fp32_param(parameter)
        else:
            whole = self._deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
        return torch.empty(0) if dist.get_rank() else _copied(whole)

    def _write(self, parameter: nn.Parameter, key: str | None, whole: Tensor) -> None:
        """Set a trained parameter's master (``key`` None) or moment, or what this rank holds of it."""
        tools = self._deepspeed.utils
        if not self._stage:
            (parameter.data if key is None else self._adam.state[parameter][key]).copy_(whole)
        elif self._stage < 3 and key is None:
            tools.safe_set_full_fp32_param(parameter, whole)
        elif self._stage < 3:
            tools.safe_set_full_optimizer_state(parameter, whole, key)
        else:
            # DeepSpeed's own function for the whole fails where its elements cannot be shared out evenly
            share = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = F.pad(whole.flatten(), (0, share * dist.get_world_size() - whole.numel()))
            own = padded[share * dist.get_rank() :][:share]
            if key is None:
                tools.safe_set_local_fp32_param(parameter, own)
            else:
                tools.safe_set_local_optimizer_state(parameter, own, key)

    def _write_masters(self, masters: Mapping[str, Tensor]) -> None:
        """Set the masters, and the weights that the model computes with."""
        for name, parameter in self._trained.items():
            self._write(parameter, None, masters[name])
        if self._stage in (1, 2):
            self._optimizer.update_lp_params()
        elif self._stage == 3:
            self._optimizer._partition_all_parameters()
            for number in range(len(self._flat())):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(number)

    def _link_moments(self) -> None:
        """Let each parameter know its moments; DeepSpeed does that itself after the first group's first step, too early for the second group."""
        if self._stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _flat(self) -> list[Tensor]:
        """What Adam steps: the masters, or what this rank holds of each group of them, one behind the other."""
        if not self._stage:
            return list(self._trained.values())
        name = "fp32_partitioned_groups_flat" if self._stage == 3 else "single_partition_of_fp32_groups"
        return list(getattr(self._optimizer, name))

    def _gathered(self, parameters: Any, changed: bool = False) -> Any:
        """A context in which they are whole at any stage; ``changed`` by the first rank for all."""
        return self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None)

    def _gather_around_the_whole(self) -> None:
        """ZeRO 3: all weights are gathered before the method's forward pass and its backward pass, and let go after it."""
        method = self.method
        for parameter in method.parameters():
            self._deepspeed.zero.register_external_parameter(method, parameter)
        offload = self._optimizer.parameter_offload
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            if not any(hook.hooks_dict_ref() is own for own in (method._forward_hooks, method._forward_pre_hooks)):
                hook.remove()


def _kept(parameter: nn.Parameter) -> Tensor:
    return _copied(parameter).float()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _groups(method: Method, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
