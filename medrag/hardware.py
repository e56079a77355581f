"""What a training run has: the card, how many, and what its chip can do."""

from __future__ import annotations

from dataclasses import dataclass, field

PRECISIONS = ("fp32", "fp16", "bf16")
DEVICES = ("cpu", "cuda")
ZERO_STAGES = (0, 1, 2, 3)
LEAST_CAPABILITY = {"fp32": 0.0, "fp16": 7.0, "bf16": 8.0}
"""of a chip on which DeepSpeed takes the precision and arithmetic in it is fast"""


@dataclass
class Hardware:
    """What a run has: nothing here changes what is learned."""

    device: str = "cpu"
    """cpu or cuda"""
    devices: int = 1
    """processes, one a card, on all machines together"""
    memory_gib: float = 0.0
    """memory of one card as torch sees it, a little less than its maker states; 0 where it does not matter"""
    compute_capability: float = 0.0
    """of the chip, e.g. 7.5; 0 for a CPU"""
    precision: str = "fp32"
    """fp32, fp16 (compute capability 7.0 and up) or bf16 (8.0 and up, or a CPU)"""
    micro_batch: dict[str, int] = field(default_factory=lambda: {"default": 8})
    """most examples a device holds activations of at once, by method; ``default`` for the others"""
    micro_tokens: int = 0
    """most tokens a device holds activations of at once, padding included, for methods that contrast the whole batch (dense); 0: any number"""
    zero_stage: int = 0
    """DeepSpeed's ZeRO: 0, 1 (optimizer states shared out), 2 (gradients too) or 3 (weights too)"""
    offload: bool = False
    """keep the optimizer's states in the machine's memory instead of the card's (ZeRO 1 to 3)"""
    checkpointing: bool = False
    """recompute activations in the backward pass"""
    threads: int = 0
    """CPU threads of each process; 0: as OMP_NUM_THREADS says, or the cores shared out"""
    teraflops: float = 0.0
    """what the chip does in this precision at best, as its maker states; 0: measured where it runs"""
    gigabytes_a_second: float = 0.0
    """bandwidth of the card's memory, as its maker states; 0: measured where it runs"""
    torch_build: str = ""
    """the builds of torch that still support the chip"""
    faiss_build: str = ""
    """the build of faiss that searches on the chip, or what does instead"""


def stage_run(hardware: Hardware) -> int:
    """The stage of ZeRO that DeepSpeed is told: half precision is run as the first at least (``train.engines`` says why)."""
    return hardware.zero_stage or int(hardware.precision != "fp32")


def check(hardware: Hardware) -> None:
    """Raise ValueError where a value is not allowed or the chip cannot do it."""
    for name, value, allowed in (
        ("device", hardware.device, DEVICES),
        ("precision", hardware.precision, PRECISIONS),
        ("zero_stage", hardware.zero_stage, ZERO_STAGES),
    ):
        if value not in allowed:
            raise ValueError(f"hardware.{name}={value}; allowed: {', '.join(map(str, allowed))}")
    for name, number, least in (
        ("devices", hardware.devices, 1),
        ("micro_tokens", hardware.micro_tokens, 0),
        ("memory_gib", hardware.memory_gib, 0),
        ("threads", hardware.threads, 0),
        ("teraflops", hardware.teraflops, 0),
        ("gigabytes_a_second", hardware.gigabytes_a_second, 0),
        *((f"micro_batch.{method}", most, 1) for method, most in hardware.micro_batch.items()),
    ):
        if number < least:
            raise ValueError(f"hardware.{name}={number}; it must be {least} or more")
    if hardware.offload and not hardware.zero_stage:
        raise ValueError("hardware.offload=true needs hardware.zero_stage of 1, 2 or 3; this is 0")
    if hardware.device == "cpu" and hardware.precision == "fp16":
        raise ValueError("hardware.precision=fp16 needs a GPU; on a CPU fp32 and bf16 are allowed")
    able = [name for name, capability in LEAST_CAPABILITY.items() if hardware.compute_capability >= capability]
    if hardware.device == "cuda" and hardware.precision not in able:
        raise ValueError(
            f"hardware.precision={hardware.precision} needs compute capability {LEAST_CAPABILITY[hardware.precision]}; "
            f"hardware.compute_capability={hardware.compute_capability} allows {', '.join(able)}"
        )
