"""Presets -> a typed Run. The only importer of OmegaConf.

A run is model x hardware x task: dataclasses own the fields and their defaults, ``configs/AXIS/NAME.yaml`` holds deviations only, and
``key=value`` on the command line comes last. An unknown key or a wrong type is refused with the nearest valid name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from medrag import encoder, evaluate, generator, methods, plan, prepare, responses, serve, workers
from medrag.hardware import Hardware
from medrag.schedule import Task
from medrag.search import Search

AXES = {"model": "tiny", "hardware": "cpu", "task": "dense"}
"""the axes and the presets they start from"""
HOME = Path(__file__).parent.parent
EMPTY = "''"
"""what YAML takes for a text without a character; nothing at all is null to it"""


@dataclass
class Model:
    """The shapes of the networks."""

    encoder: encoder.Config = field(default_factory=encoder.Config)
    generator: generator.Config = field(default_factory=generator.Config)


@dataclass
class Run:
    """Everything a command may be told."""

    store: str = "store"
    """folder of all artifacts"""
    seed: int = 0
    model: Model = field(default_factory=Model)
    hardware: Hardware = field(default_factory=Hardware)
    task: Task = field(default_factory=Task)
    prepare: prepare.Config = field(default_factory=prepare.Config)
    workers: workers.Config = field(default_factory=workers.Config)
    index: Search = field(default_factory=Search)
    answer: responses.Config = field(default_factory=responses.Config)
    evaluate: evaluate.Config = field(default_factory=evaluate.Config)
    plan: plan.Config = field(default_factory=plan.Config)
    serve: serve.Config = field(default_factory=serve.Config)


def presets(axis: str) -> list[str]:
    """The names of an axis's presets."""
    return sorted(path.stem for path in (HOME / "configs" / axis).glob("*.yaml"))


def compose(arguments: Sequence[str]) -> Run:
    """``["model=tiny", "task.epochs=3", ...]`` -> Run. Raises ValueError that names the bad key or value and the allowed ones."""
    chosen, overrides = dict(AXES), []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is not of the form key=value")
        if name in AXES:
            if value not in presets(name):
                raise ValueError(f"{name}={value}; allowed: {', '.join(presets(name))}{_nearest(value, presets(name))}")
            chosen[name] = value
        else:
            overrides.append((name, value))
    layers = []
    for axis, preset in chosen.items():
        path = HOME / "configs" / axis / f"{preset}.yaml"
        layers.append((str(path), OmegaConf.create({axis: _read(path)})))
    for name, value in overrides:
        try:
            layers.append((f"{name}={value}", OmegaConf.from_dotlist([f"{name}={value or EMPTY}"])))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ValueError(f"{name}={value}: {_first_line(error)}") from error

    base = OmegaConf.structured(Run)
    method = next((layer.task.method for _, layer in reversed(layers) if OmegaConf.select(layer, "task.method") is not None), Task.method)
    base.task.options = OmegaConf.structured(methods.load(str(method)).Config)
    known = list(_keys(Run(), "")) + [f"task.options.{name}" for name in _keys(methods.load(str(method)).Config(), "")]
    known += [f"hardware.micro_batch.{name}" for name in ("default", *methods.names())]
    for name, value in overrides:
        if name not in known:
            raise ValueError(f"{name}={value}: there is no key {name}{_nearest(name, known)}")
    merged: DictConfig = base
    for where, layer in layers:
        try:
            merged = _merged(merged, layer)
        except OmegaConfBaseException as error:
            raise ValueError(_explain(where, error, known)) from error
    run = OmegaConf.to_object(merged)
    assert isinstance(run, Run)
    run.prepare.dictionary = _shipped(run.prepare.dictionary)
    run.index.synonyms = _shipped(run.index.synonyms)
    return run


def _shipped(name: str) -> str:
    """A file name as it is, or, where there is no such file here, the one beside the package."""
    return str(HOME / name) if name and not Path(name).exists() and (HOME / name).exists() else name


def show(run: Run) -> str:
    """Every key with its value, as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(run))).rstrip()


def _merged(base: DictConfig, layer: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(base, layer)
    assert isinstance(merged, DictConfig)
    return merged


def _read(path: Path) -> Any:
    try:
        return OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise ValueError(f"{path}: {_first_line(error)}") from error


def _keys(value: Any, prefix: str) -> Iterator[str]:
    """Every dotted key of a dataclass."""
    for entry in fields(value):
        name = f"{prefix}{entry.name}"
        yield name
        inner = getattr(value, entry.name)
        if is_dataclass(inner):
            yield from _keys(inner, name + ".")


def _explain(where: str, error: OmegaConfBaseException, known: Sequence[str]) -> str:
    key = str(getattr(error, "full_key", "") or "")
    if key and key not in known:
        return f"{where}: there is no key {key}{_nearest(key, known)}"
    return f"{where}: {_first_line(error)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        last = {key.rsplit(".", 1)[-1]: key for key in known}
        close = [last[key] for key in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.5)]
    return f"; did you mean {close[0]}?" if close else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
