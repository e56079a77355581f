"""What this machine has, and which hardware presets fit it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medrag.hardware import Hardware

COLUMNS = 100
ALIKE = 0.97
"""of a preset's memory is enough: drivers keep a little more or less for themselves"""
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "bf16": "bf16", "amx_bf16": "AMX"}
"""what a processor's flags are called"""
QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version,mig.mode.current", "--format=csv,noheader,nounits"]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU."""

    name: str
    memory_gib: float
    compute_capability: float
    driver: str = ""
    """its driver's version; empty where nvidia-smi does not say"""
    mig: str = ""
    """Enabled or Disabled where the card can be cut into slices"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a training run could use."""

    cores: int
    memory_gib: float
    disk_free_gib: float
    compiler: bool
    cards: tuple[Card, ...]
    processor: str = ""
    instructions: tuple[str, ...] = ()
    """those of ``INSTRUCTIONS`` that it has"""
    sees_cards: bool = True
    """whether torch can use the cards"""
    architectures: tuple[str, ...] = ()
    """chips that torch was built for: sm_75 or compute_90; none for a CPU build"""


def this_machine(store: Path) -> Machine:
    """Look at the machine; nothing is changed. ``store``: the folder whose disk counts, which need not be there yet."""
    information = Path("/proc/cpuinfo")
    processor, instructions = read_processor(information.read_text("utf-8", "replace") if information.exists() else "")
    listed = _listed()
    seen = []
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        driver, mig = next(((card.driver, card.mig) for card in listed if found.name.startswith(card.name)), ("", ""))
        seen.append(Card(found.name, found.total_memory / 2**30, found.major + found.minor / 10, driver, mig))
    there = next(folder for folder in (store.absolute(), *store.absolute().parents) if folder.exists())
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        disk_free_gib=shutil.disk_usage(there).free / 2**30,
        compiler=shutil.which("g++") is not None,
        cards=tuple(seen or listed),
        processor=processor,
        instructions=instructions,
        sees_cards=bool(seen),
        architectures=tuple(torch.cuda.get_arch_list()),
    )


def read_processor(information: str) -> tuple[str, tuple[str, ...]]:
    """Name and known instructions of the first processor in the text of ``/proc/cpuinfo``."""
    first = information.split("\n\n", 1)[0]
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    flags = f"{said.get('flags', '')} {said.get('Features', '')}".split()
    return said.get("model name", ""), tuple(dict.fromkeys(name for flag, name in INSTRUCTIONS.items() if flag in flags))


def read_cards(table: str) -> list[Card]:
    """The cards in what ``nvidia-smi`` answers to ``QUERY``; those of which it does not know the memory or the chip are left out."""
    cards = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 5 and not any("N/A" in cell for cell in cells[:4]):
            name, mebibytes, capability, driver, mig = cells
            cards.append(Card(name, float(mebibytes) / 1024, float(capability), driver, mig if mig.endswith("abled") else ""))
    return cards


def _listed() -> list[Card]:
    if not shutil.which(QUERY[0]):
        return []
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return []
    return read_cards(answer.stdout) if answer.returncode == 0 else []


def carries(architectures: Sequence[str], capability: float) -> bool:
    """Whether a library with code for these chips runs on this one: code for a chip serves later ones with the same first figure, and
    ``compute_``, which the driver compiles, all later ones. A letter at the end (sm_90a) means that chip alone. Source: NVIDIA's CUDA C++
    Programming Guide, binary and PTX compatibility."""
    chip = round(10 * capability)
    for name in architectures:
        kind, _, figures = name.partition("_")
        built_for = int(figures.rstrip("af"))
        older = built_for <= chip and (kind == "compute" or built_for // 10 == chip // 10)
        if built_for == chip or (older and figures.isdecimal()):
            return True
    return False


def obstacle(hardware: Hardware, machine: Machine) -> str:
    """Why this preset does not fit the machine, in a few words; empty where it does."""
    if hardware.device == "cpu":
        return "" if machine.cores >= hardware.devices else f"{machine.cores} of {hardware.devices} cores"
    if not machine.cards:
        return "no card"
    if len(machine.cards) < hardware.devices:
        return f"{len(machine.cards)} of {hardware.devices} cards"
    memory_gib, capability = _weakest(machine)
    if memory_gib < ALIKE * hardware.memory_gib:
        return f"{memory_gib:.1f} of {hardware.memory_gib:.1f} GiB"
    if capability < hardware.compute_capability:
        return f"{_chip(capability)} is not {_chip(hardware.compute_capability)}"
    return ""


def nearest(presets: Mapping[str, Hardware], machine: Machine) -> tuple[str, int]:
    """The preset nearest to the machine, and how many devices to ask it for; no name where its cards are too old for any.

    Of those for its chip, or else for one before it, the one that fills most of the memory; where all need more, the one that needs least. Devices
    are a power of two, so that they share the global batches of the tasks.
    """
    if not machine.cards:
        usual = presets["cpu"].devices
        return "cpu", min(usual, machine.cores)
    memory_gib, capability = _weakest(machine)
    runs = {name: card for name, card in presets.items() if card.device == "cuda" and card.compute_capability <= capability}
    fits = {name: card for name, card in runs.items() if memory_gib >= ALIKE * card.memory_gib}
    devices = 2 ** (len(machine.cards).bit_length() - 1)
    if fits:
        return max(fits, key=lambda name: (fits[name].compute_capability, fits[name].memory_gib)), devices
    return min(runs, key=lambda name: (runs[name].memory_gib, -runs[name].compute_capability), default=""), devices


def doctor(machine: Machine, presets: Mapping[str, Hardware], versions: Mapping[str, str]) -> str:
    """A report for a person. ``presets``: by name, ``cpu`` among them."""
    best, devices = nearest(presets, machine)

    def order(name: str) -> tuple[bool, bool, float, float]:
        card = presets[name]
        return name != best, obstacle(replace(card, devices=1), machine) != "", card.compute_capability, card.memory_gib

    rows = [("preset", "chip", "cards", "GiB", "precision", "ZeRO", "torch builds", "here")]
    for name in sorted(presets, key=order):
        card = presets[name]
        chip = (_chip(card.compute_capability), str(card.devices), f"{card.memory_gib:.1f}") if card.device == "cuda" else ("", "", "")
        rows.append((name, *chip, card.precision, str(card.zero_stage), card.torch_build, _here(card, machine, name == best)))
    table = [
        f"{name:<10}{chip:<7}{cards:>5}{gib:>7}  {precision:<10}{zero:>4}  {build:<31}{here}".rstrip()
        for name, chip, cards, gib, precision, zero, build, here in rows
    ]
    return "\n".join([*_parts(machine, presets, versions), "", *table, "", *_advice(presets, machine, best, devices)])


def _parts(machine: Machine, presets: Mapping[str, Hardware], versions: Mapping[str, str]) -> list[str]:
    named = f" ({', '.join((machine.processor, *machine.instructions))})" if machine.processor else ""
    lines = _wrapped("machine", f"{machine.cores} cores{named}, {machine.memory_gib:.0f} GiB memory, Python {platform.python_version()}")
    lines += _wrapped("disk", f"{machine.disk_free_gib:.0f} GiB free for the store")
    lines += _wrapped("compiler", "g++ found" if machine.compiler else "no g++ (not needed: DeepSpeed's extensions are not built)")
    for number, card in enumerate(machine.cards):
        lines += _wrapped(f"card {number}", f"{card.name}, {card.memory_gib:.1f} GiB, compute capability {card.compute_capability:.1f}")
    if drivers := sorted({card.driver for card in machine.cards if card.driver}):
        sliced = {"Enabled": "on", "Disabled": "off"}
        states = [f"MIG {sliced[mig]}" for mig in sorted({card.mig for card in machine.cards if card.mig})]
        lines += _wrapped("driver", ", ".join((*drivers, *states)))
    lines += [] if machine.cards else _wrapped("cards", "none")
    built = ", ".join(machine.architectures) or "CPUs alone"
    lines += _wrapped("torch", f"{versions.get('torch', torch.__version__)}, built for {built}")
    lines += _troubles(machine, presets)
    lines += _wrapped("libraries", ", ".join(f"{name} {version}" for name, version in versions.items() if name != "torch"))
    return lines


def _troubles(machine: Machine, presets: Mapping[str, Hardware]) -> list[str]:
    """Cards that the installed torch cannot use, with what would."""
    lines = []
    for capability in sorted({card.compute_capability for card in machine.cards}):
        chip = _chip(capability)
        if not carries(machine.architectures, capability):
            lines += _wrapped("", f"! not for {chip}: install torch built for {_build(presets, capability)}")
        elif not machine.sees_cards:
            lines += _wrapped("", f"! does not see {chip}: the driver may be too old for this build, or CUDA_VISIBLE_DEVICES hides the card")
    return lines


def _advice(presets: Mapping[str, Hardware], machine: Machine, best: str, devices: int) -> list[str]:
    if not best:
        return ["no preset is for chips this old: medrag ... hardware=cpu"]
    chosen = presets[best]
    command = f"hardware={best}" + (f" hardware.devices={devices}" if devices != chosen.devices else "")
    lines = [f"best here: {command}"]
    if chosen.device == "cuda":
        lines.append(f"           torch for {chosen.torch_build}; faiss on the card: {chosen.faiss_build}")
        if obstacle(replace(chosen, devices=1), machine):
            lines.append("           with smaller hardware.micro_batch and hardware.micro_tokens: it is made for more memory")
        lines.append(f"then       medrag plan model=reference task=rag_token {command}")
    return lines


def _here(hardware: Hardware, machine: Machine, best: bool) -> str:
    found = obstacle(hardware, machine)
    if found and hardware.devices > 1 and not obstacle(replace(hardware, devices=1), machine):
        found = ""
    return found or ("best" if best else "yes")


def _weakest(machine: Machine) -> tuple[float, float]:
    """Least memory (GiB) and least compute capability of the cards."""
    return min(card.memory_gib for card in machine.cards), min(card.compute_capability for card in machine.cards)


def _chip(capability: float) -> str:
    return f"sm_{round(10 * capability)}"


def _build(presets: Mapping[str, Hardware], capability: float) -> str:
    """The builds of torch for a chip: those of the latest preset's chip up to it with the same first figure."""
    before = [card for card in presets.values() if card.device == "cuda" and card.compute_capability <= capability]
    alike = [card for card in before if int(card.compute_capability) == int(capability)]
    return max(alike, key=lambda card: card.compute_capability).torch_build if alike else _chip(capability)


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, initial_indent=f"{label:<11}", subsequent_indent=" " * 11)
