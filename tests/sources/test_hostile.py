"""Files as nobody would write them: every bad row is kept with its place, its neighbours survive, nothing raises and memory stays bounded."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reading import GOOD, LINES, pack, put, rejects, rows

from medrag.sources import Record, Reject, Row, lines, read, recognise

FEW = settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOYHOM = "头痛,头痛怎么办\n多休息\n\n\n发烧,发烧怎么办\n喝水\n\n\n".encode()
TABLE = b"question,answer\n" + b"".join(f"问{number},答{number}\n".encode() for number in range(6))
ARRAY = json.dumps([{"question": row.question, "answer": row.answer} for row in GOOD * 2], ensure_ascii=False, indent=1).encode()
FILES = {"jsonl": b"".join(LINES * 2), "csv": TABLE, "toyhom_text": TOYHOM, "jsonl array": ARRAY}


def _peak(task: Callable[[], object]) -> int:
    """The most memory in bytes that Python held on the way."""
    tracemalloc.start()
    try:
        task()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- one bad row between good ones


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"question": "a"', "delimiter"),
        (b"not json", "Expecting value"),
        ('{"question": "头痛\0", "answer": "b"}'.encode(), "Invalid control character"),
        (b"\0" * 40, "Expecting value"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"question": "\xff\xfe", "answer": "b"}', "not utf-8"),
        ("头痛怎么办".encode("gb18030"), "not utf-8"),
        ("头痛".encode("utf-16"), "not utf-8"),
        (b"\xed\xa0\x80", "not utf-8"),
        (b"[1, 2]", "a JSON list stands where an object is needed"),
        (b"null", "a JSON NoneType"),
        (b'{"question": "a", "answer": NaN}', "NaN is not JSON"),
        (b'{"question": "a", "answer": "b", "answer": "c"}', "a key stands twice"),
        (b'{"question": "a", "answer": null}', "answer must be a string"),
        (b'{"question": 7, "answer": "b"}', "question must be a string, not int"),
        (b'{"id": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion"),
        (b'{"question": ' * 100_000, "recursion"),
        (b'{"question": "a"}\r{"question": "b"}', "Extra data"),
        (b"\x1f\x8b" + b"x" * 20, "not utf-8"),
    ],
)
def test_a_bad_row_keeps_its_place_and_its_neighbours(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = put(tmp_path / "rows.jsonl", LINES[0] + bad + b"\n" + LINES[1])
    first, reject, last = rows(path, "jsonl+utf-8")
    assert [first, last] == GOOD
    assert isinstance(reject, Reject) and (reject.file, reject.line, reject.byte) == (str(path), 2, len(LINES[0]))
    assert reason in reject.reason and "头痛" not in reject.reason
    reject.reason.encode("utf-8")


@FEW
@given(bad=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")), place=st.integers(1, 3))
@example(b'"', 1)
@example(b"[", 0)
@example(b"{", 0)
@example(b'{"a":[', 2)
def test_any_bytes_in_one_line_of_json(tmp_path: Path, bad: bytes, place: int) -> None:
    whole = [*LINES, LINES[0]]
    whole.insert(place, bad.replace(b"\n", b"") + b"\n")
    found = rows(put(tmp_path / "a.jsonl", b"".join(whole)), "jsonl+utf-8")
    kept = [row for row in found if isinstance(row, Record)]
    assert [row for row in kept if row in GOOD] == [*GOOD, GOOD[0]]


@FEW
@given(bad=st.binary(max_size=60) | st.text("\",\r\0 a痛'\\", max_size=12).map(str.encode), place=st.integers(1, 6))
@example(b'"', 1)
@example(b'a,"', 6)
@example(b'"",""","', 3)
def test_any_bytes_in_one_line_of_a_table(tmp_path: Path, bad: bytes, place: int) -> None:
    whole = TABLE.splitlines(keepends=True)
    whole.insert(place, bad.replace(b"\n", b"") + b"\n")
    found = rows(put(tmp_path / "a.csv", b"".join(whole)), "csv+utf-8")
    good = [Record(f"问{number}", f"答{number}") for number in range(6)]
    assert [row for row in found if row in good] == good


# -- whole files


@FEW
@given(data=st.data(), name=st.sampled_from(sorted(FILES)), packing=st.sampled_from(["", ".gz", ".zip"]))
def test_any_damage_is_contained(tmp_path: Path, data: st.DataObject, name: str, packing: str) -> None:
    """Bytes cut out, put in or overwritten, before and after packing: rows with places inside the file, or one ValueError before the first."""

    def damaged(content: bytes) -> bytes:
        start, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 30))
        return content[:start] + data.draw(st.binary(max_size=10)) + content[start + length :]

    content = damaged(FILES[name])
    packed = pack(packing, content)
    if data.draw(st.booleans()):
        packed = damaged(packed)
    path = put(tmp_path / f"a{packing}", packed)
    found: list[Row] = []
    message = ""
    try:
        found += read(recognise(f"{name.split()[0]}:{path}"))
    except ValueError as error:
        message = str(error)
    assert not message or (str(path) in message and not found)
    for row in found:
        if isinstance(row, Reject):
            assert row.file == str(path) and row.line >= 1 and row.byte >= 0
            assert packing or (row.byte <= len(packed) and row.line <= packed.count(b"\n") + 1)
        else:
            assert isinstance(row, Record)
            (row.question + row.answer + row.id).encode("utf-8")


@pytest.mark.parametrize("name", ["jsonl", "jsonl array", "csv", "toyhom_text"])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_marks_change_nothing(tmp_path: Path, name: str, end: str, last: bool, mark: bytes) -> None:
    content = FILES[name].rstrip(b"\n")
    path = put(tmp_path / "a.x", mark + (content + b"\n" * last).replace(b"\n", end.encode()))
    plain = put(tmp_path / "b.x", content)
    kind = name.split()[0]

    def texts(found: list[Row]) -> list[tuple[str, str]]:
        return [(row.question.strip(), row.answer.strip()) for row in found if isinstance(row, Record)]

    assert texts(rows(path, kind)) == texts(rows(plain, kind)) != []
    assert rejects(rows(path, kind)) == []


@pytest.mark.parametrize("name", ["jsonl", "csv", "toyhom_text"])
def test_carriage_returns_alone_end_no_line(tmp_path: Path, name: str) -> None:
    """The file is one line then: it is told so once, not taken for rows."""
    path = put(tmp_path / "a.x", FILES[name].replace(b"\n", b"\r"))
    if name == "csv":
        with pytest.raises(ValueError, match="the line of column names cannot be read"):
            rows(path, name)
        return
    assert [(line, byte) for line, byte, _ in rejects(rows(path, name))] == [(1, 0)] and len(rows(path, name)) == 1


def test_two_encodings_in_one_file(tmp_path: Path) -> None:
    """The lines that are not in the one that most are in are told, each with its place."""
    other = [line.decode().encode("gb18030") for line in LINES]
    path = put(tmp_path / "a.jsonl", LINES[0] * 3 + other[0] + LINES[1] * 3 + other[1])
    source = recognise(str(path))
    assert source.encoding == "utf-8-sig"
    found = rows(path)
    assert [row for row in found if isinstance(row, Record)] == [GOOD[0]] * 3 + [GOOD[1]] * 3
    assert [place[:2] for place in rejects(found)] == [(4, 3 * len(LINES[0])), (8, 3 * len(LINES[0] + LINES[1]) + len(other[0]))]


def test_a_mark_within_the_file(tmp_path: Path) -> None:
    """Two files with marks, one written behind the other."""
    path = put(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + LINES[0] + b"\xef\xbb\xbf" + LINES[1] + LINES[0])
    first, reject, last = rows(path)
    assert first == last == GOOD[0]
    assert isinstance(reject, Reject) and (reject.line, reject.byte) == (2, 3 + len(LINES[0])) and "BOM" in reject.reason


def test_a_lone_surrogate(tmp_path: Path) -> None:
    """In a text it is left out, in an id the row is refused: another row could come to have the same."""
    content = b'{"question": "a\\ud800b", "answer": "\\ud83d\\ude00"}\n{"question": "a", "answer": "b", "id": "\\udc00"}\n'
    path = put(tmp_path / "a.jsonl", content)
    first, second = rows(path, "jsonl")
    assert first == Record("ab", "😀")
    assert isinstance(second, Reject) and (second.file, second.line, second.byte) == (str(path), 2, content.index(b"\n") + 1)


# -- memory


def test_a_real_line_of_eleven_megabytes(tmp_path: Path) -> None:
    over = b'{"question": "' + b"x" * 11_000_000 + b'", "answer": "b"}\n'
    path = put(tmp_path / "a.jsonl", LINES[0] + over + LINES[1])
    found: list[Row] = []
    peak = _peak(lambda: found.extend(rows(path, "jsonl")))
    assert found == [GOOD[0], Reject(str(path), 2, len(LINES[0]), "a line of more than 10000000 bytes"), GOOD[1]]
    assert peak < 35_000_000, "the longest line and a copy of it"


def test_an_archive_that_swells(tmp_path: Path) -> None:
    """150 MB out of 150 kB, as one line and as many."""
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(LINES[0])
        for _ in range(150):
            stream.write(b"0" * 1_000_000)
        stream.write(b"\n" + LINES[1])
    found: list[Row] = []
    peak = _peak(lambda: found.extend(rows(path, "jsonl")))
    assert path.stat().st_size < 1_000_000 and peak < 35_000_000
    assert found == [GOOD[0], Reject(str(path), 2, len(LINES[0]), f"a line of more than {lines.LINE_LIMIT_BYTES} bytes"), GOOD[1]]


@pytest.mark.parametrize("between", [b", ", b",\n"])
def test_an_array_is_read_in_little_memory(tmp_path: Path, between: bytes) -> None:
    """One array of 5 MB, on one line or on many."""
    element = LINES[0].strip()
    path = put(tmp_path / "a.json", b"[" + between.join([element] * 70_000) + b"]")
    count = 0

    def task() -> None:
        nonlocal count
        count = sum(isinstance(value, dict) for _, _, value in lines.objects(path, "utf-8-sig"))

    peak = _peak(task)
    assert path.stat().st_size > 5_000_000 and count == 70_000
    assert peak < 2_500_000, peak


def test_an_array_with_an_element_of_eleven_megabytes(tmp_path: Path) -> None:
    over = b'{"question": "' + b"x" * 11_000_000 + b'", "answer": "b"}'
    path = put(tmp_path / "a.json", b"[" + LINES[0].strip() + b",\n" + over + b",\n" + LINES[1].strip() + b"]")
    found: list[Row] = []
    peak = _peak(lambda: found.extend(rows(path, "jsonl")))
    assert [row for row in found if isinstance(row, Record)] == GOOD
    assert rejects(found) == [(2, len(LINES[0]) + 2, "a JSON value of more than 10000000 bytes")]
    assert peak < 70_000_000


def test_a_table_in_one_quote(tmp_path: Path) -> None:
    """Every row opens a quote: each costs a look at the next 200 lines, never the whole file."""
    path = put(tmp_path / "a.csv", "question,answer\n" + '"a,b\n' * 3000 + "c,d\n")
    found: list[Row] = []
    peak = _peak(lambda: found.extend(rows(path, "csv")))
    assert found[-1] == Record("c", "d") and len(found) == 3001
    assert peak < 5_000_000
