"""train, and plan before it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from medrag.commands.endings import done, nothing


def train_command(positional: list[str], overrides: list[str]) -> int:
    from medrag import assemble, config, train

    nothing(positional, "train")
    run = config.compose(overrides)
    on_card = run.hardware.device == "cuda"
    if not train.launched() and (on_card or run.hardware.devices > 1):
        assemble.ready(run)
        if on_card:
            from medrag.assemble import planning

            if short := planning.shortage(run):
                print(f"medrag: {short}", file=sys.stderr)
        if run.hardware.devices > 1:
            return train.relaunch(overrides, run.hardware)
    try:
        artifact = assemble.train_method(run)
    except RuntimeError as error:
        raise train.parted(error) from error
    if artifact is None:
        return 0
    if (artifact.path / assemble.PICTURE).is_file():
        print(f"curves: {artifact.path / assemble.PICTURE}")
    board = assemble.workplace(run, artifact.manifest["key"]) / train.BOARD
    if board.is_dir():
        print(f"in TensorBoard: {shlex.join(['tensorboard', '--logdir', str(board)])}")
    done(artifact.path)
    print("\n".join(["next:", *_next(run.task.method, Path(run.store), overrides)]))
    return 0


def _next(name: str, store: Path, overrides: Sequence[str]) -> list[str]:
    """Commands that make use of the method that was trained, ready to paste, with the settings that they share with its training."""
    from medrag import files, methods

    kind = methods.the_class(name)
    if kind.learns_from is not methods.Method.learns_from:
        commands = [["train", "task=dense" if "encoder" in kind.needs else "task=closed_book", f"task.start={name}"]]
    elif "context_encoder" in kind.needs:
        commands = [["index", "build"]]
    else:
        commands = [["ask", "孕期可以喝咖啡吗？", f"answer.method={name}"]]
        if (store / "index" / files.CURRENT).exists():
            commands.append(["evaluate", f"evaluate.methods=[dense,{name}]"])
    shared = [word for word in overrides if re.match(r"(store|seed|model|hardware|workers|index)\b", word)]
    return [shlex.join(["medrag", *command, *shared]) for command in commands]


def plan_command(positional: list[str], overrides: list[str]) -> int:
    from medrag import config
    from medrag.assemble import planning

    if not positional:
        found = planning.plan(config.compose(overrides))
        print(found)
        return 0 if found.fits else 1
    if len(positional) != 2 or positional[0] != "--plot" or Path(positional[1]).suffix != ".png":
        raise ValueError(f"medrag plan {' '.join(positional)}: allowed: --plot FILE.png, key=value")
    if given := [word for word in overrides if word.startswith("task=")]:
        raise ValueError(f"medrag plan --plot draws {', '.join(planning.REFERENCE)}; it takes no {given[0]}")
    runs = [config.compose(["model=reference", "hardware=1080ti", *overrides, f"task={name}"]) for name in planning.REFERENCE]
    stages = planning.draw(runs, Path(positional[1]))
    print(planning.table(stages))
    print(f"picture: {positional[1]}")
    return 0 if all(plan.fits for plan in stages.values()) else 1
