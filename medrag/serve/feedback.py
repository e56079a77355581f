"""Verdicts on answers, in SQLite, with the versions that gave them: no texts, nothing about who."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

_TABLE = """CREATE TABLE IF NOT EXISTS verdicts (
    answer TEXT PRIMARY KEY, verdict TEXT NOT NULL CHECK (verdict IN ('up', 'down')), method TEXT NOT NULL,
    medrag TEXT NOT NULL, model TEXT NOT NULL, "index" TEXT NOT NULL, at TEXT NOT NULL) WITHOUT ROWID"""


class Feedback:
    """One file; opened where the first verdict comes, and safe to share between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def put(self, answer: str, verdict: str, method: str, versions: Mapping[str, str]) -> None:
        """Keep a verdict (``up`` or ``down``) on an answer, in place of an earlier one. Raises OSError where the file cannot be written."""
        row = (answer, verdict, method, versions["medrag"], versions["model"], versions["index"], datetime.now(UTC).isoformat(timespec="seconds"))
        with self._lock:
            try:
                if self._connection is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._connection = sqlite3.connect(self.path, timeout=15, check_same_thread=False)
                    self._connection.execute(_TABLE)
                with self._connection:
                    self._connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            except sqlite3.Error as error:
                raise OSError(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Close the file, if it is open."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
