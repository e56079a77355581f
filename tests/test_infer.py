"""Batch inference: one output row for each input row, in order, whatever happens."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st
from test_train import DENSE, ROOT, TINY
from torch import Tensor

from medrag import assemble, files, infer
from medrag.__main__ import main
from medrag.assemble import trained
from medrag.confidence import GENERATION, Calibrator, uncalibrated
from medrag.config import compose
from medrag.infer import Config
from medrag.methods import Batch, Method
from medrag.quantities import doses
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
    assert rows[-1]["refused"] and rows[-1]["reason"] == "weak_evidence" and rows[-1]["answer"] == infer.REFUSAL
    assert rows[-1]["confidence"] == 0.0 and rows[0]["confidence"] == 0.9
    assert counts == {"rows": 21, "answered": 20, "refused": 1, "errors": 0}
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


def hits(*texts: str) -> tuple[Hit, ...]:
    return tuple(Hit(Passage(f"p{number}", text, "s"), 9.0 - number) for number, text in enumerate(texts))


def answer_of(text: str, *passages: str, confidence: float = 0.9) -> dict[str, Any]:
    return infer.respond("问？", Answer(text, hits(*passages), -1.0, confidence, 4), Config(), "fid", 0.3)


def test_each_sentence_says_what_it_rests_on() -> None:
    out = answer_of("多喝水。多休息，少看手机。祝您健康！", "不要喝酒。", "多休息，少看手机。", "多喝水。")
    assert [(one["text"], one["passage"]) for one in out["sentences"]] == [("多喝水。", 3), ("多休息，少看手机。", 2), ("祝您健康！", None)]
    assert (out["answer"], out["refused"], out["withheld"]) == ("多喝水。多休息，少看手机。祝您健康！", False, {})


def test_the_passages_that_sentences_rest_on_are_shown_whatever_the_limit() -> None:
    texts = [f"第{letter}种说法与别的不同。" for letter in "甲乙丙丁戊己庚"]
    out = answer_of("".join(texts[place] for place in (6, 4, 5, 3)), *texts)
    assert [evidence["id"] for evidence in out["evidence"]] == ["p3", "p4", "p5", "p6"]
    assert [one["passage"] for one in out["sentences"]] == [4, 2, 3, 1]
    out = answer_of(texts[5], *texts)
    assert [evidence["id"] for evidence in out["evidence"]] == ["p0", "p1", "p5"] and out["sentences"][0]["passage"] == 3


def test_a_dose_that_no_passage_states_is_not_shown() -> None:
    out = answer_of("多喝水。布洛芬每次200毫克。多休息。", "多喝水。多休息。")
    assert out["answer"] == "多喝水。多休息。" and out["withheld"] == {"dose": 1} and not out["refused"]
    assert "200" not in json.dumps(out, ensure_ascii=False)
    for text, passages in (("布洛芬每次200毫克。", ["多喝水。"]), ("多喝水。布洛芬每次200毫克。", [])):
        out = answer_of(text, *passages)
        assert (out["reason"], out["answer"], out["sentences"]) == ("unsupported_dose", infer.REFUSAL, []), "without passages nothing vouches"
        assert out["withheld"] == {"dose": 1}
    out = answer_of("布洛芬每次200mg。", "布洛芬每次200毫克。")
    assert (out["reason"], out["answer"]) == ("", "布洛芬每次200mg。")


def test_reasons_to_refuse() -> None:
    assert answer_of("  ", "多喝水。")["reason"] == "no_answer"
    assert answer_of("多喝水。", "多喝水。", confidence=0.29)["reason"] == "weak_evidence"
    assert answer_of("多喝水。", "多喝水。", confidence=0.3)["reason"] == ""
    assert answer_of("每次200毫克。", "多喝水。", confidence=0.1)["reason"] == "unsupported_dose"


class Writer(Echo):
    """Says the same to everything, in pieces of two characters."""

    def __init__(self, text: str, *passages: str, confidence: float = 0.9) -> None:
        super().__init__()
        self.said = Answer(text, hits(*passages), -2.0, confidence, 4)

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        return [self.said for _ in questions]

    def stream(self, question: str) -> Iterator[str | Answer]:
        yield from (self.said.text[start : start + 2] for start in range(0, len(self.said.text), 2))
        yield self.said


def out_of(told: Sequence[str | dict[str, Any]]) -> dict[str, Any]:
    assert isinstance(told[-1], dict)
    return told[-1]


LONG = "多喝水。 多休息。布洛芬每次200毫克。少看手机。每次两片。\n按时睡觉。"


def test_a_stream_ends_in_what_respond_makes_of_it() -> None:
    for passages in ([], ["多喝水。"], [LONG]):
        for text in (LONG, "", "多喝水", " 多喝水。多休息。", "每日三次", "好！！”多喝水。"):
            *pieces, out = infer.stream(Writer(text, *passages), "问？", Config())
            assert out == infer.answered(Writer(text, *passages), "问？", Config())
            if not out["refused"]:
                assert "".join(map(str, pieces)) == out["answer"]


def test_a_stream_tells_whole_sentences_and_no_number_before_it_is_checked() -> None:
    told = list(infer.stream(Writer(LONG, "多喝水。"), "问？", Config()))
    assert told[:-1] == ["多喝水。 ", "多休息。", "少看手机。\n按时睡觉。"]
    assert out_of(told)["withheld"] == {"dose": 2}
    assert list(infer.stream(Writer(LONG), "问？", Config()))[:-1] == ["多喝水。 ", "多休息。"], "without a passage the rest is refused"
    told = list(infer.stream(Writer(LONG, LONG), "问？", Config()))
    assert len(told) == 4 and out_of(told)["answer"] == LONG


@given(st.lists(st.sampled_from(["多喝水。", "每日三次。", "5mg！", "两片", "，", " ", "\n", "睡觉。"]), max_size=8), st.booleans())
def test_a_stream_never_tells_a_dose_that_no_passage_states(pieces: list[str], refused: bool) -> None:
    told = list(infer.stream(Writer("".join(pieces), "多喝水。每日一次。", confidence=0.1 if refused else 0.9), "问？", Config(refuse_below=0.3)))
    assert not doses("".join(piece for piece in told[:-1] if isinstance(piece, str)))


def test_the_threshold_asked_for_goes_before_the_one_chosen(tiny: Tiny) -> None:
    method = Writer("好。")
    assert infer.threshold(method, Config()) == infer.UNCALIBRATED
    method.retriever = tiny.retriever()
    assert infer.threshold(method, Config()) == 0.0, "a retriever that was not calibrated refuses nothing"
    method.retriever.calibrator = replace(method.retriever.calibrator, refuse_below=0.25)
    assert infer.threshold(method, Config()) == 0.25
    method.calibrator = replace(uncalibrated(GENERATION), refuse_below=0.4)
    assert infer.threshold(method, Config()) == 0.4
    assert infer.threshold(method, Config(refuse_below=0.0)) == 0.0 and infer.threshold(method, Config(refuse_below=1)) == 1


def test_answers_are_calibrated_in_one_place() -> None:
    method = Writer("多喝水。", "多喝水。")
    method.calibrator = Calibrator(GENERATION, (0.0,) * 5, (1.0,) * 5, (1.0, 2.0, 0.0, 0.0, 1.0), -1.0, 0.99)
    ((_, answer),) = infer.answer_in_batches(method, ["问？"], 4)
    assert answer.confidence == pytest.approx(1 / (1 + math.exp(-(-2 / 4 + 2 * 1 + math.log(0.9 / 0.1) - 1))))
    assert infer.answered(method, "问？", Config())["reason"] == "weak_evidence"
    method.said = Answer("", (), 0.0, 0.0)
    assert next(infer.answer_in_batches(method, ["问？"], 4))[1] == method.said
