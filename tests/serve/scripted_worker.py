"""A worker that does as its jobs' questions say, so that the queue before it can be timed: ``python scripted_worker.py NAME FOLDER``.

Questions: ``wait SECONDS``, ``die`` (the process ends), ``die once`` (only the first time that any worker is asked), ``fail``, ``silence`` (an answer
without text); anything else is answered at once. ``FOLDER/LOG`` gets a line for each batch and each cancelling. FOLDER/broken: does not come up.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main(name: str, folder: Path) -> None:
    if (folder / "broken").exists():
        say({"failed": "the store is broken"})
        return
    say({"ready": {"versions": {"dense": {"medrag": "0", "model": f"dense@{name}", "index": name}}, "vectors": True}})
    for line in sys.stdin.buffer:
        jobs = json.loads(line)
        if not isinstance(jobs, list):
            continue
        with open(folder / "log", "a", encoding="utf-8") as log:
            log.write(json.dumps([job["question"] for job in jobs]) + "\n")
        for job in jobs:
            do(job, name, folder)
        say({"idle": True})


def do(job: dict[str, Any], name: str, folder: Path) -> None:
    verb, _, rest = job["question"].partition(" ")
    once = folder / "died"
    if verb == "die" and not (rest == "once" and once.exists()):
        once.touch()
        os._exit(1)
    if verb == "fail":
        say({"job": job["job"], "error": "ValueError"})
        return
    if verb == "wait":
        time.sleep(float(rest))
    if job["do"] == "stream":
        for piece in range(50):
            say({"job": job["job"], "piece": f"{piece};"})
            time.sleep(0.02)
            if select.select([0], [], [], 0)[0] and os.read(0, 65536):
                with open(folder / "log", "a", encoding="utf-8") as log:
                    log.write(f"cancelled after {piece}\n")
                return
    said: dict[str, Any] = {"answer": "" if verb == "silence" else f"{name} {job['question']}", "method": "dense", "label": "AI"}
    said |= {"refused": False, "reason": "", "confidence": 0.5, "sentences": [], "withheld": {}, "evidence": [], "emergency": ""}
    said |= {"versions": {"medrag": "0", "model": f"dense@{name}", "index": name}, "usage": {"prompt": 1, "completion": 1}}
    say({"job": job["job"], "result": said})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
