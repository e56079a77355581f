"""A module's weights in safetensors: the same weights always give the same bytes, and shared tensors are written once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save(module: nn.Module, path: Path) -> None:
    """Write every tensor of the module under the first of its names. Raises OSError where the file cannot be written."""
    _write(named(module), path, None)


def named(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the module under the first of its names."""
    kept = _first_names(module)
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items() if name in kept}


def read(path: Path) -> dict[str, Tensor]:
    """The file's tensors by name. Raises ValueError where it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not whole safetensors ({error})") from error


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors under their names, marked as PyTorch's, which other programs ask for. Raises OSError where the file cannot be written."""
    _write({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def load(module: nn.Module, path: Path) -> None:
    """Fill the module. Raises ValueError where the file is damaged, or its tensors are not exactly the module's."""
    tensors = read(path)
    state = module.state_dict()
    given = {_place(state[name]) for name in tensors if name in state}
    missing = [name for name in state if _place(state[name]) not in given]
    extra = [name for name in tensors if name not in state]
    if missing or extra:
        raise ValueError(f"{path}: other weights are needed (missing: {missing[:3]}; extra: {extra[:3]})")
    try:
        module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: of another shape ({error})") from error


def _write(tensors: dict[str, Tensor], path: Path, about: dict[str, str] | None) -> None:
    try:
        save_file(tensors, path, metadata=about)
        path.chmod(0o644)  # safetensors leaves it to its owner alone
    except SafetensorError as error:
        # safetensors tells the reason in its message alone
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else OSError(f"{path}: {error}") from error


def _first_names(module: nn.Module) -> set[str]:
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in module.state_dict().items():
        seen.setdefault(_place(tensor), name)
    return set(seen.values())


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
