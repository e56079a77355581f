"""Knowledge documents in titled passages: nothing is lost, passages end where sentences end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag import sources
from medrag.sources import documents
from medrag.sources.rows import Document, Reject, Row, Source

REAL = Path(__file__).parents[3] / "shared/data"
SENTENCE = "孕期要按时产检，每次都要量血压、查尿，有头晕眼花马上去医院。"


def _rows(path: Path, kind: str) -> list[Row]:
    """What the reader gives, once the path is recognised as that kind among all."""
    source = sources.recognise(str(path))
    assert source.kind == kind
    return list(sources.KINDS[kind].read(source))


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet="孕妇血压，。！；、,.ab 1\n\u3000", max_size=900), st.integers(20, 300))
def test_chunks_lose_nothing_and_stay_short(body: str, size: int) -> None:
    found = documents.chunks(body, size)
    assert _bare("".join(found)) == _bare(body)
    assert all(piece == piece.strip() and piece for piece in found)
    assert all(len(piece) <= size for piece in found[:-1])
    assert not found or len(found[-1]) <= size + documents.TAIL_CHARACTERS


def test_passages_end_where_sentences_end() -> None:
    found = documents.chunks(SENTENCE * 25)
    assert len(found) == 3 and all(piece.endswith("。") for piece in found)
    assert all(documents.PASSAGE_CHARACTERS - len(SENTENCE) < len(piece) <= documents.PASSAGE_CHARACTERS for piece in found[:-1])


def test_a_short_tail_joins_the_passage_before_it() -> None:
    (found,) = documents.chunks(SENTENCE * 10 + "多喝水。" * 7)
    assert found.endswith("多喝水。") and len(found) > documents.PASSAGE_CHARACTERS


def test_a_sentence_without_end_is_cut_after_commas_and_then_anywhere() -> None:
    assert documents.chunks("，".join(["头晕眼花"] * 100), 50)[0].endswith("，")
    assert [len(piece) for piece in documents.chunks("晕" * 700)] == [300, 300, 100]


def test_other_scripts_keep_blanks_between_sentences() -> None:
    assert documents.chunks("Take one! Then rest? 多喝水。再休息。") == ["Take one! Then rest?多喝水。再休息。"]


def test_long_sections_are_titled_and_short_ones_share_a_passage() -> None:
    long = SENTENCE * 3
    found = list(documents.passages("叶酸片", [("剂型", "片剂"), ("规格", "0.4mg"), ("用法", long), ("", SENTENCE), ("贮藏", "密封")]))
    assert [(each.title, each.text) for each in found] == [
        ("叶酸片：剂型、规格", "剂型：片剂\n规格：0.4mg"),
        ("叶酸片：用法", long),
        ("叶酸片：贮藏", f"{SENTENCE}\n贮藏：密封"),
    ]
    assert len({each.id for each in found}) == 3
    assert [each.id for each in found] == [
        each.id for each in documents.passages("叶酸片", [("剂型", "片剂"), ("规格", "0.4mg"), ("用法", long), ("", SENTENCE), ("贮藏", "密封")])
    ]


def test_monographs(tmp_path: Path) -> None:
    one = f"叶酸片\n药品类型:维生素\n剂型:片剂：0.4mg\n适应证:{SENTENCE * 2}\n1.孕前三个月开始服用。\n"
    two = "【别名】维生素B6；吡哆辛；\n【用法用量】口服，一日一次。"
    path = tmp_path / "drug.json"
    path.write_text(json.dumps([one, 7, "只有名字", two], ensure_ascii=False, indent=1), encoding="utf-8")
    first, second, number, bare, last = _rows(path, "drug_monographs")
    assert first == Document(
        "药品类型：维生素\n剂型：片剂：0.4mg",
        "叶酸片：药品类型、剂型",
        documents.identity("叶酸片：药品类型、剂型", "药品类型：维生素\n剂型：片剂：0.4mg"),
    )
    assert isinstance(second, Document) and second.title == "叶酸片：适应证"
    assert second.text == f"{SENTENCE * 2}1.孕前三个月开始服用。"
    assert isinstance(number, Reject) and number.reason == "a JSON int stands where a text is needed" and number.line == 3
    assert isinstance(bare, Reject) and bare.reason.startswith("a monograph needs its name")
    assert isinstance(last, Document) and (last.title, last.text) == (
        "维生素B6：别名、用法用量",
        "别名：维生素B6；吡哆辛；\n用法用量：口服，一日一次。",
    )


def test_wikipedia_pages(tmp_path: Path) -> None:
    body = "妊娠糖尿病\n\n" + SENTENCE * 6 + "\n\n" + SENTENCE * 8
    rows = [
        {"id": "53", "url": "https://zh.wikipedia.org/wiki?curid=53", "title": "妊娠糖尿病", "text": body},
        {"id": "54", "revid": "1", "url": "", "title": "空页", "text": ""},
        {"id": "55", "url": "", "title": "痛风", "text": "痛风是一种关节炎。"},
    ]
    path = tmp_path / "wiki_00"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    *found, empty, last = _rows(path, "wikipedia")
    assert [row.title for row in found if isinstance(row, Document)] == ["妊娠糖尿病"] * 2
    assert "".join(row.text for row in found if isinstance(row, Document)) == SENTENCE * 14, "the title is not said twice"
    assert isinstance(empty, Reject) and (empty.line, empty.reason) == (2, "text is empty")
    assert isinstance(last, Document) and (last.title, last.text) == ("痛风", "痛风是一种关节炎。")


PAGE = f"""# 母乳喂养

## 开始
{SENTENCE}{SENTENCE}

### 早产儿
早产儿可以用吸奶器。

## 断奶
```
# 不是标题
```
{SENTENCE}{SENTENCE}
## 附录
### 没有正文
"""


def test_markdown_pages(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    found = _rows(path, "page")
    assert [(row.title, row.text.startswith(SENTENCE)) for row in found if isinstance(row, Document)] == [
        ("母乳喂养：开始", True),
        ("母乳喂养：开始：早产儿", False),
        ("母乳喂养：断奶", False),
        ("母乳喂养：附录：没有正文", False),
    ]
    written = "".join(f"{row.title}{row.text}" for row in found if isinstance(row, Document))
    assert all(_bare(word) in _bare(written) for word in re.findall(r"[\u4e00-\u9fff]+", PAGE)), "no heading and no line is lost"


def test_text_pages_are_named_by_their_file(tmp_path: Path) -> None:
    path = tmp_path / "产后.txt"
    path.write_text(f"# 饮食\n{SENTENCE * 3}\n", encoding="gb18030")
    (row,) = _rows(path, "page")
    assert isinstance(row, Document) and row.title == "饮食" and row.text == SENTENCE * 3
    path.write_text(f"开头说一句。\n第二章 运动\n{SENTENCE * 3}\n一、散步\n{SENTENCE * 3}\n", encoding="gb18030")
    found = [row for row in documents.read_page(Source(path, "page", "gb18030", "x")) if isinstance(row, Document)]
    assert [row.title for row in found] == ["产后", "产后：第二章 运动", "产后：第二章 运动：一、散步"]


def test_a_folder_of_pages(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.md").write_text(f"# 甲\n{SENTENCE}\n", encoding="utf-8")
    (tmp_path / "b/b.txt").write_text(f"{SENTENCE}\n", encoding="gb18030")
    (tmp_path / "c.md").write_text("\n\n", encoding="utf-8")
    (tmp_path / "d.md").write_bytes(b"\x00\x01\x02\x03" * 20)
    (tmp_path / ".hidden.md").write_text(SENTENCE, encoding="utf-8")
    (tmp_path / "e.png").write_bytes(b"\x89PNG")
    (tmp_path / "f.md").write_bytes(SENTENCE.encode() + b"\n\xff\xfe\n" + SENTENCE.encode())
    found = _rows(tmp_path, "pages")
    assert [(row.title, row.text) for row in found if isinstance(row, Document)] == [
        ("甲", SENTENCE),
        ("b", SENTENCE),
        ("f", SENTENCE + SENTENCE),
    ]
    assert [(Path(row.file).name, row.line, row.reason) for row in found if isinstance(row, Reject)] == [
        ("c.md", 1, "a page without text"),
        ("d.md", 0, "neither UTF-8 nor GB18030 text"),
        ("f.md", 2, "not utf-8-sig: invalid start byte"),
    ]


def test_real_monographs() -> None:
    path = REAL / "drugs/drug.json"
    if not path.is_file():
        pytest.skip(f"no real data at {path}")
    found = _rows(path, "drug_monographs")
    assert 7000 < len(found) < 10_000 and all(isinstance(row, Document) for row in found)
    pages = json.loads(path.read_text("utf-8"))
    names = {page.split("\n", 1)[0].strip() for page in pages}
    titled = {row.title.split("：")[0] for row in found if isinstance(row, Document)}
    assert len({name.split("：")[0] for name in names} & titled) > 0.98 * len(titled)
    limit = documents.PASSAGE_CHARACTERS + documents.TAIL_CHARACTERS
    assert all(0 < len(row.text) <= limit + documents.SHORT_CHARACTERS for row in found if isinstance(row, Document))
    written = _bare("".join(row.text for row in found if isinstance(row, Document))) + "".join(titled)
    lost = [line for page in pages[::5] for line in page.splitlines()[1:] if _bare(re.sub("^[^:：]{2,12}[:：]", "", line)) not in written]
    assert len(lost) < len(pages) // 500, "a cut between two passages of one drug is no loss, others would be"


def test_a_folder_of_data_with_a_readme_is_no_folder_of_pages(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# 说明\n这些是问答。\n", "utf-8")
    assert sources.recognise(str(tmp_path)).kind == "pages"
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text("{}\n", "utf-8")
    with pytest.raises(ValueError, match="a folder was given, and it is of no known layout; name its files"):
        sources.recognise(str(tmp_path))
    assert sources.recognise(f"pages:{tmp_path}").kind == "pages"
