"""doctor and config: what there is."""

from __future__ import annotations

from pathlib import Path

from medrag.commands.endings import nothing


def doctor(positional: list[str], overrides: list[str]) -> int:
    from medrag import config, files
    from medrag.plan import machine

    nothing(positional, "doctor")
    presets = {name: config.compose([*overrides, f"hardware={name}"]) for name in config.presets("hardware")}
    found = machine.this_machine(Path(presets["cpu"].store))
    print(machine.doctor(found, {name: run.hardware for name, run in presets.items()}, files.versions()))
    return 0


def config_command(positional: list[str], overrides: list[str]) -> int:
    from medrag import config

    nothing(positional, "config")
    print(config.show(config.compose(overrides)))
    return 0
