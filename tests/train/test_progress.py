"""What a person is told while it trains, what the logs keep, and the commands at the end."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from commands import DENSE, TINY, copy_of, medrag
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st

from medrag import config, methods
from medrag.commands import VERBS, training
from medrag.methods import Batch, Parts
from medrag.schedule import Task
from medrag.train import progress
from medrag.train.checkpoints import State
from medrag.train.progress import Line, Pace, Progress


@given(st.integers(1, 300), st.integers(1, 120), st.floats(0.01, 50), st.floats(0.0, 500), st.integers(0, 299))
def test_the_time_left_is_that_of_steps_and_validations(steps: int, every: int, step_seconds: float, validation_seconds: float, start: int) -> None:
    """Where each takes as long as the others: exact from the first validation on, a lower bound before; wherever the run was resumed."""
    start = start % steps
    pace, now = Pace(steps, every, start, 1000.0, []), 1000.0
    validations = [step for step in range(start + 1, steps + 1) if step % every == 0 or step == steps]
    end = now + (steps - start) * step_seconds + len(validations) * validation_seconds
    for step in range(start + 1, steps + 1):
        now += step_seconds
        pace.step(step, now, 4, 100)
        if step in validations:
            now += validation_seconds
            pace.validation(step, validation_seconds)
        left, all_of_it = pace.left()
        assert all_of_it == (step >= validations[0])
        assert left == pytest.approx(end - now if all_of_it else (steps - step) * step_seconds, abs=1e-6 * end)
        assert pace.per_second() == pytest.approx((4 / step_seconds, 100 / step_seconds), rel=1e-5)


def test_speed_is_of_late() -> None:
    pace = Pace(1000, 1000, 0, 0.0, [])
    for step in range(1, 200):
        pace.step(step, step * 10.0, 1, 10)
    for step in range(1, progress.PACE_STEPS + 1):
        pace.step(199 + step, 1990.0 + step, 1, 10)
    assert pace.per_second() == pytest.approx((1.0, 10.0))


@pytest.mark.parametrize(
    ("state", "measure", "per_second", "expected"),
    [
        (State(step=3), "", (2.5, 0.0), "step 3/9120  loss -  2.5 examples/s  1.3 GiB  0:00:07+ left"),
        (
            State(step=340, recent=[9.0] * 30 + [2.0] * 20, best=0.4121, best_step=300),
            "MRR@10",
            (40.0, 12345.6),
            "step 340/9120  loss 2.000  best MRR@10 0.412 at 300  12346 tokens/s  1.3 GiB  0:00:07+ left",
        ),
        (
            State(step=1, recent=[2.5], best=-3.25, best_step=1, skipped=2),
            "minus_nats",
            (40.0, 60.0),
            "step 1/9120  loss 2.500  best dev 3.250 nats at 1  60 tokens/s  1.3 GiB  0:00:07+ left  2 skipped",
        ),
    ],
)
def test_the_line(state: State, measure: str, per_second: tuple[float, float], expected: str) -> None:
    assert progress.words(state, 9120, measure, per_second, 1.26, "0:00:07+ left") == expected


def test_the_line_fits() -> None:
    state = State(step=123_456, recent=[123.456], best=-12.345, best_step=120_000, skipped=12)
    assert len(progress.words(state, 999_999, "minus_nats", (999.0, 654_321.0), 139.9, "123:45:56+ left")) <= 120
    assert (progress.clock(59.6), progress.clock(3661), progress.clock(360_000)) == ("0:01:00", "1:01:01", "100:00:00")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_and_a_file_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    shown, kept = Terminal(), io.StringIO()
    for stream in (shown, kept):
        line = Line(stream)
        for tenth in range(1000):
            if line.due(tenth / 10):
                line.draw(f"step {tenth}, and words that are too long", tenth / 10)
        line.say("a note")
        line.end()
    lines = kept.getvalue().split("\n")
    assert lines == [f"step {tenth}, and words that are too long" for tenth in (0, 300, 600, 900)] + ["a note", ""]
    assert shown.getvalue().count("\n") == 2, "the note, and the end"
    drawn = shown.getvalue().replace("\x1b[K", "").split("\r")
    assert drawn[-2:] == ["a note\n", "step 995, and words\n"] and max(map(len, drawn)) == 20
    assert len(drawn) == 1 + 200 + 2


def written(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_a_resumed_log_goes_on_where_its_checkpoint_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seconds count on, rows after the checkpoint go, one that was cut short too, and the name of the best score is not forgotten."""
    now = [5000.0]
    monkeypatch.setattr("medrag.train.progress.time.monotonic", lambda: now[0])

    def go(state: State, until: int) -> None:
        with Progress(tmp_path, Task("dense"), state, 10, 4, torch.device("cpu"), shown=True) as told:
            while state.step < until:
                now[0] += 10
                state.step += 1
                state.recent.append(2.0)
                told.step(2.0, 1e-3, 24.0, 240.0, taken=True)
                if state.step == 4:
                    now[0] += 7
                    state.best, state.best_step = 0.5, 4
                    told.validated(0.5, {"MRR@10": 0.5, "recall@1": 0.25}, 7.0)

    go(State(), 6)
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"step": 6, "sec')
    now[0] += 100_000
    capsys.readouterr()
    go(State(step=5, best=0.5, best_step=4), 8)
    rows = [row for row in written(tmp_path) if "loss" in row]
    assert [(row["step"], row["seconds"]) for row in rows] == [(step, 10 * step + 7 * (step > 4)) for step in range(1, 9)]
    (measured,) = [row for row in written(tmp_path) if "validation" in row]
    assert measured | {"memory_gib": 0} == {
        "step": 4,
        "seconds": 47,
        "validation": 0.5,
        "validation_seconds": 7.0,
        "validation/MRR@10": 0.5,
        "validation/recall@1": 0.25,
        "examples_per_second": 2.4,
        "tokens_per_second": 24.0,
        "memory_gib": 0,
    }
    assert 0.05 < measured["memory_gib"] < 100
    begun, *lines = capsys.readouterr().err.splitlines()
    curves = f"curves: tensorboard --logdir {tmp_path}/tensorboard"
    assert begun == f"training dense: 10 steps of 24 examples, 5 of them done, a validation every 4; {curves}"
    assert re.sub(r"[\d.]+ GiB", "GiB", lines[0]) == "step 6/10  loss 2.000  best MRR@10 0.500 at 4  24 tokens/s  GiB  0:00:54 left"
    assert lines[-1].startswith("step 8/10") and lines[-1].endswith("0:01:27 in all")


def test_what_was_skipped_is_logged_apart(tmp_path: Path) -> None:
    state = State()
    with Progress(tmp_path, Task(), state, 4, 4, torch.device("cpu"), shown=True) as told:
        for step, (loss, skipped, taken) in enumerate([(2.0, 0, True), (math.nan, 1, False), (1e9, 2, False), (2.0, 0, False)], 1):
            state.step, state.skipped_in_a_row, state.skipped = step, skipped, max(state.skipped, skipped)
            told.step(loss, 1e-3, 24.0, 0.0, taken)
    rows = [{name: value for name, value in row.items() if name in ("loss", "skipped", "skipped_loss", "overflowed")} for row in written(tmp_path)]
    assert rows == [{"loss": 2.0}, {"skipped": 1}, {"skipped": 2, "skipped_loss": 1e9}, {"loss": 2.0, "overflowed": 1}]
    quiet = Progress(tmp_path / "nowhere", Task(), state, 4, 4, torch.device("cpu"), shown=False)
    with quiet:
        quiet.step(1.0, 1e-3, 24.0, 0.0, taken=True)
        quiet.note("nothing")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", methods.names())
def test_tokens_are_those_of_the_texts(name: str, tiny: Tiny) -> None:
    """Padding is not counted; what a method looks up in its forward pass is not known, so its speed is told in examples."""
    module = methods.load(name)
    needs = methods.the_class(name).needs
    parts = Parts(tiny.retriever(), tiny.generator(), tiny.library, encoder=tiny.encoder(), wordpiece=tiny.wordpiece)
    method = module.build(module.Config(**({"tokens": 48} if "tokens" in module.Config.__dataclass_fields__ else {})), parts)
    examples = list(method.learns_from(tiny.examples[:5], tiny.passages))[:5]
    counted = progress.count_tokens(method.collate(examples))
    assert counted == sum(progress.count_tokens(method.collate([example])) for example in examples) or name == "dense"
    if "index" in needs:
        assert counted == 0
        return
    assert counted > 0
    if name == "closed_book":
        texts = [text for example in examples for text in (example.question, example.answers[0])]
        assert counted == sum(len(tiny.sentencepiece.encode(text, 256)) for text in texts)
    if name == "mlm":
        assert counted == sum(int(tiny.wordpiece.batch([example.answers[0]], 48)[1].sum()) for example in examples)


def test_tokens_of_masks_and_targets() -> None:
    mask_BL = torch.tensor([[True, True, False], [True, False, False]])
    target_BT = torch.tensor([[5, 6, 1, 0], [7, 1, 0, 0]])
    assert progress.count_tokens(Batch((), {"source_BL": mask_BL.long(), "mask_BL": mask_BL, "target_BT": target_BT}, 5)) == 3 + 5
    assert progress.count_tokens(Batch((), {"target_BT": target_BT}, 5)) == 0


SHARED = ["store=a b/store", "model=small", "model.encoder.dropout=0.1", "hardware=2080ti", "hardware.devices=1"]
OWN = ["task.epochs=3", "task.options.teacher=", "answer.decoding.beams=4"]
"""of this training alone"""


@pytest.mark.parametrize("name", methods.names())
def test_the_next_commands_can_be_pasted(name: str, tmp_path: Path) -> None:
    """A shell gives them back as they are, each key is known, and what was said of store, model and card is said again."""
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "CURRENT").write_text("v000001\n", "utf-8")
    for store in (tmp_path / "empty", tmp_path):
        found = [shlex.split(line) for line in training._next(name, store, [f"task={name}", *SHARED, *OWN])]
        for program, verb, *words in found:
            assert program == "medrag" and verb in VERBS
            assert words[-len(SHARED) :] == SHARED
            run = config.compose([word for word in words if "=" in word])
            assert run.store == "a b/store" and run.hardware.device == "cuda" and not set(words) & set(OWN)
        plain = [" ".join(words[1 : -len(SHARED)]) for words in found]
        asked = f"ask 孕期可以喝咖啡吗？ answer.method={name}"
        expected = {
            "dense": ["index build"],
            "mlm": ["train task=dense task.start=mlm"],
            "span_corruption": ["train task=closed_book task.start=span_corruption"],
        }
        more = [f"evaluate evaluate.methods=[dense,{name}]"] if store == tmp_path else []
        assert plain == expected.get(name, [asked, *more])


def test_what_training_tells(corpus: Path, tmp_path: Path) -> None:
    """The line without a terminal, and the end: where the curves are, and what comes next."""
    store = copy_of(corpus, tmp_path / "store")
    settings = [f"store={store}", *DENSE, *TINY]
    done = medrag("train", *settings, "task.global_batch=16", "task.epochs=1", "task.validate_every_steps=2")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("training", "step"))]
    assert re.fullmatch(r"training dense: 5 steps of 16 examples, a validation every 2; curves: tensorboard --logdir \S+", lines[0])
    assert re.fullmatch(r"step 5/5  loss \d\.\d{3}  best MRR@10 0\.\d{3} at [245]  \d+ tokens/s  \d\.\d GiB  0:0\d:\d\d in all", lines[-1])
    assert "\r" not in done.stderr
    told = done.stdout.splitlines()
    (board,) = [line.rpartition(" ")[2] for line in told if line.startswith("in TensorBoard: tensorboard --logdir ")]
    assert list(Path(board).glob("events.*")) and board in lines[0]
    assert told[told.index("next:") + 1 :] == [shlex.join(["medrag", "index", "build", f"store={store}", *TINY])]
