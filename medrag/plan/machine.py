"""What this machine has, and which hardware presets fit it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from medrag.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as torch sees it."""

    name: str
    memory_gib: float
    compute_capability: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What a training run could use."""

    cores: int
    memory_gib: float
    disk_free_gib: float
    compiler: bool
    cards: tuple[Card, ...]


def this_machine() -> Machine:
    """Look at the machine; nothing is changed."""
    cards = []
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        cards.append(Card(found.name, found.total_memory / 2**30, found.major + found.minor / 10))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(len(os.sched_getaffinity(0)), memory_gib, shutil.disk_usage(".").free / 2**30, shutil.which("g++") is not None, tuple(cards))


def obstacle(hardware: Hardware, machine: Machine) -> str:
    """Why this preset does not fit the machine; empty where it does."""
    if hardware.device == "cpu":
        return "" if machine.cores >= hardware.devices else f"{hardware.devices} processes for {machine.cores} core"
    if not machine.cards:
        return "no CUDA device"
    if len(machine.cards) < hardware.devices:
        return f"{len(machine.cards)} card, {hardware.devices} asked for (hardware.devices={len(machine.cards)} may do)"
    card = machine.cards[0]
    if card.memory_gib < 0.9 * hardware.memory_gib:
        return f"{card.memory_gib:.0f} GiB a card, {hardware.memory_gib:.0f} needed"
    if card.compute_capability < hardware.compute_capability:
        return f"compute capability {card.compute_capability}, {hardware.compute_capability} needed for {hardware.precision}"
    return ""


def doctor(presets: Mapping[str, Hardware], versions: Mapping[str, str]) -> str:
    """A report for a person."""
    machine = this_machine()
    room = f"{machine.memory_gib:.0f} GiB memory, {machine.disk_free_gib:.0f} GiB disk free"
    lines = [
        f"machine   {machine.cores} cores, {room}, Python {platform.python_version()}",
        f"compiler  {'g++ found' if machine.compiler else 'no g++ (not needed: DeepSpeed extensions are not built)'}",
    ]
    lines += [
        f"card {n}    {card.name}, {card.memory_gib:.1f} GiB, compute capability {card.compute_capability}" for n, card in enumerate(machine.cards)
    ]
    lines += ["cards     none that torch can use"] * (not machine.cards)
    lines += [f"library   {name} {version}" for name, version in versions.items()]
    lines += ["", f"{'preset':<12}{'devices':>8}{'precision':>11}{'ZeRO':>6}   fits here"]
    for name, hardware in presets.items():
        found = obstacle(hardware, machine)
        lines.append(f"{name:<12}{hardware.devices:>8}{hardware.precision:>11}{hardware.zero_stage:>6}   {'yes' if not found else 'no: ' + found}")
    return "\n".join(lines)
