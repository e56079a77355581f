"""medrag VERB [axis=preset ...] [key=value ...]"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from medrag.commands import VERBS

USAGE = """medrag: Chinese medical question answering with retrieval

  medrag prepare SOURCE... [--report]        raw files -> passages and examples; a page that shows what became of them
  medrag cut FOLDER                          a pretrained mT5 (transformers layout) cut to the corpus's vocabulary
  medrag plan [--plot FILE.png]              memory and time of a training run before it starts, and what makes it fit (status 1: it does not);
                                             with --plot those of the reference's stages (model=reference hardware=1080ti unless told)
  medrag train task=dense                    train a method (launches deepspeed where the hardware has several devices)
  medrag index build | verify                encode the passages; check the index
  medrag index add FILE... | remove ID...    add passages, or take some out, without building anew (remove --from FILE: one id a line)
  medrag ask QUESTION...                     answer, evidence, confidence
  medrag infer QUESTIONS.jsonl ANSWERS.jsonl batch inference, resumable
  medrag serve                               HTTP service with an API and a page, on http://127.0.0.1:8000
  medrag evaluate                            scores with intervals, and an HTML report
  medrag doctor                              what this machine has, and which presets fit

Each takes model=NAME hardware=NAME task=NAME and any key=value, as in: store=store/real task.epochs=3.
`medrag config` prints every key with its value."""
_OVERRIDE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*=.*", re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    """Run one command; 0 when it did what was asked, 2 when it could not, with one line on stderr."""
    words = [word for word in arguments if not re.fullmatch(r"--local_rank=\d+|--no_local_rank", word)]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        return _complain(f"there is no command {verb!r}; allowed: {', '.join(VERBS)}")
    overrides = [word for word in rest if _OVERRIDE.fullmatch(word)]
    positional = [word for word in rest if word not in overrides]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return VERBS[verb](positional, overrides)
    except (ValueError, OSError) as error:
        return _complain(str(error).strip().split("\n")[0] or type(error).__name__)
    except KeyboardInterrupt as stopped:
        return _complain(str(stopped) or "interrupted; run the same command again to go on", 130)
    except BrokenPipeError:
        return 0


def _complain(message: str, status: int = 2) -> int:
    """One line on stderr, from one of the processes that a launcher started."""
    signal.signal(signal.SIGTERM, _pass_over)
    launching = sys.modules.get("medrag.train.launching")
    if launching.first_to_say() if launching else os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"medrag: {message}", file=sys.stderr)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _pass_over)
    raise KeyboardInterrupt


def _pass_over(number: int, frame: FrameType | None) -> None:
    """A launcher sends SIGTERM after Ctrl-C, and to ranks whose fellow has ended: it must not break into the way out."""


def entry() -> None:
    """The ``medrag`` command."""
    status = main(sys.argv[1:])
    if "deepspeed" in sys.modules:
        # all is written and closed; the libraries' own threads, taken down with the interpreter, abort the process once in a few dozen times
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    entry()
