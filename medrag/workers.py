"""Many small tasks on all cores of this machine, or on a Ray cluster.

A task is a name; its function writes files below a folder that all workers share and returns nothing. So a result does not depend on
who made it, and a task whose files are there need not be done again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Task = Callable[[str], None]
"""a function that can be pickled for a process: of a module, or ``functools.partial`` of one"""


@dataclass
class Config:
    """Who works."""

    processes: int = 0
    """processes on this machine; 0: one for each core, 1: none beside this one"""
    cluster: str = ""
    """empty: this machine; ``local``: a Ray cluster made here for this run, with ``processes`` workers; else the address of a Ray cluster
    that shares the store's folder, or ``auto``. Needs ``pip install 'medrag[cluster]'``"""


class Workers:
    """``with Workers(config) as workers: for name in workers.run(function, names): ...``"""

    def __init__(self, config: Config) -> None:
        if config.processes < 0:
            raise ValueError(f"workers.processes={config.processes}; allowed: 0 (all cores) or more")
        self.config = config
        self.processes = config.processes or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[BaseProcess] = set()
        self._ray: Any = None

    def __enter__(self) -> Self:
        if self.config.cluster:
            self._ray = _with_data(connect("workers.cluster", self.config.cluster, self.processes))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            if kind is not None:
                # What is half done will be done again: nobody should wait for it.
                for child in set(multiprocessing.active_children()) - self._others:
                    child.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._ray is not None:
            self._ray.shutdown()

    def run(self, function: Task, names: Sequence[str]) -> Iterator[str]:
        """Do every task and yield its name when it is done, in any order. Raises the first error of a task."""
        if self._ray is not None:
            yield from _on_cluster(self._ray, function, names)
        elif self.processes == 1 or len(names) < 2:
            for name in names:
                function(name)
                yield name
        else:
            yield from self._in_processes(function, names)

    def _in_processes(self, function: Task, names: Sequence[str]) -> Iterator[str]:
        if self._pool is None:
            self._others = set(multiprocessing.active_children())
            self._pool = ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn"), initializer=_start)
        futures = {self._pool.submit(function, name): name for name in names}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise OSError("a worker process was ended from outside (out of memory?); run the same command again to go on") from error
        finally:
            for future in futures:
                future.cancel()


def _start() -> None:
    """In a worker: Ctrl-C is the parent's business, and no worker outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def connect(key: str, cluster: str, processes: int, store_bytes: int | None = None) -> Any:
    """Ray, connected to a cluster made here (``local``) for so many processes, with an object store of so many bytes, or to one at an address.

    ``shutdown()`` of what is given disconnects, and ends a cluster made here. That one takes no orders but with a token which is drawn here.
    ``key`` is what asks for the cluster. Raises ValueError where Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster == "local" and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"{key}={cluster!r} needs Ray: pip install 'medrag[cluster]'") from error
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if cluster == "local":
        ray.init(num_cpus=processes, include_dashboard=False, object_store_memory=store_bytes, **quiet)
    else:
        ray.init(address=cluster, **quiet)
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def _with_data(ray: Any) -> Any:
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _on_cluster(ray: Any, function: Task, names: Sequence[str]) -> Iterator[str]:
    """Through Ray Data: one row a task, one block a row, so that a lost worker costs one task."""
    if not names:
        return

    home = Path.cwd()

    def task(row: dict[str, str]) -> dict[str, str]:
        os.chdir(home)
        function(row["name"])
        return row

    tasks = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
    try:
        for row in tasks.map(task).iter_rows():
            yield row["name"]
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, ValueError | OSError) else error) from error
