"""Bytes to lines and to JSON values: places are exact, archives unpack in place, and what is broken costs only itself."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import PACKED, pack, put, zipped

from medrag.sources import Reject, lines, packed
from medrag.sources.lines import document, encoding, objects, open_bytes, parse, stem, suffix

FEW = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def values(path: Path, coded: str = "utf-8-sig") -> list[Any]:
    """Values alone, a Reject by its reason in a tuple."""
    return [(value.line, value.byte, value.reason) if isinstance(value, Reject) else value for _, _, value in objects(path, coded)]


# -- lines


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    content = "\ufeff一\u2028a\x0bb\x0cc\x85d\re\0f\r\n\n 二"
    path = put(tmp_path / "a.txt", content)
    found = list(lines.lines(path, "utf-8-sig"))
    assert [text for _, _, text in found] == ["一\u2028a\x0bb\x0cc\x85d\re\0f\r\n", "\n", " 二"]
    data = content.encode()
    assert [(number, data[byte:].split(b"\n")[0]) for number, byte, _ in found] == [(n + 1, part) for n, part in enumerate(data.split(b"\n"))]


@FEW
@given(content=st.lists(st.binary(max_size=30) | st.text(max_size=15).map(str.encode), max_size=12).map(b"\n".join))
def test_every_line_is_told_with_its_place(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "a.txt", content)
    found = list(lines.lines(path, "utf-8-sig"))
    whole = content.split(b"\n")
    whole = whole[:-1] if not whole[-1] else whole
    assert [number for number, _, _ in found] == list(range(1, len(whole) + 1))
    for (number, byte, text), line in zip(found, whole, strict=True):
        assert content[byte : byte + len(line)] == line
        assert byte == 0 or content[byte - 1 : byte] == b"\n"
        if isinstance(text, Reject):
            assert (text.file, text.line, text.byte) == (str(path), number, byte) and "not utf-8" in text.reason
        else:
            assert text.rstrip("\n").encode() == (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


@pytest.mark.parametrize("over", [0, 1, 19, 20, 21, 45])
def test_an_over_long_line_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: int) -> None:
    monkeypatch.setattr(lines, "LINE_LIMIT_BYTES", 20)
    content = b"first\n" + b"x" * (19 + over) + b"\nlast"
    found = list(lines.lines(put(tmp_path / "a.txt", content), "utf-8-sig"))
    assert [(number, byte) for number, byte, _ in found] == [(1, 0), (2, 6), (3, len(content) - 4)]
    assert isinstance(found[1][2], Reject) == (over > 0) and found[2][2] == "last"


# -- archives


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zip"])
def test_archives_are_told_by_their_bytes(tmp_path: Path, packing: str, name: str) -> None:
    content = "头痛\n发烧\n".encode()
    path = put(tmp_path / name, pack(packing, content))
    assert [(byte, text) for _, byte, text in lines.lines(path, "utf-8-sig")] == [(0, "头痛\n"), (7, "发烧\n")]
    with open_bytes(path) as stream:
        assert stream.read() == content


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_an_archive_cut_short_is_one_reject_after_all_rows(tmp_path: Path, packing: str, share: float) -> None:
    content = b"".join(b"%d %s\n" % (number, str(number * 7919 % 10007).encode()) for number in range(60_000))
    whole = pack(packing, content)
    cut = whole[: int(len(whole) * share)]
    path = put(tmp_path / f"a{packing}", cut)
    *good, (number, byte, last) = lines.lines(path, "utf-8-sig")
    assert isinstance(last, Reject) and "cut short or damaged" in last.reason
    assert "".join(str(text) for _, _, text in good).encode() == content[:byte]
    assert number == len(good) + 1 and (last.line, last.byte) == (number, byte)
    decompressor: Any = {".gz": zlib.decompressobj(31), ".xz": lzma.LZMADecompressor(), ".bz2": bz2.BZ2Decompressor()}[packing]
    assert byte == decompressor.decompress(cut).rfind(b"\n") + 1, "every whole line that can be unpacked is there"


def test_a_wrong_checksum_is_told_after_the_last_row(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b"a\nb\n"))
    whole[-6] ^= 1
    first, second, (_, byte, last) = lines.lines(put(tmp_path / "a.gz", bytes(whole)), "utf-8-sig")
    assert (first[2], second[2], byte) == ("a\n", "b\n", 4)
    assert isinstance(last, Reject)


def test_a_damaged_zip(tmp_path: Path) -> None:
    content = b"".join(b"%d\n" % (number * 7919) for number in range(100_000))
    whole = bytearray(zipped(a__txt=content))
    whole[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    *good, (_, byte, last) = lines.lines(put(tmp_path / "a.zip", bytes(whole)), "utf-8-sig")
    assert good and isinstance(last, Reject) and last.byte == byte < len(content)
    with pytest.raises(ValueError, match=r"a\.zip: a damaged zip archive"):
        open_bytes(put(tmp_path / "a.zip", bytes(whole[:-30])))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(a__jsonl=b"{}", b__csv=b"a"), r"the archive holds 2 files \(a\.jsonl, b\.csv\); one data file is needed"),
        (zipped(), "the archive holds no file"),
        (zipped(a=b"x", b=b"y"), r"the archive holds 2 files \(a, b\)"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 20, r"packed in a way that is not supported; allowed: \.gz, \.xz, \.bz2, \.zip"),
    ],
)
def test_archives_that_cannot_be_one_source(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_bytes(put(tmp_path / "a", content))


def test_the_data_file_of_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("__MACOSX/._notes.csv", "LICENSE", "../../data/notes.csv", "data/.DS_Store"):
            archive.writestr(name, name)
    with open_bytes(path) as stream:
        assert stream.read() == b"../../data/notes.csv"
    assert lines.member(path) == tmp_path / "notes.csv" and list(tmp_path.iterdir()) == [path]


def test_an_encrypted_zip(tmp_path: Path) -> None:
    whole = bytearray(zipped(a__txt=b"secret"))
    whole[6] |= 1
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ValueError, match="cannot be unpacked"):
        open_bytes(put(tmp_path / "a.zip", bytes(whole)))


def test_a_fault_of_the_disk_is_not_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> gzip.GzipFile:
        class Stream(gzip.GzipFile):
            def readline(self, size: int | None = -1) -> bytes:
                raise OSError(5, "Input/output error")

        return Stream(path)

    monkeypatch.setattr(lines, "open_bytes", broken)
    with pytest.raises(OSError, match="Input/output"):
        list(lines.lines(put(tmp_path / "a.gz", gzip.compress(b"a")), "utf-8-sig"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jsonl.gz", ("a", ".jsonl")), ("a.v1.CSV", ("a.v1", ".csv")), ("a.v1", ("a.v1", ".v1")), ("a", ("a", "")), ("a.tsv.zip", ("a", ".tsv"))],
)
def test_names(name: str, expected: tuple[str, str]) -> None:
    assert (stem(Path("x") / name), suffix(Path("x") / name)) == expected


# -- encodings


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{}\n", "utf-8-sig"),
        ("头痛\n".encode() * 3 + b"\xe5\xa4\n", "utf-8-sig"),
        ("头痛怎么办？\n".encode("gb18030"), "gb18030"),
        ("头痛，怎么办\n".encode("gb18030") * 2 + b"\xb8\xff\n", "gb18030"),
        ("繁體中文：頭痛應該怎麼辦？多喝水。".encode("gb18030"), "gb18030"),
        (('["' + "头痛怎么办，" * 20_000 + '", "').encode() + b'\xff", "' + "胃痛".encode() + b'"]', "utf-8-sig"),
        ("头".encode() * 400_000, "utf-8-sig"),
        (b"ascii\n" * 400_000 + "头痛怎么办？\n".encode("gb18030"), "gb18030"),
    ],
)
def test_encodings(tmp_path: Path, content: bytes, expected: str) -> None:
    for packing in ("", ".gz"):
        assert encoding(put(tmp_path / f"a{packing}", pack(packing, content))) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("头痛".encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
        ("a,b\n".encode("utf-16-le") * 9, "neither UTF-8 nor GB18030"),
        ("頭痛應該怎麼辦？多休息，多喝水。".encode("big5"), "neither"),
        ("頭が痛いときはどうすればいいですか".encode("shift-jis"), "neither"),
        (b"\xff\xff\n\xfe\x81\x20\n", "neither"),
    ],
)
def test_other_encodings_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoding(put(tmp_path / "a", content))


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.randoms(use_true_random=False))
def test_random_bytes_are_no_text(tmp_path: Path, seed: Any) -> None:
    content = seed.randbytes(400)
    for case in (content, bytes(byte | 0x80 for byte in content)):
        with pytest.raises(ValueError, match=r"neither|UTF-16"):
            encoding(put(tmp_path / "a", case))


# -- JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("9" * 5000, "digits"),
        ("{'a': 1}", "Expecting property name"),
        ('"\0"', "Invalid control character"),
    ],
)
def test_what_is_not_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_lone_surrogate_is_let_through() -> None:
    assert parse('"\\ud800"') == "\ud800" and parse('"\\ud83d\\ude00"') == "😀"


@pytest.mark.parametrize("coded", ["utf-8-sig", "gb18030"])
@FEW
@given(data=st.lists(JSON, min_size=1, max_size=5), indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), chunk=st.integers(1, 40))
def test_an_array_gives_its_elements(tmp_path: Path, coded: str, data: list[Any], indent: int | None, ascii_only: bool, chunk: int) -> None:
    """Wherever the chunks are cut, and whatever the elements are; each with the byte where it begins."""
    content = json.dumps(data, ensure_ascii=ascii_only, indent=indent).encode(coded)
    path = put(tmp_path / "a.json", b"\n" + content + b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_CHUNK_BYTES", chunk)
        patch.setattr(lines, "_READ_BYTES", chunk)
        found = list(objects(path, coded))
    assert [value for _, _, value in found] == data
    for line, byte, value in found:
        rest = path.read_bytes()
        assert line == 1 + rest[:byte].count(b"\n")
        assert json.JSONDecoder().raw_decode(rest[byte:].decode(coded))[0] == value


LAYOUTS = {"one line": "[{}, {}, {}]", "line by line": "[\n{},\n{},\n{}\n]", "indented": "[\n  {},\n  {},\n  {}\n]\n", "compact": "[{},\n{},\n{}]"}


BROKEN = {
    '{"a": tru}': "Expecting value",
    '{"a": NaN}': "NaN is not JSON",
    '{"a": [{"a": 1, "a": 2}]}': "a key stands twice",
    '{"a": "\\q", "b": "]}"}': "Invalid \\escape",
    '{"a": ' + "9" * 5000 + "}": "digits",
    "[" * 2000 + "]" * 2000: "nested too deeply",
    '{"a" 1}': "Expecting ':' delimiter",
    '{"a": "\t"}': "Invalid control character",
    "nul": "Expecting value",
}
UNMATCHED = {'{"a": "x}': "", '{"a": [1}': "Expecting ',' delimiter", '{"a": "b" "c"}}': "Expecting ',' delimiter"}
"""quotes or brackets do not match: only lines can tell the elements apart"""
CASES = [(layout, bad, BROKEN[bad]) for layout in LAYOUTS for bad in BROKEN]
CASES += [(layout, bad, UNMATCHED[bad]) for layout in LAYOUTS if layout != "one line" for bad in UNMATCHED]


@pytest.mark.parametrize(("layout", "bad", "reason"), CASES)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_a_broken_element_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, chunk: int, bad: str, reason: str) -> None:
    monkeypatch.setattr(lines, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(lines, "_READ_BYTES", chunk)
    after = {"a": "痛", "b": [2, {"c": 3}]}
    content = LAYOUTS[layout].replace("{}", "%s") % ('{"a": 0}', bad, json.dumps(after, ensure_ascii=False))
    first, broken, *rest = values(put(tmp_path / "a.json", content))
    assert first == {"a": 0} and rest[-1:] == [after]
    assert all(isinstance(each, tuple) for each in rest[:-1]), "what is left of the broken one is not taken for a value"
    assert isinstance(broken, tuple)
    start = len((content.split(bad)[0]).encode())
    assert broken[:2] == (1 + content[:start].count("\n"), start) and reason in broken[2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1}\n\n{"a":\r\n{"b": 2}', [{"a": 1}, (3, 10, "Expecting value: line 2 column 1 (char 7)"), {"b": 2}]),
        ('{\n  "a": 1\n}\n{\n  "a": 2\n}', [{"a": 1}, {"a": 2}]),
        ('{\n{"a": 1}\n{"a": 2}', [(1, 0, "Expecting property name enclosed in double quotes (character 2 of the value)"), {"a": 1}, {"a": 2}]),
        ('[1, 2]\n{"a": 1}', [1, 2, {"a": 1}]),
        ("[]", []),
        ("[", [(1, 1, "the JSON array is not closed")]),
        ('[{"a": 1},', [{"a": 1}, (1, 10, "the JSON array is not closed")]),
        ('[{"a": 1}, {"a": "头', [{"a": 1}, (1, 11, "Unterminated string starting at (character 6 of the value)")]),
        ("\ufeff [1]", [1]),
        ('"a"\n7\n', ["a", 7]),
        ("   \n \t\r\n", []),
    ],
)
def test_other_forms(tmp_path: Path, content: str, expected: list[Any]) -> None:
    assert values(put(tmp_path / "a.json", content)) == expected


@pytest.mark.parametrize("closed", ["\n", " "])
def test_an_over_long_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    monkeypatch.setattr(lines, "LINE_LIMIT_BYTES", 100)
    monkeypatch.setattr(lines, "_CHUNK_BYTES", 10)
    monkeypatch.setattr(lines, "_READ_BYTES", 10)
    content = '[{"a": 1},' + closed + json.dumps({"a": "x" * 900}) + "," + closed + '{"a": 2}]'
    first, over, *rest = values(put(tmp_path / "a.json", content))
    assert (first, over[:2]) == ({"a": 1}, (2 if closed == "\n" else 1, 11)) and "a JSON value of more than 100 bytes" in over[2]
    assert rest == ([{"a": 2}] if closed == "\n" else []), "without lines the next element cannot be found, and the Reject says so"
    assert ("nothing after it can be told apart" in over[2]) == (closed == " ")


@pytest.mark.parametrize("coded", ["utf-8-sig", "gb18030"])
def test_bytes_that_do_not_decode_cost_one_element(tmp_path: Path, coded: str) -> None:
    good = '{"a": "痛"}'.encode(coded)
    content = b"[" + good + b', {"a": "\xff"}, ' + good + b"]"
    first, bad, last = values(put(tmp_path / "a.json", content), coded)
    assert first == last == {"a": "痛"} and bad == (1, 1 + len(good) + 2, f"not {coded}")


def test_an_array_cut_short_in_its_archive(tmp_path: Path) -> None:
    content = json.dumps([{"a": number * 7919} for number in range(50_000)]).encode()
    whole = gzip.compress(content)
    *good, bad = values(put(tmp_path / "a.json.gz", whole[: len(whole) // 2]))
    assert good == [{"a": number * 7919} for number in range(len(good))] and len(good) > 20_000
    assert "cut short or damaged" in bad[2] and content[bad[1] :].startswith(b'{"a": %d' % (len(good) * 7919))


def test_a_whole_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = '\ufeff{"data": ["头痛"]}'
    assert document(put(tmp_path / "a.json", gzip.compress(content.encode())), "utf-8-sig") == {"data": ["头痛"]}
    for bad, message in (
        (b'{"a": NaN}', r"a\.json: NaN"),
        (b'{"a": "\xff"}', "not utf-8-sig at byte 7"),
        (gzip.compress(b"{}" * 99)[:-9], "cut short"),
        (b"[" * 9999, "nested"),
    ):
        with pytest.raises(ValueError, match=message):
            document(put(tmp_path / "a.json", bad), "utf-8-sig")
    monkeypatch.setattr(lines, "DOCUMENT_LIMIT_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes in one JSON value"):
        document(put(tmp_path / "a.json", content), "utf-8-sig")


def test_limits_are_as_documented() -> None:
    assert (lines.LINE_LIMIT_BYTES, lines.DOCUMENT_LIMIT_BYTES, packed.HEAD_BYTES) == (10_000_000, 512_000_000, 65_536)
