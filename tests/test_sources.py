"""Every kind of raw file, and every way in which one can be broken: bad rows keep their place, good rows around them survive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medrag import sources
from medrag.sources import Query, Record, Reject, Row, recognise

GOOD = [Record("头痛怎么办？", "多休息，多喝水。"), Record("发烧吃什么药？", "先物理降温。")]
LINES = [
    '{"question": "头痛怎么办？", "answer": "多休息，多喝水。"}\n'.encode(),
    '{"question": "发烧吃什么药？", "answer": "先物理降温。"}\n'.encode(),
]


def _file(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def _rows(path: Path, kind: str = "") -> list[Row]:
    return list(recognise(f"{kind}:{path}" if kind else str(path)).rows())


def _around(tmp_path: Path, bad: bytes) -> Reject:
    """A bad line between two good ones: the one Reject that comes of it, after its place has been checked."""
    path = _file(tmp_path / "rows.jsonl", LINES[0] + bad + b"\n" + LINES[1])
    first, reject, last = _rows(path)
    assert [first, last] == GOOD
    assert isinstance(reject, Reject)
    assert (reject.file, reject.line, reject.byte) == (str(path), 2, len(LINES[0]))
    return reject


# What the kinds look like.


def test_toyhom_csv_in_gb18030(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "sample.csv",
        "department,title,ask,answer\r\n"
        "心血管科,高血压能吃党参吗？,我有高血压这两天女婿来的时候给我拿了些党参泡水喝,高血压病人可以口服党参的。\r\n"
        '内科,头痛,"疼了三天,很""重""\n第二行",""\r\n'
        "\r\n"
        "产科,能喝咖啡吗,孕期能喝咖啡吗？,少喝。",
        "gb18030",
    )
    source = recognise(str(path))
    assert (source.kind, source.encoding) == ("toyhom_csv", "gb18030")
    assert list(source.rows()) == [
        Record("高血压能吃党参吗？ 我有高血压这两天女婿来的时候给我拿了些党参泡水喝", "高血压病人可以口服党参的。", "心血管科"),
        Record('头痛 疼了三天,很"重"\n第二行', "", "内科"),
        Record("孕期能喝咖啡吗？", "少喝。", "产科"),
    ]


def test_question_and_answer_csv_in_utf8_with_a_mark(tmp_path: Path) -> None:
    path = _file(tmp_path / "qa.csv", "\ufeffid, question ,answer\na1,头痛怎么办？,多休息\n")
    assert recognise(str(path)).encoding == "utf-8-sig"
    assert _rows(path) == [Record("头痛怎么办？", "多休息", "", "a1")]


def test_toyhom_text(tmp_path: Path) -> None:
    content = "头痛,头痛三天了怎么办\n多休息。\n\n\n只有题目\n少吃盐，多运动。\n\n\n血压高,\n吃药。"
    for encoding in ("utf-8", "gb18030"):
        path = _file(tmp_path / f"{encoding}.txt", content, encoding)
        source = recognise(str(path))
        assert (source.kind, source.encoding.removesuffix("-sig")) == ("toyhom_text", encoding)
        rows = [row for row in source.rows() if isinstance(row, Record)]
        assert [(row.question, row.answer.strip()) for row in rows] == [
            ("头痛三天了怎么办", "多休息。"),
            ("只有题目", "少吃盐，多运动。"),
            ("血压高", "吃药。"),
        ]


@pytest.mark.parametrize(
    ("row", "records"),
    [
        ({"instruction": "头痛怎么办", "input": "", "output": "休息"}, [Record("头痛怎么办", "休息")]),
        ({"instruction": "回答问题", "input": "头痛怎么办", "output": "休息"}, [Record("回答问题 头痛怎么办", "休息")]),
        ({"instruction": "头痛怎么办", "input": None, "output": "休息"}, [Record("头痛怎么办", "休息")]),
        ({"questions": "头痛怎么办", "answers": "休息"}, [Record("头痛怎么办", "休息")]),
        ({"question": "头痛怎么办", "answer": "休息", "extra": [1]}, [Record("头痛怎么办", "休息")]),
        (
            {"question": "头痛", "answer": "休息", "department": "内科", "id": 7, "source": "医院"},
            [Record("头痛", "休息", "内科", "7", "医院")],
        ),
        ({"question": "头痛", "answer": "休息", "department": None, "id": None, "source": None}, [Record("头痛", "休息")]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "你是医生"},
                    {"from": "human", "value": "头痛怎么办"},
                    {"from": "gpt", "value": "休息"},
                    {"from": "user", "value": "还痛呢"},
                    {"from": "assistant", "value": "去医院"},
                    {"from": "gpt", "value": "没有问题的回答"},
                ]
            },
            [Record("头痛怎么办", "休息"), Record("还痛呢", "去医院")],
        ),
    ],
)
def test_kinds_of_json_lines(tmp_path: Path, row: dict[str, object], records: list[Record]) -> None:
    path = _file(tmp_path / "data.json", "\n" + json.dumps(row, ensure_ascii=False) + "\r\n \n")
    assert _rows(path, "jsonl") == records


def test_mapped_questions_know_their_place(tmp_path: Path) -> None:
    first = json.dumps({"question": "头痛咋办", "answer_ids": ["a", "b"], "split": "dev", "id": "q1"}, ensure_ascii=False) + "\n"
    path = _file(tmp_path / "questions.jsonl", first + '{"question": "股票", "answer_ids": []}\n')
    assert _rows(path) == [
        Query("头痛咋办", ("a", "b"), "dev", "q1", str(path), 1, 0),
        Query("股票", (), "test", "", str(path), 2, len(first.encode())),
    ]


# What a file is taken for.


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", "title,ask,answer\n", "toyhom_csv"),
        ("a.jsonl", "{}\n", "jsonl"),
        ("a.txt", "{}\n", "jsonl"),
        ("a", "\ufeff  {}\n", "jsonl"),
        ("a.txt", "头痛,怎么办\n", "toyhom_text"),
    ],
)
def test_kinds_are_recognised(tmp_path: Path, name: str, content: str, kind: str) -> None:
    assert recognise(str(_file(tmp_path / name, content))).kind == kind


@pytest.mark.parametrize("content", ["[{}]", "头痛\n", "\n"])
def test_an_unknown_kind_asks_for_its_name(tmp_path: Path, content: str) -> None:
    path = _file(tmp_path / "data.json", content)
    with pytest.raises(ValueError, match=r"data\.json: not recognised; .* jsonl, toyhom_csv, toyhom_text"):
        recognise(str(path))


def test_a_declared_kind_and_encoding_win(tmp_path: Path) -> None:
    path = _file(tmp_path / "notes.md", "头痛,怎么办\n多休息\n", "gb18030")
    source = recognise(f"toyhom_text:{path}")
    assert (source.path, source.kind, source.encoding) == (path, "toyhom_text", "gb18030")
    source = recognise(f"toyhom_text+gb18030:{path}")
    assert source.encoding == "gb18030" and source == recognise(f"toyhom_text+GB18030:{path}")
    assert [row.question for row in source.rows() if isinstance(row, Record)] == ["头痛 怎么办"]
    assert all(isinstance(row, Reject) for row in recognise(f"toyhom_text+utf-8:{path}").rows())


def test_a_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _file(tmp_path / "a:b.jsonl", LINES[0])
    assert recognise("a:b.jsonl").path == Path("a:b.jsonl")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{}/missing.jsonl", r"missing\.jsonl: no such file"),
        ("jsonl:{}/missing.jsonl", r"missing\.jsonl: no such file"),
        ("{}", "a folder was given where a file is needed"),
        ("{}/empty.jsonl", r"empty\.jsonl: the file is empty"),
        ("parquet:{}/good.jsonl", "'parquet' is no kind of source; allowed: jsonl, toyhom_csv, toyhom_text"),
        ("jsonl+big5:{}/good.jsonl", "encoding 'big5' is not supported; allowed: utf-8, gb18030"),
        ("{}/binary.jsonl", r"binary\.jsonl: neither UTF-8 nor GB18030"),
    ],
)
def test_what_cannot_be_a_source(tmp_path: Path, argument: str, message: str) -> None:
    _file(tmp_path / "empty.jsonl", "")
    _file(tmp_path / "good.jsonl", LINES[0])
    _file(tmp_path / "binary.jsonl", b"\xff\xfe\x00\x81\n\xff\xff\n")
    with pytest.raises(ValueError, match=message):
        recognise(argument.format(tmp_path))


def test_a_few_damaged_lines_do_not_change_the_encoding(tmp_path: Path) -> None:
    bad = "头痛".encode()[:-1] + b"\n"
    assert recognise(str(_file(tmp_path / "few.jsonl", LINES[0] + LINES[1] + bad))).encoding == "utf-8-sig"
    rows = LINES[0].decode().encode("gb18030") * 2 + b"\xb8\xff\n"
    assert recognise(str(_file(tmp_path / "few_gb.jsonl", rows))).encoding == "gb18030"
    assert recognise(str(_file(tmp_path / "ascii.jsonl", b"{}\n"))).encoding == "utf-8-sig"


# Bad rows.


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"question": "a"', "delimiter"),
        (b"not json", "Expecting value"),
        ('{"question": "头痛\0", "answer": "b"}'.encode(), "Invalid control character"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"question": "\xff\xfe", "answer": "b"}', "not utf-8"),
        (b"[1, 2]", "a JSON list stands where an object is needed"),
        (b"null", "a JSON NoneType"),
        (b"{}", r"keys \[\] are of no known form"),
        (b'{"frage": "a"}', r"keys \['frage'\] are of no known form; known: question/answer"),
        (b'{"question": "a"}', "answer must be a string, not NoneType"),
        (b'{"question": 7, "answer": "b"}', "question must be a string, not int"),
        (b'{"questions": ["a"], "answers": "b"}', "questions must be a string, not list"),
        (b'{"instruction": "a", "input": 1, "output": "b"}', "input must be a string, not int"),
        (b'{"instruction": "a"}', "output must be a string"),
        (b'{"question": "a", "answer": "b", "id": ["c"]}', "id must be a string or a number, not list"),
        (b'{"question": "a", "answer": "b", "id": "\\ud800"}', "can't encode"),
        (b'{"question": "a", "answer": "b", "source": "\\udcff"}', "can't encode"),
        (b'{"question": "a", "answer_ids": "b"}', "answer_ids must be a list of strings"),
        (b'{"question": "a", "answer_ids": [1]}', "answer_ids must be a list of strings"),
        (b'{"question": null, "answer_ids": []}', "question must be a string"),
        (b'{"question": "a", "answer_ids": [], "split": "dev2"}', "split 'dev2'; allowed: train, dev, test"),
        (b'{"question": "a", "answer_ids": [], "split": ["dev"]}', "split"),
        (b'{"conversations": {"from": "human"}}', "conversations must be a list of objects"),
        (b'{"conversations": ["human"]}', "conversations must be a list of objects"),
        (b'{"conversations": []}', "without a question and its answer"),
        (b'{"conversations": [{"from": "human", "value": "a"}]}', "without a question and its answer"),
        (b'{"conversations": [{"from": "human", "value": ["a"]}]}', "value must be a string"),
        (b'{"id": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion"),
        (b'{"question": ' * 100_000, "recursion"),
    ],
)
def test_a_bad_row_keeps_its_place_and_its_neighbours(tmp_path: Path, bad: bytes, reason: str) -> None:
    reject = _around(tmp_path, bad)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(reject.reason)
    reject.reason.encode("utf-8")


@pytest.mark.parametrize("extra", [-1, 0, 1, 90, 200, 230])
def test_an_over_long_line_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    monkeypatch.setattr(sources, "LINE_LIMIT_BYTES", 120)
    reject = _around(tmp_path, b"x" * (120 + extra))
    assert ("a line of more than 120 bytes" in reject.reason) == (extra >= 0)
    content = LINES[0] + b"x" * (120 + extra) + b"\n"
    last = _rows(_file(tmp_path / "then.jsonl", content + b"{broken\n"))[-1]
    assert isinstance(last, Reject) and (last.line, last.byte) == (3, len(content)), "the rows after it are counted from the right byte"


def test_an_over_long_last_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LINE_LIMIT_BYTES", 120)
    path = _file(tmp_path / "rows.jsonl", LINES[0] + b"x" * 1000)
    assert _rows(path) == [GOOD[0], Reject(str(path), 2, len(LINES[0]), "a line of more than 120 bytes")]


def test_a_csv_row_with_too_few_or_too_many_cells(tmp_path: Path) -> None:
    lines = ["department,title,ask,answer\n", "内科,头痛,头痛怎么办,休息\n", "内科,头痛,休息\n", '内科,"a\nb",c,d,e\n', "内科,发烧,发烧怎么办,降温\n"]
    path = _file(tmp_path / "a.csv", "".join(lines))
    starts = [len("".join(lines[:number]).encode()) for number in range(len(lines))]
    assert _rows(path) == [
        Record("头痛怎么办", "休息", "内科"),
        Reject(str(path), 3, starts[2], "3 cells in a row of 4 columns"),
        Reject(str(path), 4, starts[3], "5 cells in a row of 4 columns"),
        Record("发烧怎么办", "降温", "内科"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_bad_bytes_spoil_only_their_csv_row(tmp_path: Path, encoding: str) -> None:
    """Also where they stand in a quoted field of several lines, on the line that closes its quote."""
    head, good, last = (line.encode(encoding) for line in ("title,ask,answer\n", "头痛,头痛怎么办,休息\n", "发烧,发烧怎么办,降温\n"))
    quoted = '咳嗽,"咳嗽三天'.encode(encoding) + b"\n\xff" + '怎么办",喝水\n'.encode(encoding)
    bare = "胃痛,\xff胃痛怎么办".encode(encoding, "replace").replace("\xff".encode(encoding, "replace"), b"\xff") + ",喝粥\n".encode(encoding)
    path = _file(tmp_path / "a.csv", head + good + quoted + last + bare + good)
    first, reject, middle, second, end = _rows(path, f"toyhom_csv+{encoding}")
    assert first == end == Record("头痛怎么办", "休息") and middle == Record("发烧怎么办", "降温")
    assert isinstance(reject, Reject) and isinstance(second, Reject)
    assert (reject.file, reject.line, reject.byte) == (str(path), 3, len(head + good))
    assert (second.file, second.line, second.byte) == (str(path), 6, len(head + good + quoted + last))
    assert encoding in reject.reason


def test_a_nul_and_a_stray_carriage_return_in_csv(tmp_path: Path) -> None:
    content = b"question,answer\na\0b,c\nx\ry,z\nd,e\n"
    path = _file(tmp_path / "a.csv", content)
    first, reject, last = _rows(path)
    assert (first, last) == (Record("ab", "c"), Record("d", "e"))
    assert isinstance(reject, Reject) and (reject.line, reject.byte) == (3, content.index(b"x"))


def test_an_over_long_csv_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LINE_LIMIT_BYTES", 50)
    path = _file(tmp_path / "a.csv", "question,answer\n" + "a,b\n" + "x" * 120 + "\nc,d\n")
    assert sorted(_rows(path), key=lambda row: isinstance(row, Reject)) == [
        Record("a", "b"),
        Record("c", "d"),
        Reject(str(path), 3, 20, "a line of more than 50 bytes"),
    ]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("department,title,ask", r"columns \['department', 'title', 'ask'\] are not known; needed: title, ask and answer"),
        ("question;answer", "are not known"),
        ("title,ask,answer,answer", r"the columns \['answer'\] stand there more than once"),
        ("question,answer,question", r"the columns \['question'\] stand there more than once"),
        ("question,answer\rx", "the line of column names cannot be read"),
    ],
)
def test_csv_columns_missing_or_doubled(tmp_path: Path, header: str, message: str) -> None:
    path = _file(tmp_path / "a.csv", header + "\na,b,c,d\n")
    with pytest.raises(ValueError, match=message) as caught:
        _rows(path)
    assert str(path) in str(caught.value)


def test_bad_pairs(tmp_path: Path) -> None:
    good = "头痛,头痛怎么办\n休息\n\n".encode()
    orphan = "胃痛,没有回答\n\n".encode()
    path = _file(tmp_path / "a.txt", good + orphan + b"\xff\xfe\n\n" + good + "最后,没有回答".encode())
    rows = _rows(path)
    assert [row for row in rows if isinstance(row, Record)] == [Record("头痛怎么办", "休息\n")] * 2
    assert [(row.file, row.line, row.byte, row.reason[:9]) for row in rows if isinstance(row, Reject)] == [
        (str(path), 4, len(good), "a questio"),
        (str(path), 6, len(good + orphan), "not utf-8"),
        (str(path), 11, len(good + orphan) + 4 + len(good), "a questio"),
    ]
