"""Data sets with a layout of their own: MATINF, webMedQA, cMedQA, BEIR and C-MTEB."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from medrag import sources
from medrag.sources import datasets
from medrag.sources.rows import Document, Query, Record, Reject, Row, Source


def _rows(path: Path, kind: str) -> list[Row]:
    """What the reader gives, once the path is recognised as that kind among all."""
    source = sources.recognise(str(path))
    assert source.kind == kind
    return list(sources.KINDS[kind].read(source))


def _split(rows: list[Row]) -> tuple[list[Document], list[Query], list[Reject]]:
    return (
        [row for row in rows if isinstance(row, Document)],
        [row for row in rows if isinstance(row, Query)],
        [row for row in rows if isinstance(row, Reject)],
    )


# One file a split.


@pytest.mark.parametrize(("name", "split"), [("train.csv", "train"), ("dev.csv", "dev"), ("test.csv", "test"), ("matinf.csv", "")])
def test_matinf(tmp_path: Path, name: str, split: str) -> None:
    rows = [
        "question,description,answer,class,id",
        '宝宝腹泻怎么办,"两岁，拉了三次,有水",多喝口服补液盐。,腹泻,1',
        "孕期能喝茶吗,孕期能喝茶吗？,淡茶可以少喝。,孕期保健,2",
        "只有三格,腹泻,3",
        "什么时候长牙,,六个月左右。,0-1岁,4",
    ]
    path = tmp_path / name
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    first, second, bad, last = _rows(path, "matinf")
    assert first == Record("宝宝腹泻怎么办，两岁，拉了三次,有水", "多喝口服补液盐。", "腹泻", split=split)
    assert second == Record("孕期能喝茶吗？", "淡茶可以少喝。", "孕期保健", split=split)
    assert isinstance(bad, Reject) and (bad.line, bad.reason) == (4, "3 cells in a row of 5 columns")
    assert last == Record("什么时候长牙", "六个月左右。", "0-1岁", split=split)


def test_webmedqa(tmp_path: Path) -> None:
    rows = [
        "21166878\t1\t内科\t便秘怎么办？\t多喝水，多吃菜。",
        "21166878\t0\t内科\t便秘怎么办？\t睡前不看手机。",
        "妇产科\t1\t21166879\t孕吐怎么办？\t少吃多餐。",
        "21166880\t2\t内科\t失眠？\t早起。",
        "",
        "21166881\t1\t内科\t失眠？",
    ]
    path = tmp_path / "medQA.valid.txt"
    path.write_text("\n".join(rows[:3]), encoding="utf-8")
    good = [Record("便秘怎么办？", "多喝水，多吃菜。", "内科", split="dev"), Record("孕吐怎么办？", "少吃多餐。", "妇产科", split="dev")]
    assert _rows(path, "webmedqa") == good
    path.write_text("\n".join(rows), encoding="utf-8")
    *found, label, cells = datasets.read_webmedqa(Source(path, "webmedqa", "utf-8-sig", "x"))
    assert found == good
    assert isinstance(label, Reject) and (label.line, label.reason) == (4, "the label, the second cell, must be 0 or 1")
    assert isinstance(cells, Reject) and (cells.line, cells.reason) == (6, "4 cells in a row; 5 are needed")


# cMedQA.

CMEDQA = {
    "question.csv": 'question_id,content\n11,便秘怎么办？\n12,失眠怎么办？\n13,"头痛，发烧"\n14,没有人回答\n15,训练和测试里都有\n',
    "answer.csv": 'ans_id,question_id,content\n1,11,多喝水。\n2,11,"多吃菜,多走路。"\n3,12,睡前不看手机。\n4,13,去医院。\n5,15,问医生。\n坏行,15\n',
    "train_candidates.txt": "question_id,pos_ans_id,neg_ans_id\n11,1,3\n11,1,4\n11,2,3\n15,5,1\n11,2\n",
    "dev_candidates.txt": "question_id,ans_id,cnt,label\n12,3,0,1\n12,1,1,0\n12,5,2,0\n",
    "test_candidates.txt": "question_id,ans_id,cnt,label\n13,4,0,1\n13,x,1,0\n15,5,0,1\n15,2,1,0\n",
}


def _cmedqa(folder: Path, packed: bool, plural: bool = False) -> Path:
    folder.mkdir()
    for name, content in CMEDQA.items():
        name = name.replace("question.csv", "questions.csv").replace("answer.csv", "answers.csv") if plural else name
        if packed:
            packed_name = f"{name}.zip" if plural else f"{name.rsplit('.', 1)[0]}.zip"
            with zipfile.ZipFile(folder / packed_name, "w") as archive:
                archive.writestr(name, content)
                archive.writestr(f"__MACOSX/._{name}", b"\0\5\7")
        else:
            (folder / name).write_text(content, encoding="utf-8")
    (folder / "README.md").write_text("# cMedQA2\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(("packed", "plural"), [(False, False), (True, False), (True, True)], ids=["files", "v2 archives", "v1 archives"])
def test_cmedqa(tmp_path: Path, packed: bool, plural: bool) -> None:
    folder = _cmedqa(tmp_path / "cMedQA2", packed, plural)
    found, queries, rejects = _split(_rows(folder, "cmedqa"))
    assert [(each.id, each.text) for each in found] == [
        ("cMedQA2/1", "多喝水。"),
        ("cMedQA2/2", "多吃菜,多走路。"),
        ("cMedQA2/3", "睡前不看手机。"),
        ("cMedQA2/4", "去医院。"),
        ("cMedQA2/5", "问医生。"),
    ]
    ids = {each.id: (each.split, each.answer_ids, each.negative_ids) for each in queries}
    assert ids == {
        "cMedQA2/11": ("train", ("cMedQA2/1", "cMedQA2/2"), ("cMedQA2/3", "cMedQA2/4")),
        "cMedQA2/12": ("dev", ("cMedQA2/3",), ("cMedQA2/1", "cMedQA2/5")),
        "cMedQA2/13": ("test", ("cMedQA2/4",), ()),
        "cMedQA2/15": ("test", ("cMedQA2/5",), ("cMedQA2/2",)),
    }, "a question of two splits is tested on, not trained on"
    assert [each.question for each in queries][2] == "头痛，发烧"
    assert [(each.line, each.reason) for each in rejects] == [
        (3, "4 numbers are needed in a row"),
        (6, "3 numbers are needed in a row"),
        (7, "2 cells in a row of 3 columns"),
        (4, "a question that the data set names no right answer for"),
    ]


def test_cmedqa_keeps_some_of_many_candidates(tmp_path: Path) -> None:
    folder = _cmedqa(tmp_path / "many", packed=False)
    rows = [f"11,1,{number}\n" for number in range(100, 300)]
    (folder / "train_candidates.txt").write_text("question_id,pos_ans_id,neg_ans_id\n" + "".join(rows), encoding="utf-8")
    queries = [row for row in _rows(folder, "cmedqa") if isinstance(row, Query) and row.split == "train"]
    assert [len(each.negative_ids) for each in queries] == [datasets.NEGATIVES]


def test_a_list_of_candidates_of_another_form_is_refused(tmp_path: Path) -> None:
    folder = _cmedqa(tmp_path / "other", packed=False)
    (folder / "dev_candidates.txt").write_text("q,a\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev_candidates\.txt: the first line must be one of question_id,pos_ans_id,neg_ans_id or"):
        _rows(folder, "cmedqa")


# BEIR and C-MTEB.


def _jsonl(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_beir(tmp_path: Path) -> None:
    folder = tmp_path / "medical"
    (folder / "qrels").mkdir(parents=True)
    corpus: list[object] = [
        {"_id": "d1", "title": "痛风", "text": "少吃海鲜。", "metadata": {}},
        {"_id": "d2", "text": "多喝水。"},
        {"_id": "d3"},
        [1],
    ]
    _jsonl(folder / "corpus.jsonl", *corpus)
    (folder / ".cache").mkdir()
    (folder / ".cache/corpus.jsonl").write_text("{}\n", encoding="utf-8")
    _jsonl(
        folder / "queries.jsonl",
        {"_id": "1", "text": "痛风怎么吃", "metadata": {}},
        {"_id": "2", "text": "便秘"},
        {"_id": "4", "text": "头痛"},
        {"_id": "3", "text": "没有"},
    )
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t2\n4\td1\t2\n4\td2\t0\n", encoding="utf-8")
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n2\td2\t1\n1\td2\t1\n3\td1\t0\n", encoding="utf-8")
    found, queries, rejects = _split(_rows(folder, "beir"))
    assert found == [Document("少吃海鲜。", "痛风", "medical/d1"), Document("多喝水。", "", "medical/d2")]
    assert {(each.id, each.split, each.answer_ids, each.negative_ids) for each in queries} == {
        ("medical/1", "test", ("medical/d2",), ()),
        ("medical/2", "test", ("medical/d2",), ()),
        ("medical/4", "train", ("medical/d1",), ("medical/d2",)),
    }
    assert [(Path(each.file).name, each.line, each.reason) for each in rejects] == [
        ("corpus.jsonl", 3, "no column 'text'; present: _id"),
        ("corpus.jsonl", 4, "a JSON list stands where an object is needed"),
        ("queries.jsonl", 4, "a question that the data set names no right answer for"),
    ]


def test_c_mteb(tmp_path: Path) -> None:
    """Corpus and queries in one data set, the qrels in another, put within it."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "CmedqaRetrieval"
    qrels = folder / "CmedqaRetrieval-qrels" / "data"
    (folder / "data").mkdir(parents=True)
    qrels.mkdir(parents=True)

    def write(path: Path, **columns: list[object]) -> None:
        parquet.write_table(pyarrow.table(columns), path)

    write(folder / "data/corpus-00000-of-00001-a3949861f65a3226.parquet", id=["d1", "d2"], text=["少吃海鲜。", "多喝水。"])
    write(folder / "data/queries-00000-of-00001-daeedab899d3c839.parquet", id=["q1", "q2"], text=["痛风怎么吃", "便秘"])
    write(qrels / "dev-00000-of-00001-57fb84a4aceaa695.parquet", qid=["q1", "q2"], pid=["d1", "d2"], score=[1, 1])
    found, queries, rejects = _split(_rows(folder, "beir"))
    assert found == [Document("少吃海鲜。", "", "CmedqaRetrieval/d1"), Document("多喝水。", "", "CmedqaRetrieval/d2")]
    assert [(each.question, each.answer_ids, each.split) for each in queries] == [
        ("痛风怎么吃", ("CmedqaRetrieval/d1",), "dev"),
        ("便秘", ("CmedqaRetrieval/d2",), "dev"),
    ]
    assert not rejects


def test_mteb_with_folders_for_its_parts(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parts: dict[str, dict[str, list[object]]] = {
        "corpus": {"_id": ["d1"], "title": ["痛风"], "text": ["少吃海鲜。"]},
        "queries": {"_id": ["q1"], "text": ["痛风怎么吃"]},
        "qrels": {"query-id": ["q1"], "corpus-id": ["d1"], "score": [1.0]},
    }
    for part, columns in parts.items():
        (tmp_path / "set" / part).mkdir(parents=True)
        parquet.write_table(pyarrow.table(columns), tmp_path / "set" / part / "test-00000-of-00001.parquet")
    assert _rows(tmp_path / "set", "beir")[:1] == [Document("少吃海鲜。", "痛风", "set/d1")]
    (query,) = (row for row in _rows(tmp_path / "set", "beir") if isinstance(row, Query))
    assert (query.answer_ids, query.split, query.line) == (("set/d1",), "test", 1)


def test_a_corpus_without_known_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.tsv").write_text("a\tb\n1\t2\n", encoding="utf-8")
    _jsonl(tmp_path / "queries.jsonl", {"_id": "1", "text": "a"})
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"corpus\.tsv: no column 'text'; present: a, b"):
        _rows(tmp_path, "beir")
