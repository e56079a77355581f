"""Batch inference: one output row for each input row, in order, whatever happens."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import DENSE, ROOT, TINY
from torch import Tensor

from medrag import assemble, files, infer, responses
from medrag.__main__ import main
from medrag.assemble import trained
from medrag.config import compose
from medrag.methods import Batch, Method
from medrag.responses import Config
from medrag.types import Answer, Example, Hit, Passage


class Killed(BaseException):
    """Stands for a kill: nothing between it and the top level cleans up."""


class Echo(Method):
    """Answers with the question's length; dies when it has answered ``dies_after`` questions."""

    needs = frozenset[str]()

    def __init__(self, dies_after: int = 10**9) -> None:
        super().__init__()
        self.dies_after = dies_after
        self.asked: list[str] = []

    def index(self, passages: Sequence[Passage]) -> None: ...

    def collate(self, examples: Sequence[Example]) -> Batch:
        return Batch(tuple(examples), {}, 1)

    def forward(self, batch: Batch) -> Tensor:
        return torch.zeros(())

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        self.asked += questions
        if len(self.asked) > self.dies_after:
            raise Killed
        hit = Hit(Passage("p1", "依据", "s"), 2.0)
        return [Answer(f"答{question}", (hit,), 0.0, 0.0 if "没有依据" in question else 0.9) for question in questions]


SMALL = Config(batch_questions=3, window_rows=7, refuse_below=0.3)


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows), "utf-8")
    return path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_come_out_in_order_with_evidence_confidence_and_reasons(tmp_path: Path) -> None:
    questions = [{"id": f"q{n}", "question": "问" * (1 + n * 7 % 11)} for n in range(20)] + [{"id": "x", "question": "没有依据的问题"}]
    target = tmp_path / "out.jsonl"
    counts = infer.infer(Echo(), SMALL, write(tmp_path / "in.jsonl", questions), target, "m", progress=False)
    rows = read(target)
    assert [row["id"] for row in rows] == [row["id"] for row in questions]
    assert [row["row"] for row in rows] == list(range(1, 22))
    assert all(row["answer"] == "答" + str(asked["question"]) for row, asked in zip(rows[:-1], questions, strict=False))
    assert rows[0]["evidence"] == [{"id": "p1", "score": 2.0, "source": "s", "title": "", "text": "依据"}]
    assert rows[-1]["refused"] and rows[-1]["reason"] == "weak_evidence" and rows[-1]["answer"] == responses.REFUSAL
    assert rows[-1]["confidence"] == 0.0 and rows[0]["confidence"] == 0.9
    assert counts == {"rows": 21, "answered": 20, "refused": 1, "emergencies": 0, "errors": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("dies_after", [1, 5, 7, 8, 13, 14, 15, 29])
@pytest.mark.parametrize("torn", [b"", b'{"row": 9, "que', b"\n", '{"row": "号'.encode()[:-1]])
def test_killed_and_run_again_every_row_has_one_output(tmp_path: Path, dies_after: int, torn: bytes) -> None:
    source = write(tmp_path / "in.jsonl", [{"question": f"第{n}个问题"} for n in range(30)])
    target = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        infer.infer(Echo(dies_after), SMALL, source, target, "m", progress=False)
    assert not target.exists()
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + torn)
    second = Echo()
    infer.infer(second, SMALL, source, target, "m", progress=False)
    assert [row["question"] for row in read(target)] == [f"第{n}个问题" for n in range(30)]
    assert len(second.asked) <= 30 - dies_after // 7 * 7


def test_bad_rows_become_error_records(tmp_path: Path) -> None:
    bad = [
        "{",
        "[1]",
        '{"question": 3}',
        '{"q": "x"}',
        '{"question": "  。"}',
        json.dumps({"question": "长" * 3000}),
        '{"question": "\\ud800"}',
        "1",
    ]
    target = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", ['{"question": "好问题一"}', *bad, '{"question": "好问题二"}'])
    counts = infer.infer(Echo(), SMALL, source, target, "m", False)
    rows = read(target)
    assert counts["errors"] == len(bad) and len(rows) == len(bad) + 2
    assert all("error" in row for row in rows[1:-1])
    assert (rows[0]["answer"], rows[-1]["answer"]) == ("答好问题一", "答好问题二")


def test_csv_is_read_and_bytes_that_are_not_utf8_are_errors(tmp_path: Path) -> None:
    with open(tmp_path / "in.csv", "w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows([["id", "question"], ["a", "逗号,和\n换行"], ["b", ""]])
    with open(tmp_path / "in.csv", "ab") as raw:
        raw.write("c,坏".encode("gb18030") + b"\r\n")
    target = tmp_path / "out.jsonl"
    infer.infer(Echo(), SMALL, tmp_path / "in.csv", target, "m", False)
    first, second, third = read(target)
    assert first["answer"] == "答逗号，和。换行"
    assert "empty" in str(second["error"]) and "UTF-8" in str(third["error"])


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    good = write(tmp_path / "in.jsonl", [{"question": "一个问题"}])
    (tmp_path / "there.jsonl").write_text("x")
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    cases = [
        (tmp_path / "none.jsonl", tmp_path / "o.jsonl", SMALL, "no such file"),
        (tmp_path, tmp_path / "o.jsonl", SMALL, "folder"),
        (write(tmp_path / "in.txt", ["x"]), tmp_path / "o.jsonl", SMALL, ".jsonl or .csv"),
        (good, tmp_path / "there.jsonl", SMALL, "already there"),
        (good, tmp_path / "missing" / "o.jsonl", SMALL, "no such folder"),
        (good, tmp_path / "o.jsonl", Config(refuse_below=1.5), "refuse_below=1.5; allowed: 0"),
        (good, tmp_path / "o.jsonl", Config(batch_questions=0), "batch_questions=0"),
        (tmp_path / "no.csv", tmp_path / "o.jsonl", SMALL, "lack one named question"),
    ]
    for source, target, config, words in cases:
        with pytest.raises(ValueError, match=words.replace("(", r"\(")):
            infer.infer(Echo(), config, source, target, "m", False)
        assert not (tmp_path / "o.jsonl").exists()
    assert (tmp_path / "there.jsonl").read_text() == "x"


def test_a_partial_output_of_something_else_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"question": f"问题{n}"} for n in range(20)])
    target = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        infer.infer(Echo(10), SMALL, source, target, "m", False)
    for change in ("method", "input", "threshold"):
        changed = write(tmp_path / "other.jsonl", [{"question": "别的"}]) if change == "input" else source
        config = Config(batch_questions=3, window_rows=7, refuse_below=0.5) if change == "threshold" else SMALL
        with pytest.raises(ValueError, match="begun with another"):
            infer.infer(Echo(), config, changed, target, "other" if change == "method" else "m", False)


def test_a_partial_output_from_another_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The method is the same; what it answers from is not."""
    store = tmp_path / "store"
    lines = (ROOT / "corpora" / "maternal.jsonl").read_text("utf-8").splitlines()[:40]
    (tmp_path / "some.jsonl").write_text("\n".join(lines), "utf-8")
    assert main(["prepare", str(tmp_path / "some.jsonl"), f"store={store}", "prepare.dev_share=0.2", "prepare.test_share=0"]) == 0
    run = compose([f"store={store}", *DENSE, *TINY])
    built = assemble.fresh(run, assemble.corpus(run))
    with files.publish(store, "dense", key="untrained", parents=built.parents, config={"model": {}}) as folder:
        trained.save(built, folder)
    assert main(["index", "build", f"store={store}"]) == 0
    source, target = write(tmp_path / "in.jsonl", [{"question": f"怀孕第{n}周要注意什么"} for n in range(1, 7)]), tmp_path / "out.jsonl"
    command = ["infer", str(source), str(target), f"store={store}", "answer.window_rows=2"]
    first_window = infer._window

    def interrupted(method: Method, settings: Config, window: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if window[0]["row"] > 2:
            raise KeyboardInterrupt
        return first_window(method, settings, window)

    with monkeypatch.context() as patched:
        patched.setattr(infer, "_window", interrupted)
        assert main(command) == 130
    assert len(read(tmp_path / "out.jsonl.partial")) == 2
    before = files.current(store, "index")
    write(tmp_path / "new.jsonl", [{"id": "new", "text": "孕期要按时产检。", "source": "leaflets"}])
    assert main(["index", "add", str(tmp_path / "new.jsonl"), f"store={store}"]) == 0
    capsys.readouterr()
    assert main(command) == 2
    assert "begun with another input, method, index, decoding or threshold" in capsys.readouterr().err
    files.set_current(store, "index", before.path)
    assert main(command) == 0
    assert [row["row"] for row in read(target)] == list(range(1, 7))


def test_emergencies_are_rows_that_no_method_sees(tmp_path: Path) -> None:
    asked = [{"id": n, "question": "我妈喝农药了，怎么办" if n % 3 == 1 else f"第{n}个问题"} for n in range(9)]
    method, target = Echo(), tmp_path / "out.jsonl"
    counts = infer.infer(method, SMALL, write(tmp_path / "in.jsonl", asked), target, "m", False)
    rows = read(target)
    assert [row["id"] for row in rows] == list(range(9)) and [row["emergency"] for row in rows] == ["", "poisoning", ""] * 3
    assert counts == {"rows": 9, "answered": 6, "refused": 0, "emergencies": 3, "errors": 0}
    assert sorted(method.asked) == sorted(str(row["question"]) for row in asked if row["question"] != "我妈喝农药了，怎么办")
