"""Tables: columns named or recognised, every sort of bad row, quotes that are never closed, Parquet, and Toyhom's two forms."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from reading import put, rejects, rows

from medrag.sources import Document, Record, Reject, Source, lines, read, recognise, tables
from medrag.sources.fields import from_columns, from_fields, identifier

SHARED = Path(__file__).parents[3] / "shared/data"

# -- fields


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"question": "a", "answer": "b"}, Record("a", "b")),
        (
            {"question": "a", "answer": "b", "department": "内科", "id": 7, "split": "dev", "source": "s", "group": 9},
            Record("a", "b", "内科", "7", "s", "dev", "9"),
        ),
        ({"question": "a", "answer": "b", "department": None, "id": None, "split": None}, Record("a", "b")),
        ({"text": "a"}, Document("a")),
        ({"text": "a", "title": None, "id": 2.5}, Document("a", "", "2.5")),
        ({"text": "a\ud800", "title": "t"}, Document("a\ud800", "t")),
    ],
)
def test_fields_make_rows(fields: dict[str, Any], expected: Record | Document) -> None:
    assert from_fields(fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "a"}, "field 'answer' is missing; needed: question and answer, or text"),
        ({}, "field 'answer' is missing"),
        (
            {"question": "a", "answer": "b", "frage": "c"},
            "field 'frage'; allowed: question, answer, department, id, source, split, group, text, title",
        ),
        ({"text": "a", "answer": "b"}, "field 'answer' does not go with text; allowed: text, title, id, source"),
        ({"question": "a", "answer": "b", "title": "c"}, "field 'title' does not go with answer and question"),
        ({"question": 7, "answer": "b"}, "question must be a string, not int"),
        ({"text": None}, "text must be a string, not NoneType"),
        ({"text": "a", "title": 1}, "title must be a string, not int"),
        ({"question": "a", "answer": "b", "split": "dev2"}, "split is none of the allowed: train, dev, test"),
        ({"question": "a", "answer": "b", "split": ["dev"]}, "split is none of the allowed"),
        ({"text": "a", "id": True}, "id must be a string or a number, not bool"),
        ({"text": "a", "id": float("nan")}, "id must be a string or a number, not float"),
        ({"text": "a", "id": "\ud800"}, "can't encode"),
    ],
)
def test_fields_that_make_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_fields(fields)


def test_columns_are_joined() -> None:
    row = {"title": "头痛", "ask": "疼了三天", "a+b": "加", "n": 1, "none": None}
    assert from_columns(row, (("text", "title+ask"),)) == Document("头痛，疼了三天")
    assert from_columns(row, (("text", "a+b"),)) == Document("加"), "a column that is there goes before one that is made"
    assert from_columns(row, (("text", "none+ask"),)) == Document("疼了三天")
    for column, message in (("title+nose", "no column 'nose'; present: title, ask"), ("title+n", "n must be a string, not int")):
        with pytest.raises(ValueError, match=message):
            from_columns(row, (("text", column),))
    assert identifier(12) == "12"


# -- columns


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("department,title,ask,answer", "内科,能喝咖啡吗,孕期能喝咖啡吗？,少喝。", Record("孕期能喝咖啡吗？", "少喝。", "内科")),
        ("\ufeffid, question ,answer", "a1,头痛怎么办？,多休息", Record("头痛怎么办？", "多休息", "", "a1")),
        ("Question,Answer,x", "头痛,休息,y", Record("头痛", "休息")),
        ("问题,回答,科室", "头痛,休息,内科", Record("头痛", "休息", "内科")),
        ("instruction,input,output", "回答,头痛,休息", Record("回答，头痛", "休息")),
        ("query,response,,", "头痛,休息,,", Record("头痛", "休息")),
        ("title,text,id", "头痛,多休息。,7", Document("多休息。", "头痛", "7")),
        ("id\tquestion\tanswer", '1\t头痛，"左"边\t多休息,多喝水', Record('头痛，"左"边', "多休息,多喝水", "", "1")),
    ],
)
def test_columns_are_recognised(tmp_path: Path, header: str, cells: str, expected: Record | Document) -> None:
    suffix = ".tsv" if "\t" in header else ".csv"
    for name, content in ((f"a{suffix}", f"{header}\n{cells}\n"), ("b.csv", "\n" + header.removeprefix("\ufeff") + f"\r\n{cells}")):
        assert rows(put(tmp_path / name, content)) == [expected]


def test_columns_are_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "title,ask,answer,reply,nr\n头痛,疼了三天,不对,休息,7\n")
    assert rows(path) == [Record("头痛，疼了三天", "不对")]
    assert rows(path, "csv,question=title,answer=reply,id=nr") == [Record("头痛", "休息", "", "7")]
    assert rows(path, "csv,text=ask+reply,title=title") == [Document("疼了三天，休息", "头痛")]


@pytest.mark.parametrize(
    ("header", "kind", "message"),
    [
        ("department,title,ask", "", r"columns \['department', 'title', 'ask'\] are not known; needed: title, ask and answer, or question and"),
        ("question;answer", "", "are not known"),
        ("title,ask,answer,answer", "", r"the columns \['answer'\] stand there more than once"),
        ("question,answer,question", "", r"the columns \['question'\] stand there more than once"),
        ("question,answer\rx", "", "the line of column names cannot be read"),
        ('"question,answer', "", r"the line of column names cannot be read \(a quote that is not closed\)"),
        ("question,\udcff", "csv+utf-8", r"the line of column names cannot be read \(not utf-8-sig\)"),
        ("question,answer", "csv,question=question,answer=reply", "no column 'reply'; present: question, answer"),
        ("a,a", "csv,question=a,answer=a", r"the columns \['a'\] stand there more than once"),
    ],
)
def test_columns_missing_or_doubled(tmp_path: Path, header: str, kind: str, message: str) -> None:
    path = put(tmp_path / "a.csv", (header + "\na,b,c,d\n").encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        rows(path, kind)
    assert str(path) in str(caught.value)


def test_no_line_of_column_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_LIMIT_BYTES", 50)
    for content, message in (("x" * 60 + "\na,b\n", "a line of more than 50 bytes"), ('""\n', "are not known"), ("\n \n", "nothing but blanks")):
        with pytest.raises(ValueError, match=message):
            rows(put(tmp_path / "a.csv", content), "csv")
    blank = put(tmp_path / "a.csv", "\n \n")
    with pytest.raises(ValueError, match="are not known"):
        list(tables.KINDS["csv"].read(Source(blank, "csv", "utf-8-sig", "a")))


# -- rows


def test_toyhom_csv_in_gb18030(tmp_path: Path) -> None:
    path = put(
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
    assert list(read(source)) == [
        Record("高血压能吃党参吗？我有高血压这两天女婿来的时候给我拿了些党参泡水喝", "高血压病人可以口服党参的。", "心血管科", source="sample"),
        Record('头痛，疼了三天,很"重"\n第二行', "", "内科", source="sample"),
        Record("孕期能喝咖啡吗？", "少喝。", "产科", source="sample"),
    ]


def test_a_row_with_too_few_or_too_many_cells(tmp_path: Path) -> None:
    parts = ["department,title,ask,answer\n", "内科,头痛,头痛怎么办,休息\n", "内科,头痛,休息\n", '内科,"a\nb",c,d,e\n', "内科,发烧,发烧怎么办,降温\n"]
    path = put(tmp_path / "a.csv", "".join(parts))
    starts = [len("".join(parts[:number]).encode()) for number in range(len(parts))]
    assert rows(path) == [
        Record("头痛怎么办", "休息", "内科"),
        Reject(str(path), 3, starts[2], "3 cells in a row of 4 columns"),
        Reject(str(path), 4, starts[3], "5 cells in a row of 4 columns"),
        Record("发烧怎么办", "降温", "内科"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_bad_bytes_spoil_only_their_row(tmp_path: Path, encoding: str) -> None:
    """Also where they stand in a quoted cell of several lines, on the line that closes its quote."""
    head, good, last = (line.encode(encoding) for line in ("title,ask,answer\n", "头痛,头痛怎么办,休息\n", "发烧,发烧怎么办,降温\n"))
    quoted = '咳嗽,"咳嗽三天'.encode(encoding) + b"\n\xff" + '怎么办",喝水\n'.encode(encoding)
    bare = "胃痛,".encode(encoding) + b"\xff" + ",喝粥\n".encode(encoding)
    path = put(tmp_path / "a.csv", head + good + quoted + last + bare + good)
    first, reject, middle, second, end = rows(path, f"toyhom_csv+{encoding}")
    assert first == end == Record("头痛怎么办", "休息") and middle == Record("发烧怎么办", "降温")
    assert isinstance(reject, Reject) and isinstance(second, Reject)
    assert (reject.file, reject.line, reject.byte) == (str(path), 3, len(head + good))
    assert (second.file, second.line, second.byte) == (str(path), 6, len(head + good + quoted + last))
    assert encoding in reject.reason


def test_a_nul_and_a_stray_carriage_return(tmp_path: Path) -> None:
    content = b"question,answer\na\0b,c\nx\ry,z\nd,e\n"
    first, reject, last = rows(put(tmp_path / "a.csv", content))
    assert (first, last) == (Record("ab", "c"), Record("d", "e"))
    assert isinstance(reject, Reject) and (reject.line, reject.byte) == (3, content.index(b"x"))


def test_an_over_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_LIMIT_BYTES", 50)
    path = put(tmp_path / "a.csv", "question,answer\n" + "a,b\n" + "x" * 120 + '\nc,d\ne,"f\n' + "y" * 50 + '"\ng,h\n')
    found = rows(path)
    assert [row for row in found if isinstance(row, Record)] == [Record("a", "b"), Record("c", "d"), Record("g", "h")]
    assert rejects(found) == [
        (3, 20, "a line of more than 50 bytes"),
        (5, 145, "a line within a quoted cell cannot be read"),
        (6, 150, "a line of more than 50 bytes"),
    ]


# -- quotes that are never closed


@pytest.mark.parametrize("count", [3, 150, 500])
@pytest.mark.parametrize("place", ["first", "last"])
def test_an_open_quote_costs_one_row(tmp_path: Path, count: int, place: str) -> None:
    head, bad = "question,answer\n", '"没有结束,答案\n'
    good = [f"问{number},答{number}\n" for number in range(count)]
    before = good if place == "last" else []
    content = head + "".join(before) + bad + "".join(good)
    found = rows(put(tmp_path / "a.csv", content))
    records = [Record(f"问{number}", f"答{number}") for number in range(count)]
    assert [row for row in found if isinstance(row, Record)] == records * (1 + bool(before))
    ((line, byte, reason),) = rejects(found)
    assert (line, byte) == (2 + len(before), len((head + "".join(before)).encode()))
    assert reason.startswith("a quote that is not closed")


def test_an_open_quote_in_long_lines(tmp_path: Path) -> None:
    long = "长" * 9_000
    content = f'question,answer\n"开,b\n{long},1\n' + f"{long},2\n" * 20
    found = rows(put(tmp_path / "a.csv", content))
    assert rejects(found) == [(2, 16, "a quote that is not closed within 200 lines or 100000 characters")]
    assert [row.answer for row in found if isinstance(row, Record)] == ["1"] + ["2"] * 20


def test_a_long_closed_quote_is_a_row(tmp_path: Path) -> None:
    inner = "\n".join(f"第{number}行" for number in range(tables.QUOTED_LINES))
    assert rows(put(tmp_path / "a.csv", f'question,answer\n问,"{inner}"\nc,d\n')) == [Record("问", inner), Record("c", "d")]
    more = inner + "\n一行"
    found = rows(put(tmp_path / "a.csv", f'question,answer\n问,"{more}"\nc,d\n'))
    assert rejects(found)[0][:2] == (2, 16) and "not closed within 200 lines" in rejects(found)[0][2]


@pytest.mark.parametrize("last", ['"a', 'a,"', 'a,"b\nc,d', '"'])
def test_an_open_quote_at_the_end(tmp_path: Path, last: str) -> None:
    """Python's reader gives what it has without a word."""
    found = rows(put(tmp_path / "a.csv", "question,answer\na,b\n" + last))
    assert found[0] == Record("a", "b") and rejects(found)[0] == (3, 20, "a quote that is not closed")
    assert found[2:] == ([Record("c", "d")] if "c" in last else [])


@pytest.mark.parametrize("later", ['问,"引号"', '"引号",答', '"a,b","c"', '"a ""b""",c', '""，x,"y"'])
def test_an_open_quote_does_not_end_at_the_next_one(tmp_path: Path, later: str) -> None:
    """What stands between them would be lost in one cell."""
    content = f'question,answer\n"开,b\n问一,答一\n问二,答二\n{later}\n问三,答三\n'
    found = rows(put(tmp_path / "a.csv", content))
    asked = [row.question for row in found if isinstance(row, Record)]
    assert asked[:2] == ["问一", "问二"] and asked[-1] == "问三" and len(asked) == 4
    assert rejects(found) == [(2, 16, "a quote that is not closed before the next one opens")]


# -- Toyhom's text


def test_toyhom_text(tmp_path: Path) -> None:
    content = "头痛,头痛三天了怎么办\n多休息。\n\n\n只有题目\n少吃盐，多运动。\n\n\n血压高,\n吃药。"
    for encoding in ("utf-8", "gb18030"):
        path = put(tmp_path / f"{encoding}.txt", content, encoding)
        source = recognise(str(path))
        assert (source.kind, source.encoding.removesuffix("-sig")) == ("toyhom_text", encoding)
        assert [(row.question, row.answer.strip()) for row in read(source) if isinstance(row, Record)] == [
            ("头痛三天了怎么办", "多休息。"),
            ("只有题目", "少吃盐，多运动。"),
            ("血压高", "吃药。"),
        ]


def test_bad_pairs(tmp_path: Path) -> None:
    good = "头痛,头痛怎么办\n休息\n\n".encode()
    orphan = "胃痛,没有回答\n\n".encode()
    path = put(tmp_path / "a.txt", good + orphan + b"\xff\xfe\n\n" + good + "最后,没有回答".encode())
    found = rows(path, "toyhom_text")
    assert [row for row in found if isinstance(row, Record)] == [Record("头痛怎么办", "休息\n")] * 2
    assert [(line, byte, reason[:9]) for line, byte, reason in rejects(found)] == [
        (4, len(good), "a questio"),
        (6, len(good + orphan), "not utf-8"),
        (11, len(good + orphan) + 4 + len(good), "a questio"),
    ]


# -- Parquet


def table(path: Path, columns: dict[str, Any], group_rows: int = 1000, **options: Any) -> Path:
    """A file of those columns."""
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group_rows, **options)
    return path


def test_parquet(tmp_path: Path) -> None:
    many = 3000
    columns = {
        "id": list(range(many)),
        "question": [f"问{number}" for number in range(many)],
        "answer": pyarrow.array([f"答{number}" for number in range(many)]).dictionary_encode(),
        "unused": [b"\xff"] * many,
    }
    path = table(tmp_path / "a.parquet", columns, group_rows=1100)
    source = recognise(str(path))
    assert (source.kind, source.encoding, source.name) == ("parquet", "", "a")
    assert rows(path) == [Record(f"问{number}", f"答{number}", "", str(number)) for number in range(many)]
    assert rows(path, "parquet,text=question+answer")[7] == Document("问7，答7")


def test_bad_cells_of_parquet(tmp_path: Path) -> None:
    bad = pyarrow.Array.from_buffers(pyarrow.binary(), 1, pyarrow.array([b"\xff"]).buffers()).view(pyarrow.string())
    text = pyarrow.concat_arrays([pyarrow.array(["好", None, "好"]), bad, pyarrow.array(["好", "好"])])
    when = datetime.datetime(2020, 1, 1)
    path = table(tmp_path / "a.parquet", {"question": text, "answer": ["a"] * 6, "at": [when] * 6, "list": [["a"]] * 6}, compression="none")
    found = rows(path)
    assert [row for row in found if isinstance(row, Record)] == [Record("好", "a")] * 4
    assert rejects(found) == [(2, 0, "question must be a string, not NoneType"), (4, 0, "not UTF-8")]
    assert set(rejects(rows(path, "parquet,question=answer,answer=list"))) == {(n, 0, "answer must be a string, not list") for n in range(1, 7)}
    assert rejects(rows(path, "parquet,text=answer,id=at"))[5] == (6, 0, "id must be a string or a number, not datetime")


def test_parquet_without_known_columns(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", {"frage": ["a"]})
    with pytest.raises(ValueError, match=r"a\.parquet: columns \['frage'\] are not known"):
        rows(path)
    with pytest.raises(ValueError, match="no column 'x'; present: frage"):
        rows(path, "parquet,text=x")


def test_parquet_cut_short(tmp_path: Path) -> None:
    """The map of a Parquet file stands at its end."""
    whole = table(tmp_path / "a.parquet", {"question": ["a"] * 999, "answer": ["b"] * 999}).read_bytes()
    for size in (4, 20, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ValueError, match=r"cut\.parquet: not a whole Parquet file"):
            rows(put(tmp_path / "cut.parquet", whole[:size]))


def test_a_damaged_row_group(tmp_path: Path) -> None:
    """The groups before and after it are read."""
    texts = [f"第{number * 7919}个问题" for number in range(300)]
    path = table(tmp_path / "a.parquet", {"question": texts, "answer": texts}, group_rows=100, use_dictionary=False, compression="gzip")
    column = parquet.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.data_page_offset + column.total_compressed_size // 2
    content[start : start + 60] = b"\xff" * 60
    found = rows(put(path, bytes(content)))
    assert [row.question for row in found if isinstance(row, Record)] == texts[:100] + texts[200:]
    ((line, byte, reason),) = rejects(found)
    assert (line, byte) == (101, 0) and reason.startswith("rows 101 to 200 cannot be read: damaged")


# -- the real files


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not beside the project")
@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("toyhom/internal_medicine_sample.csv", "toyhom_csv", 7251), ("toyhom/internal_medicine_pairs.txt", "toyhom_text", 3840)],
)
def test_toyhom_as_it_is(name: str, kind: str, count: int) -> None:
    source = recognise(str(SHARED / name))
    assert (source.kind, source.encoding) == (kind, "gb18030")
    found = list(read(source))
    assert len(found) == count and all(isinstance(row, Record) and row.question and row.answer for row in found)
