"""What a machine has and which presets fit it: machines made up from what vendors' cards report, and the one the tests run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from commands import medrag

from medrag import config
from medrag.hardware import Hardware
from medrag.plan.machine import Card, Machine, carries, doctor, nearest, obstacle, read_cards, read_processor, this_machine

LEGACY = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CURRENT = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
GTX_1080_TI = Card("NVIDIA GeForce GTX 1080 Ti", 10.91, 6.1)
TITAN_V = Card("NVIDIA TITAN V", 11.77, 7.0)
T4 = Card("Tesla T4", 14.56, 7.5)
RTX_2080_TI = Card("NVIDIA GeForce RTX 2080 Ti", 10.57, 7.5)
RTX_3080 = Card("NVIDIA GeForce RTX 3080", 9.77, 8.6)
RTX_3090 = Card("NVIDIA GeForce RTX 3090", 23.69, 8.6)
L4 = Card("NVIDIA L4", 22.03, 8.9)
RTX_4090 = Card("NVIDIA GeForce RTX 4090", 23.53, 8.9)
A100_40 = Card("NVIDIA A100-SXM4-40GB", 39.39, 8.0)
H200 = Card("NVIDIA H200", 139.8, 9.0)
B200 = Card("NVIDIA B200", 178.4, 10.0)
GTX_980 = Card("NVIDIA GeForce GTX 980", 3.9, 5.2)


def machine(*cards: Card, cores: int = 8, architectures: tuple[str, ...] = LEGACY, sees_cards: bool = True) -> Machine:
    return Machine(cores, 64, 500, True, cards, "AMD EPYC", ("AVX2",), sees_cards, architectures)


@pytest.fixture(scope="module")
def presets() -> dict[str, Hardware]:
    return {name: config.compose([f"hardware={name}"]).hardware for name in config.presets("hardware")}


@pytest.mark.parametrize(
    ("cards", "name", "devices"),
    [
        ((), "cpu", 2),
        ((GTX_1080_TI,) * 3, "1080ti", 2),
        ((GTX_1080_TI,), "1080ti", 1),
        ((T4,), "t4", 1),
        ((RTX_2080_TI,) * 2, "2080ti", 2),
        ((RTX_3090,), "3090", 1),
        ((L4,), "a10", 1),
        ((RTX_4090,) * 4, "4090", 4),
        ((A100_40,) * 8, "a100-40g", 8),
        ((H200,), "h200", 1),
        ((B200,), "h200", 1),
        ((TITAN_V,), "1080ti", 1),
        ((RTX_2080_TI, GTX_1080_TI), "1080ti", 2),
        ((RTX_3080,), "2080ti", 1),
        ((GTX_980,), "", 1),
    ],
)
def test_the_nearest_preset(presets: dict[str, Hardware], cards: tuple[Card, ...], name: str, devices: int) -> None:
    """By the weakest card's chip, then by its memory."""
    assert nearest(presets, machine(*cards)) == (name, devices)


def test_a_single_core_gets_a_single_process(presets: dict[str, Hardware]) -> None:
    assert nearest(presets, machine(cores=1)) == ("cpu", 1)
    assert obstacle(presets["cpu"], machine(cores=1)) == "1 of 2 cores"
    assert "best here: hardware=cpu hardware.devices=1" in doctor(machine(cores=1), presets, {})


def test_why_a_preset_does_not_fit(presets: dict[str, Hardware]) -> None:
    assert obstacle(presets["1080ti"], machine()) == "no card"
    assert obstacle(presets["1080ti"], machine(GTX_1080_TI)) == "1 of 2 cards"
    assert obstacle(presets["1080ti"], machine(GTX_1080_TI, GTX_1080_TI)) == ""
    assert obstacle(presets["t4"], machine(RTX_2080_TI)) == "10.6 of 14.6 GiB"
    assert obstacle(presets["2080ti"], machine(GTX_1080_TI, RTX_2080_TI)) == "sm_61 is not sm_75", "the weakest card counts"
    assert obstacle(presets["p100"], machine(T4)) == "14.6 of 15.9 GiB"


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (LEGACY, 6.1, True),
        (CURRENT, 6.1, False),
        (CURRENT, 7.0, False),
        (LEGACY, 7.0, True),
        (CURRENT, 8.9, True),
        (LEGACY, 10.0, False),
        (CURRENT, 12.1, True),
        (("compute_70",), 9.0, True),
        (("compute_70",), 6.1, False),
        (("sm_86",), 8.0, False),
        (("sm_90a",), 9.0, True),
        (("sm_100a", "compute_100a"), 10.3, False),
        ((), 7.5, False),
    ],
)
def test_which_chips_code_runs_on(architectures: tuple[str, ...], capability: float, runs: bool) -> None:
    assert carries(architectures, capability) is runs


def test_doctor_names_the_build_that_a_card_needs(presets: dict[str, Hardware]) -> None:
    """Whether torch was built for later chips, for CPUs alone, or cannot see the card."""
    for card, build in ((GTX_1080_TI, "CUDA 12.6, torch 2.14 at most"), (TITAN_V, "CUDA 12.6, torch 2.14 at most")):
        report = doctor(machine(card, architectures=CURRENT), presets, {"torch": "2.13.0+cu130"})
        assert f"! not for sm_{round(10 * card.compute_capability)}: install torch built for {build}" in report
        assert "!" not in doctor(machine(card), presets, {"torch": "2.13.0+cu126"})
    assert doctor(machine(T4, T4, architectures=()), presets, {}).count("! not for sm_75: install torch built for CUDA 12.6 or 13") == 1
    assert "! not for sm_100: install torch built for sm_100" in doctor(machine(B200), presets, {})
    assert "! does not see sm_75: the driver may be too old" in doctor(machine(T4, sees_cards=False), presets, {})


def test_doctor_says_what_to_ask_for(presets: dict[str, Hardware]) -> None:
    lines = doctor(machine(GTX_1080_TI), presets, {"torch": "2.13.0+cu126"}).splitlines()
    assert "card 0     NVIDIA GeForce GTX 1080 Ti, 10.9 GiB, compute capability 6.1" in lines
    assert "best here: hardware=1080ti hardware.devices=1" in lines
    assert any("torch for CUDA 12.6, torch 2.14 at most; faiss on the card: none" in line for line in lines)
    table = {cells[0]: line for line in lines if (cells := line.split()) and cells[0] in presets}
    assert list(table)[:2] == ["1080ti", "cpu"] and set(table) == set(presets), "what fits stands first"
    assert table["1080ti"].endswith(" best") and table["cpu"].endswith(" yes") and table["3090"].endswith(" 10.9 of 23.6 GiB")
    assert "it is made for more memory" in doctor(machine(RTX_3080), presets, {})
    assert "made for more" not in doctor(machine(T4), presets, {})
    assert "no preset is for chips this old" in doctor(machine(GTX_980), presets, {})
    sliced = Card("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 39.25, 8.0, "580.82.07", "Enabled")
    report = doctor(machine(sliced), presets, {})
    assert "driver     580.82.07, MIG on" in report and "best here: hardware=a100-40g" in report


@pytest.mark.parametrize("cards", [(), (GTX_1080_TI,) * 4, (B200,) * 8, (RTX_3080,), (GTX_980,)])
def test_doctor_keeps_to_a_hundred_columns(presets: dict[str, Hardware], cards: tuple[Card, ...]) -> None:
    versions = dict.fromkeys(("medrag", "torch", "transformers", "faiss-cpu", "deepspeed", "tokenizers", "sentencepiece"), "1.23.456+cu126")
    assert max(map(len, doctor(machine(*cards, architectures=CURRENT), presets, versions).splitlines())) <= 100


def test_what_the_system_says_is_read() -> None:
    a100, gtx = "NVIDIA A100-SXM4-80GB, 81920, 8.0, 580.82.07, Enabled", "NVIDIA GeForce GTX 1080 Ti, 11264, 6.1, 580.82.07, [N/A]"
    told = f"{a100}\n{gtx}\nOther, [N/A], 9.0, 580.82.07, [N/A]\n"
    assert read_cards(told) == [
        Card("NVIDIA A100-SXM4-80GB", 80.0, 8.0, "580.82.07", "Enabled"),
        Card("NVIDIA GeForce GTX 1080 Ti", 11.0, 6.1, "580.82.07"),
    ]
    assert read_cards("") == []
    two = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nprocessor\t: 1\nmodel name\t: other\n"
    assert read_processor(two) == ("AMD EPYC 9B14", ("AVX2", "AVX-512", "bf16"))
    assert read_processor("processor : 0\nFeatures : fp asimd bf16\n") == ("", ("bf16",))
    assert read_processor("") == ("", ())


def test_this_machine(tmp_path: Path) -> None:
    found = this_machine(tmp_path / "store" / "that is not there yet")
    assert found.cores == len(os.sched_getaffinity(0)) and found.memory_gib > 0 and found.disk_free_gib > 0
    assert len(found.cards) >= torch.cuda.device_count()
    assert found.sees_cards is (torch.cuda.device_count() > 0)
    assert found.architectures == tuple(torch.cuda.get_arch_list())


def test_the_command() -> None:
    done = medrag("doctor", "hardware.devices=1", "store=no/such/folder")
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"machine    {len(os.sched_getaffinity(0))} cores") and any(line.startswith("best here: hardware=") for line in lines)
    assert {line.split()[0] for line in lines if line} >= set(config.presets("hardware"))
