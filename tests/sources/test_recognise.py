"""What an argument is taken for, and how one that cannot be read is refused; names, splits and files of a source."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from reading import GOOD, LINES, pack, put, rejects, rows, zipped

from medrag import sources
from medrag.sources import Document, Kind, Query, Record, Reject, Row, Source, read, recognise, source_files


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", "title,ask,answer\n", "toyhom_csv"),
        ("a.csv", "\ufeffdepartment,title,ask,answer\r\n", "toyhom_csv"),
        ("a.csv", "x,y\n", "csv"),
        ("a.tsv", "x\ty\n", "csv"),
        ("a.TSV.gz", "x\ty\n", "csv"),
        ("a.jsonl", "{}\n", "jsonl"),
        ("a.txt", "{}\n", "jsonl"),
        ("a", "\ufeff  {}\n", "jsonl"),
        ("a.txt", "头痛,怎么办\n多休息\n\n\n发烧,怎么办\r\n喝水", "toyhom_text"),
    ],
)
@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_kinds_are_recognised(tmp_path: Path, name: str, content: str, kind: str, packing: str) -> None:
    source = recognise(str(put(tmp_path / f"{name}{packing}", pack(packing, content.encode()))))
    assert (source.kind, source.encoding, source.name, source.split, source.columns) == (kind, "utf-8-sig", "a", "", ())


def test_a_zip_is_recognised_by_what_it_holds(tmp_path: Path) -> None:
    source = recognise(str(put(tmp_path / "ward.zip", zipped(notes__tsv=b"question\tanswer\na\tb\n"))))
    assert (source.kind, source.name, source.path) == ("csv", "ward", tmp_path / "ward.zip")
    assert list(read(source)) == [Record("a", "b", source="ward")]


@pytest.mark.parametrize("content", ["头痛\n", "一段话。\n\n又一段话。\n"])
def test_an_unknown_kind_asks_for_its_name(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match=r"data\.json: not recognised; name its kind, as in KIND:.* jsonl, .*toyhom_csv, .*toyhom_text"):
        recognise(str(put(tmp_path / "data.json", content)))


def test_what_is_said_wins(tmp_path: Path) -> None:
    path = put(tmp_path / "notes.md", "头痛,怎么办\n多休息\n", "gb18030")
    assert recognise(f"toyhom_text:{path}") == Source(path, "toyhom_text", "gb18030", "notes")
    source = recognise(f"toyhom_text+gb18030:{path}")
    assert source.encoding == "gb18030" and source == recognise(f"toyhom_text+GB18030:{path}")
    assert [row.question for row in read(source) if isinstance(row, Record)] == ["头痛，怎么办"]
    assert all(isinstance(row, Reject) for row in rows(path, "toyhom_text+utf-8"))


def test_options(tmp_path: Path) -> None:
    path = put(tmp_path / "notes.csv", "title,ask,reply\n头痛,怎么办,休息\n", "gb18030")
    source = recognise(f"csv+gb18030,question=title+ask,answer=reply,name=ward,split=dev:{path}")
    assert source == Source(path, "csv", "gb18030", "ward", "dev", (("question", "title+ask"), ("answer", "reply")))
    assert list(read(source)) == [Record("头痛，怎么办", "休息", source="ward", split="dev")]


def test_a_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.jsonl", "a,b=c:d.jsonl"):
        put(tmp_path / name, LINES[0])
        assert recognise(name).path == Path(name)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{}/missing.jsonl", r"missing\.jsonl: no such file"),
        ("jsonl:{}/missing.jsonl", r"missing\.jsonl: no such file"),
        ("{}/broken.jsonl", r"broken\.jsonl: no such file"),
        ("jsonl:{}", "a folder was given where a file is needed; kinds that read a folder: .*beir"),
        ("beir:{}/good.jsonl", "a file was given where beir needs a folder"),
        ("{}/none", "of no known layout; name its files, or a kind of folder: .*beir: corpus"),
        ("{}/pipe", "neither a file nor a folder"),
        ("{}/empty.jsonl", r"empty\.jsonl: the file is empty"),
        ("{}/empty.gz", r"empty\.gz: the file is empty, or damaged"),
        ("{}/short.gz", r"short\.gz: the file is empty, or damaged"),
        ("{}/blank.jsonl", r"blank\.jsonl: nothing but blanks"),
        ("{}/two.zip", r"two\.zip: the archive holds 2 files \(a\.csv, b\.csv\)"),
        ("{}/none.zip", "the archive holds no file"),
        ("{}/all.tar", "a tar archive; unpack it first"),
        ("frage:{}/good.jsonl", "'frage' is no kind of source; allowed: .*jsonl, parquet, toyhom_csv, csv, toyhom_text"),
        ("jsonl+big5:{}/good.jsonl", "encoding 'big5' is not supported; allowed: utf-8, gb18030"),
        ("parquet:{}/good.jsonl", "its bytes are not parquet; allowed: a kind of text"),
        ("parquet+utf-8:{}/par.quet", "its bytes are no text; allowed: parquet, without an encoding"),
        ("csv:{}/par.quet", "its bytes are no text; allowed: parquet"),
        ("{}/binary.jsonl", r"binary\.jsonl: neither UTF-8 nor GB18030"),
        ("csv,frage=a:{}/good.jsonl", "option 'frage' is unknown to csv; allowed: name, split, question, answer, department, id, source"),
        ("toyhom_text,question=a:{}/good.jsonl", "option 'question' is unknown to toyhom_text; allowed: name, split"),
        ("csv,name=:{}/good.jsonl", "option 'name=' has no value"),
        ("csv,name:{}/good.jsonl", "option 'name' has no value; needed: OPTION=VALUE"),
        ("csv,name=a,name=b:{}/good.jsonl", "option 'name=b' stands there twice"),
        ("csv,split=dev2:{}/good.jsonl", "split='dev2'; allowed: train, dev, test"),
        ("csv,question=a:{}/good.jsonl", "field 'answer' is missing"),
        ("csv,text=a,answer=b:{}/good.jsonl", "field 'answer' does not go with text"),
    ],
)
def test_what_cannot_be_a_source(tmp_path: Path, argument: str, message: str) -> None:
    for name, content in {
        "empty.jsonl": b"",
        "empty.gz": gzip.compress(b""),
        "short.gz": gzip.compress(b"a")[:11],
        "blank.jsonl": "\ufeff \r\n\n".encode(),
        "two.zip": zipped(a__csv=b"a", b__csv=b"a"),
        "none.zip": zipped(),
        "all.tar": b"a".ljust(257, b"\0") + b"ustar",
        "good.jsonl": LINES[0],
        "par.quet": b"PAR1" + b"x" * 50,
        "binary.jsonl": b"\xff\xff\x00\x81\n\xff\xff\n",
    }.items():
        put(tmp_path / name, content)
    (tmp_path / "none").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=message):
        recognise(argument.format(tmp_path))


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources, "head_of", denied)
    with pytest.raises(ValueError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        recognise(str(put(tmp_path / "a.jsonl", LINES[0])))


def test_all_kinds_say_what_they_look_like() -> None:
    assert {"jsonl", "toyhom_csv", "toyhom_text", "csv", "parquet"} <= set(sources.KINDS)
    assert [name for name, kind in sources.KINDS.items() if not kind.layout] == []


# -- reading


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Row | Exception]:
    """Rows that a reader gives, or errors that it raises."""
    told: list[Row | Exception] = []

    def reader(source: Source) -> Iterator[Row]:
        for row in told:
            if isinstance(row, Exception):
                raise row
            yield row

    monkeypatch.setitem(sources.KINDS, "told", Kind(reader))
    return told


def test_rows_are_named_after_their_source(tmp_path: Path, given: list[Row | Exception]) -> None:
    given += [Record("a", "b", source="own", split="test"), Record("a", "b"), Document("a"), Query("a", (), "dev"), Reject("f", 1, 2, "r")]
    path = tmp_path / "a.x"
    named = [Record("a", "b", source="own", split="test"), Record("a", "b", source="n"), Document("a", source="n"), Query("a", (), "dev", source="n")]
    assert list(read(Source(path, "told", "", "n"))) == [*named, Reject("f", 1, 2, "r")]
    found = list(read(Source(path, "told", "", "n", "train")))
    assert [row.split for row in found if isinstance(row, Record | Query)] == ["train"] * 3, "what was said of all rows wins"


def test_all_texts_can_be_written(tmp_path: Path, given: list[Row | Exception]) -> None:
    given += [
        Record("a\ud800b", "😀", "\udcff", "7"),
        Record("a", "b", id="\ud800"),
        Document("\udfff", "t\udc80"),
        Query("q", ("a", "\ud800"), file="f", line=3, byte=9),
        Query("q", ("a",), answers=("x\ud800", "y")),
        Reject("\udcffile", 1, 2, "r"),
    ]
    path = tmp_path / "a.x"
    reason = "{} holds a lone surrogate: it cannot be written as UTF-8"
    assert list(read(Source(path, "told", "", "n"))) == [
        Record("ab", "😀", "", "7", "n"),
        Reject(str(path), 0, 0, reason.format("id")),
        Document("", "t", source="n"),
        Reject("f", 3, 9, reason.format("answer_ids")),
        Query("q", ("a",), answers=("x", "y"), source="n"),
        Reject("ile", 1, 2, "r"),
    ]


@pytest.mark.parametrize("error", [ValueError("患者张三"), RecursionError("deep"), UnicodeDecodeError("utf-8", b"x", 0, 1, "r")])
def test_a_reader_that_fails(tmp_path: Path, given: list[Row | Exception], error: Exception) -> None:
    """Before the first row it is the caller's to know; after it the rows given are kept, and no text of a row is told."""
    path = tmp_path / "a.x"
    given += [error]
    with pytest.raises(ValueError, match=r"患者张三|nested too deeply|codec"):
        list(read(Source(path, "told", "", "n")))
    given.insert(0, Record("a", "b"))
    kept, reject = read(Source(path, "told", "", "n"))
    assert kept == Record("a", "b", source="n")
    assert reject == Reject(str(path), 0, 0, f"the reader of told failed after 1 rows ({type(error).__name__})")


def test_the_files_of_a_source(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b"".join(LINES))
    assert source_files(recognise(str(path))) == [path]
    folder = tmp_path / "folder"
    (folder / "b" / ".git").mkdir(parents=True)
    for name in ("b/z.tsv", "a.jsonl", "b/.hidden", "b/.git/x"):
        put(folder / name, "x")
    assert source_files(Source(folder, "beir", "", "folder")) == [folder / "a.jsonl", folder / "b" / "z.tsv"]


def test_a_folder_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.KINDS, "ward", Kind(lambda source: iter(()), lambda path, head: (path / "x.ward").exists(), folder=True))
    folder = tmp_path / "ward.v1"
    folder.mkdir()
    put(folder / "x.ward", "x")
    assert recognise(str(folder)) == Source(folder, "ward", "", "ward.v1") == recognise(f"ward:{folder}")
    with pytest.raises(ValueError, match="the files of a folder tell their own encoding"):
        recognise(f"ward+utf-8:{folder}")


def test_neighbours_of_a_bad_row(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", LINES[0] + b"{broken\n" + LINES[1])
    found = rows(path)
    assert [row for row in found if isinstance(row, Record)] == GOOD
    assert [place[:2] for place in rejects(found)] == [(2, len(LINES[0]))]
