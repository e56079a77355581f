"""Dialogues: a record for each of the doctor's turns, and one group for each dialogue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medrag import sources
from medrag.sources import dialogues
from medrag.sources.rows import Record, Reject, Row, Source


def _rows(path: Path, kind: str) -> list[Row]:
    """What the reader gives, once the path is recognised as that kind among all."""
    source = sources.recognise(str(path))
    assert source.kind == kind
    return list(sources.KINDS[kind].read(source))


def _json(path: Path, value: object, **more: int) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False, **more), encoding="utf-8")  # type: ignore[arg-type]
    return path


TURNS = [
    ("病人", "宝宝发烧三天了。"),
    ("医生", "多少度？"),
    ("医生", "咳嗽吗？"),
    ("病人", "三十九度。"),
    ("病人", "不咳嗽。"),
    ("医生", "去医院查血。"),
    ("病人", "谢谢。"),
]


def test_turns_of_one_speaker_are_one_and_each_answer_sees_what_was_said_before_it() -> None:
    assert list(dialogues.records(TURNS, department="儿科")) == [
        Record("宝宝发烧三天了。", "多少度？咳嗽吗？", "儿科"),
        Record("宝宝发烧三天了。三十九度。不咳嗽。", "去医院查血。", "儿科"),
    ]


def test_the_first_account_stands_in_every_question() -> None:
    first, last = dialogues.records(TURNS[1:6], account="女孩，两岁，发烧。")
    assert first.question == "女孩，两岁，发烧。"
    assert last.question == "女孩，两岁，发烧。三十九度。不咳嗽。"


def test_a_doctor_who_speaks_first_answers_nothing() -> None:
    assert [each.answer for each in dialogues.records([("医生", "你好。"), *TURNS[3:]])] == ["去医院查血。"]


def test_a_long_dialogue_keeps_the_account_and_the_latest_turns() -> None:
    told = ["头晕" * 200, *(f"第{number}天还是头晕，没有好转。" for number in range(100, 150))]
    asked = dialogues.question(told)
    assert len(asked) <= dialogues.QUESTION_CHARACTERS + 20, "blanks between the turns come on top"
    assert asked.startswith("头晕头晕") and asked.endswith(told[-1]) and told[-2] in asked and told[1] not in asked
    assert told[-1][:20] in dialogues.question(["头晕", told[-1] * 50])
    assert len(dialogues.question(["头晕" * 500])) == dialogues.QUESTION_CHARACTERS


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("护士", "你好")], "neither patient nor doctor"),
        ([("病人", "头痛")], "without a doctor's answer"),
        ([("医生", "你好"), ("病人", "  ")], "without a doctor's answer"),
        ([], "without a doctor's answer"),
    ],
)
def test_dialogues_without_an_answer(turns: list[tuple[str, str]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(dialogues.records(turns))


SAID = [["病人：头痛三天了", "医生：多休息，测血压", "病人：血压高怎么办", "医生：去心内科"], ["病人：失眠", "医生:睡前不看手机"]]


def test_meddialog_processed(tmp_path: Path) -> None:
    expected = [
        Record("头痛三天了", "多休息，测血压", group="1", split="dev"),
        Record("头痛三天了，血压高怎么办", "去心内科", group="1", split="dev"),
        Record("失眠", "睡前不看手机", group="2", split="dev"),
    ]
    path = _json(tmp_path / "validate_data.json", SAID)
    assert _rows(path, "meddialog") == expected, "on one line, too, each dialogue is a group of its own"
    assert _rows(_json(path, SAID, indent=1), "meddialog") == expected
    path = tmp_path / "processed.jsonl"
    path.write_text("".join(json.dumps({"utterances": each}, ensure_ascii=False) + "\n" for each in SAID), encoding="utf-8")
    assert [(row.question, row.group) for row in _rows(path, "utterances") if isinstance(row, Record)] == [
        ("头痛三天了", "1"),
        ("头痛三天了，血压高怎么办", "1"),
        ("失眠", ""),
    ]


def test_bad_utterances_spoil_only_their_dialogue(tmp_path: Path) -> None:
    path = _json(tmp_path / "train_data.json", [SAID[0], ["护士：你好"], {"a": 1}, ["病人：头痛"], [3], SAID[1]], indent=1)
    rows = list(dialogues.read_utterances(Source(path, "meddialog", "utf-8-sig", "t")))
    assert [row.group for row in rows if isinstance(row, Record)] == ["1", "1", "6"]
    assert [row.reason for row in rows if isinstance(row, Reject)] == [
        "every utterance must be a text that begins with 病人： or 医生：",
        "a JSON dict stands where a list of utterances is needed",
        "a dialogue without a doctor's answer to a patient",
        "every utterance must be a text that begins with 病人： or 医生：",
    ]
    assert len({row.line for row in rows if isinstance(row, Reject)}) == 4


RAW = """id=17
https://www.haodf.com/doctorteam/flow_team_1.htm
Doctor faculty
某某市第一医院 妇产科

Description
疾病：
妊娠呕吐
病情描述（发病时间、主要症状、就诊医院等）：
怀孕八周，吐得厉害。
曾经治疗情况和效果：
没有治疗。
想得到怎样的帮助：
要不要住院？

Dialogue
医生：
能喝水吗？
病人：
能喝一点，
有时也吐。
医生：先少量多次喝水，
尿酮体高要住院。


id=18
https://www.haodf.com/doctorteam/flow_team_2.htm
Doctor faculty
某某市第二医院

Description
病情描述：血压高。

Dialogue
病人：
血压一百六。
医生：
按时吃药。
"""


def test_meddialog_with_its_fields_on_one_line_and_a_summary() -> None:
    """As some years of the raw files have them."""
    block = [
        "http://www.haodf.com/wenda/x_g_1.htm",
        "Doctor faculty",
        "某某市第一医院 - 神经内科",
        "Description",
        "疾病：头痛",
        "内容：病情描述（发病时间、主要症状、就诊医院等）：头痛三天。曾经治疗情况和效果：没有治疗过想得到怎样的帮助:要做检查吗？",
        "Dialogue",
        "医生：有没有呕吐？",
        "病人：没有。",
        "Diagnosis and suggestions",
        "病情摘要及初步印象：",
        "紧张性头痛。",
        "总结建议：",
        "多休息，加重来医院。",
    ]
    assert list(dialogues.from_text(block)) == [
        Record("头痛三天。要做检查吗？", "有没有呕吐？", "神经内科"),
        Record("头痛三天。要做检查吗？没有。", "紧张性头痛。多休息，加重来医院。", "神经内科"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_meddialog_raw(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "2020.txt"
    path.write_text(RAW, encoding=encoding)
    assert _rows(path, "meddialog_text") == [
        Record("怀孕八周，吐得厉害。要不要住院？", "能喝水吗？", "妇产科", group="17"),
        Record("怀孕八周，吐得厉害。要不要住院？能喝一点，有时也吐。", "先少量多次喝水，尿酮体高要住院。", "妇产科", group="17"),
        Record("血压高。血压一百六。", "按时吃药。", group="18"),
    ]


def test_a_bad_line_spoils_only_its_consultation(tmp_path: Path) -> None:
    path = tmp_path / "2020.txt"
    before = RAW.index("能喝水吗")
    path.write_bytes(RAW[:before].encode() + b"\xff\n" + RAW[before:].encode() + "id=19\nDialogue\n病人：\n没有人回答。\n".encode())
    rows = list(dialogues.read_text(Source(path, "meddialog_text", "utf-8-sig", "2020")))
    assert [row.group for row in rows if isinstance(row, Record)] == ["18"]
    bad, unanswered = (row for row in rows if isinstance(row, Reject))
    assert (bad.line, bad.reason) == (RAW[:before].count("\n") + 1, "not utf-8-sig: invalid start byte")
    assert (unanswered.line, unanswered.byte) == (RAW.count("\n") + 2, len(RAW.encode()) + 2)
    assert unanswered.reason == "a dialogue without a doctor's answer to a patient"


def test_imcs21(tmp_path: Path) -> None:
    case = {
        "diagnosis": "小儿发热",
        "self_report": "宝宝两岁，发烧两天。（男，2岁）",
        "explicit_info": {"Symptom": ["发热"]},
        "dialogue": [
            {"sentence_id": "1", "speaker": "医生", "sentence": "你好", "dialogue_act": "Other", "BIO_label": "O O"},
            {"sentence_id": "2", "speaker": "医生", "sentence": "最高多少度？", "dialogue_act": "Request-Symptom"},
            {"sentence_id": "3", "speaker": "患者", "sentence": "三十九度", "dialogue_act": "Inform-Symptom"},
            {"sentence_id": "4", "speaker": "医生", "sentence": "先吃退烧药。", "dialogue_act": "Inform-Drug_Recommendation"},
        ],
        "report": [],
    }
    path = _json(tmp_path / "dev.json", {"10000001": case, "10000002": {**case, "dialogue": [{"speaker": "医生"}]}, "10000003": 3}, indent=2)
    first, second, broken, number = _rows(path, "imcs21")
    assert first == Record("宝宝两岁，发烧两天。（男，2岁）", "你好，最高多少度？", split="dev", group="10000001")
    assert second == Record("宝宝两岁，发烧两天。（男，2岁）三十九度", "先吃退烧药。", split="dev", group="10000001")
    assert isinstance(broken, Reject) and (broken.line, broken.reason) == (2, "dialogue 2: sentence must be a string, not NoneType")
    assert isinstance(number, Reject) and number.reason == "dialogue 3: a JSON int stands where a dialogue is needed"
    with pytest.raises(ValueError, match="a JSON list stands where an object of dialogues is needed"):
        list(dialogues.read_imcs21(Source(_json(tmp_path / "x.json", []), "imcs21", "utf-8-sig", "x")))
