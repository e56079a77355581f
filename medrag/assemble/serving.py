"""The service put together: the process that speaks HTTP, and the processes that answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import medrag
from medrag import config, files, responses, serve
from medrag.assemble import trained
from medrag.config import Run

if TYPE_CHECKING:
    from medrag.serve.shield import Shield

TOKEN = "MEDRAG_TOKEN"


def check(run: Run) -> str:
    """The token, empty where there is none. Raises ValueError where the service could not be started: values, address, methods."""
    responses.check(run.answer)
    found = token(run)
    serve.check(run.serve, found)
    pins(run)
    return found


def token(run: Run) -> str:
    """The first line of the token's file, else the environment's. Raises ValueError where the file is missing or empty."""
    if not run.serve.token_file:
        return os.environ.get(TOKEN, "").strip()
    try:
        found = Path(run.serve.token_file).read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"serve.token_file={run.serve.token_file}: cannot be read ({type(error).__name__})") from error
    if not found:
        raise ValueError(f"serve.token_file={run.serve.token_file}: its first line is empty")
    return found


def pins(run: Run) -> dict[str, str]:
    """What CURRENT names of all that the methods answer from: cheap, nothing is opened. Raises ValueError where there is none."""
    store = Path(run.store)
    found = {}
    for name in (*run.serve.methods, "index"):
        kind, _, version = name.partition("@")
        pointer = store / kind / files.CURRENT
        if version or (name == "index" and not pointer.is_file()):
            continue
        if not pointer.is_file():
            files.current(store, name)  # says what to do
        found[kind] = pointer.read_text("utf-8").strip()
    return found


def application(run: Run, token: str) -> Shield:
    """The ASGI application of a run, for any server: it starts its own workers, and stops them."""
    from medrag.serve import app
    from medrag.serve.feedback import Feedback
    from medrag.serve.measures import Measures
    from medrag.serve.pool import Pool

    measures = Measures()
    command = [sys.executable, "-m", "medrag.assemble.serving", json.dumps(asdict(run))]
    pool = Pool(run.serve, command, lambda: pins(run), measures)
    feedback = Feedback(Path(run.serve.feedback or Path(run.store) / "feedback.sqlite"))
    return app.application(run.serve, token, run.answer.evidence, pool, measures, feedback)


def run_service(run: Run) -> None:
    """Serve until told to stop. Raises ValueError where it could not be started."""
    from medrag.serve import sockets

    token = check(run)
    if run.serve.cluster:
        _run_replicas(run, token)
    else:
        sockets.run(application(run, token), run.serve)


def _run_replicas(run: Run, token: str) -> None:
    """The same on a Ray cluster; what is said of folders and cores is made to hold on every machine."""
    from medrag.serve import cluster

    feedback = run.serve.feedback and str(Path(run.serve.feedback).resolve())
    hardware = replace(run.hardware, threads=run.hardware.threads or 1)
    run = replace(run, store=str(Path(run.store).resolve()), hardware=hardware, serve=replace(run.serve, feedback=feedback))
    cluster.run(partial(application, run, token), run.serve, run.serve.workers * hardware.threads, int(hardware.device == "cuda"))


def work(run: Run) -> None:
    """The life of a worker: opens the newest versions, then answers what comes on stdin until that ends."""
    from medrag.serve.worker import Worker

    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    try:
        threads = run.hardware.threads or max(1, (len(os.sched_getaffinity(0)) - 1) // run.serve.workers)  # a core is left for HTTP
        opened = {name: trained.newest(Path(run.store), name) for name in run.serve.methods}
        methods = {name: trained.live(run, *found) for name, found in opened.items()}
        torch.set_num_threads(threads)
    except (ValueError, OSError) as error:
        out.write(json.dumps({"failed": str(error).split("\n")[0]}).encode() + b"\n")
        out.flush()
        return
    Worker(methods, {name: versions(*found) for name, found in opened.items()}, run.answer).run(sys.stdin.buffer, out)


def versions(artifact: files.Artifact, index: files.Artifact | None) -> dict[str, str]:
    """What an answer says of what gave it."""
    return {"medrag": medrag.__version__, "model": f"{artifact.kind}@{artifact.path.name}", "index": index.path.name if index else ""}


def _typed(values: Mapping[str, object]) -> Run:
    """The run that ``asdict`` was made of, as far as answering needs it."""
    kept = {name: value for name, value in values.items() if name in ("store", "hardware", "answer", "serve")}
    run: Run = trained.typed(config.Run, kept)
    return run


def main(arguments: Sequence[str]) -> None:
    """``python -m medrag.assemble.serving RUN`` is a worker."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service tells it when to end
    work(_typed(json.loads(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
