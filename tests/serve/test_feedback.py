"""Verdicts in SQLite: the last one counts, from several processes, and a file that cannot be written is told of."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from medrag.serve.feedback import Feedback

VERSIONS = {"medrag": "0.1.0", "model": "dense@v000001-ab", "index": "v000001-cd"}


def rows(path: Path) -> list[tuple[str, ...]]:
    with sqlite3.connect(path) as connection:
        found = connection.execute('SELECT answer, verdict, method, medrag, model, "index" FROM verdicts ORDER BY answer').fetchall()
    connection.close()
    return found


def test_the_last_verdict_on_an_answer_counts(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "deep" / "feedback.sqlite")
    feedback.put("a", "up", "dense", VERSIONS)
    feedback.put("b", "down", "dense", VERSIONS)
    feedback.put("a", "down", "dense", VERSIONS)
    feedback.close()
    assert rows(feedback.path) == [(name, "down", "dense", "0.1.0", "dense@v000001-ab", "v000001-cd") for name in "ab"]


def test_several_connections_write_to_one_file(tmp_path: Path) -> None:
    several = [Feedback(tmp_path / "feedback.sqlite") for _ in range(4)]

    def write(number: int) -> None:
        for count in range(25):
            several[number].put(f"{number}.{count}", "up", "dense", VERSIONS)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for feedback in several:
        feedback.close()
    assert len(rows(tmp_path / "feedback.sqlite")) == 100


def test_a_file_that_cannot_be_written_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    feedback = Feedback(tmp_path / "file" / "feedback.sqlite")
    with pytest.raises(OSError, match=r"feedback.sqlite|File exists|Not a directory"):
        feedback.put("a", "up", "dense", VERSIONS)
    (tmp_path / "file").unlink()
    feedback.put("a", "up", "dense", VERSIONS)
    feedback.close()
    assert len(rows(feedback.path)) == 1
