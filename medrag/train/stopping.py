"""A wish to stop: Ctrl-C, SIGTERM, or the end of what launched this process."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Self

import psutil

LAUNCHERS = ("deepspeed", "medrag")


class Watch:
    """While entered, a wish to stop is noted in ``asked``, and whoever watches decides when to follow it.

    ``fit`` looks once a step, all ranks together. A step is whole: new negatives are mined, the weights changed, the development examples
    validated where it is time for that, and only then is the run saved and left, so that it goes on later as if undisturbed. Where that takes
    too long, a second Ctrl-C raises KeyboardInterrupt at once; the run then goes on from its last checkpoint. A second SIGTERM does not:
    launchers send one after the Ctrl-C that a terminal has sent to all processes already. ``deepspeed`` itself ends its processes for good
    30 seconds after it was told to stop; ``launching.relaunch`` waits for them.

    The end of a launcher is such a wish too: nobody would be left to stop or to hear of what it started.
    """

    def __init__(self) -> None:
        self._noted: list[int] = []
        self._launchers = _launchers()

    @property
    def asked(self) -> bool:
        return bool(self._noted) or any(map(_ended, self._launchers))

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt:
            return  # a launcher's late SIGTERM must not break into the way out
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in self._noted:
            raise KeyboardInterrupt
        self._noted.append(number)


def _launchers() -> list[psutil.Process]:
    """The processes right above this one that launched it: DeepSpeed's launchers and ``medrag train``, of which there may be none."""
    return list(itertools.takewhile(_is_launcher, psutil.Process(os.getpid()).parents()))


def _is_launcher(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()[:4]
    except psutil.Error:
        return False
    return any(Path(word).name.partition(".")[0] in LAUNCHERS for word in words)


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
