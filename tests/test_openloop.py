"""The generator of tests/benchmarks/serving.py: its statistics, what it reads of a response, and that a stall makes all that was due in it late."""

from __future__ import annotations

import importlib.util
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PATH = Path(__file__).parent / "benchmarks" / "openloop.py"


@pytest.fixture(scope="module")
def openloop() -> Iterator[Any]:
    """The benchmark's module, by its path."""
    spec = importlib.util.spec_from_file_location("openloop", PATH)
    assert spec and spec.loader
    module = sys.modules["openloop"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["openloop"]


def test_arrivals_are_poisson(openloop: Any) -> None:
    times = openloop.arrivals(500.0, 60.0, np.random.default_rng(0))
    gaps = np.diff(times)
    assert (gaps > 0).all() and times[0] > 0 and times[-1] < 60
    assert len(times) == pytest.approx(30_000, rel=0.02)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.02) and gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    counts = np.bincount(times.astype(int), minlength=60)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.5)


def test_a_quantile_is_a_value_that_was_measured(openloop: Any) -> None:
    values = np.arange(1.0, 101.0)
    assert [openloop.quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert openloop.quantile(values[:3], 0.99) == 3
    assert math.isnan(openloop.quantile(values[:0], 0.99))


def test_a_few_jumps_do_not_bend_the_slope(openloop: Any) -> None:
    rng = np.random.default_rng(0)
    times = np.arange(0.0, 1800.0, 10.0)
    values = 500 + 0.01 * times + rng.normal(0, 0.5, len(times))
    values[rng.choice(len(times), 30, replace=False)] += 200
    assert openloop.slope(times, values) == pytest.approx(0.01, rel=0.1)
    assert openloop.slope(times[:1], values[:1]) == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", (200, 38, 43, math.nan, True)),
        (b"HTTP/1.1 429 No\r\nretry-after: 2\r\nCONNECTION: close\r\ncontent-length: 0\r\n\r\n", (429, 73, 73, 2.0, False)),
        (b"HTTP/1.1 204 \r\n\r\n", (204, 17, 17, math.nan, True)),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
    ],
)
def test_of_a_response_its_head_is_read(openloop: Any, data: bytes, expected: tuple[object, ...] | None) -> None:
    found = openloop.head_of(data)
    assert (found is None) == (expected is None)
    assert found is None or repr(tuple(found)) == repr(expected)


def test_without_a_length_there_is_no_response(openloop: Any) -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        openloop.head_of(b"HTTP/1.1 200 OK\r\n\r\n{}")


def test_a_stall_makes_all_late_that_was_due_in_it(openloop: Any) -> None:
    """One connection at a time, a service that stalls for 0.3 s: a tenth of the requests at least waited, and their latencies say so."""
    stall = threading.Event()

    def serve(listening: socket.socket) -> None:
        one, _ = listening.accept()
        with one:
            for number in range(10_000):
                if not one.recv(65536):
                    return
                if number == 20 and not stall.is_set():
                    stall.set()
                    time.sleep(0.3)
                status = b"429 Busy\r\nRetry-After: 1" if number % 10 == 9 else b"200 OK"
                one.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=[listening])
        thread.start()
        plan = openloop.Plan(listening.getsockname()[1], ["问一", "问二"], 0.7, rate=200.0, most_connections=1, drain_seconds=10.0)
        driver = openloop.Driver(plan)
        driver.run()
        thread.join()
    status, seconds = np.array(driver.status), np.array(driver.done_at) - np.array(driver.due_at)
    assert set(status.tolist()) == {200, 429} and not driver.errors
    assert (np.isnan(driver.retry) == (status == 200)).all()
    assert driver.opened == 1 and driver.held > 10
    assert seconds.max() > 0.28 and (seconds > 0.1).sum() > 0.1 * len(seconds)
