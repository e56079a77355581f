"""Ctrl-C and SIGTERM in training: the step in hand is finished and saved, then all processes stop together."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self


class Watch:
    """While entered, SIGINT and SIGTERM are noted in ``asked`` instead of ending the process; a second one ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
