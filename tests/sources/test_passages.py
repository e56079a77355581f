"""Questions with the passages they were asked of: DPR, DuReader, DuReader-retrieval, CMRC 2018."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from medrag import sources
from medrag.sources import documents, passages
from medrag.sources.rows import Document, Query, Reject, Row, Source

REAL = Path(__file__).parents[3] / "shared/data"


def _rows(path: Path, kind: str) -> list[Row]:
    """What the reader gives, once the path is recognised as that kind among all."""
    source = sources.recognise(str(path))
    assert source.kind == kind
    return list(sources.KINDS[kind].read(source))


def _write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def _split(rows: list[Row]) -> tuple[list[Document], list[Query], list[Reject]]:
    return (
        [row for row in rows if isinstance(row, Document)],
        [row for row in rows if isinstance(row, Query)],
        [row for row in rows if isinstance(row, Reject)],
    )


def _context(title: str | None, text: str, **more: object) -> dict[str, object]:
    return {"title": title, "text": text, "score": 1000, "title_score": 1, **more}


def test_dpr(tmp_path: Path) -> None:
    right, near = _context("叶酸", "怀孕前三个月开始吃叶酸。", passage_id="11"), _context("铁剂", "贫血时按医嘱补铁。", psg_id=12)
    far = _context(None, "痛风少吃海鲜。")
    row = {
        "dataset": "train",
        "question": "叶酸什么时候吃？",
        "answers": ["怀孕前三个月"],
        "positive_ctxs": [right, right],
        "negative_ctxs": [far, near],
        "hard_negative_ctxs": [near, right],
    }
    path = _write(tmp_path / "dpr.json", [row, {**row, "positive_ctxs": []}, {"question": "只有正例", "answers": [], "positive_ctxs": [far]}])
    found, queries, rejects = _split(_rows(path, "dpr"))
    far_id = documents.identity("", "痛风少吃海鲜。")
    assert found == [
        Document("怀孕前三个月开始吃叶酸。", "叶酸", "dpr/11"),
        Document("贫血时按医嘱补铁。", "铁剂", "dpr/12"),
        Document("痛风少吃海鲜。", "", far_id),
        Document("痛风少吃海鲜。", "", far_id),
    ]
    first, last = queries
    assert (first.question, first.answer_ids, first.answers) == ("叶酸什么时候吃？", ("dpr/11",), ("怀孕前三个月",))
    assert first.negative_ids == ("dpr/12", far_id), "hard negatives first, and no right passage among them"
    assert (last.answer_ids, last.negative_ids, last.file) == ((far_id,), (), str(path))
    assert [reject.reason for reject in rejects] == ["positive_ctxs names no passage"]
    assert rejects[0].line > 1 and rejects[0].byte > 0


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"positive_ctxs": ["text"]}, "positive_ctxs must be a list of objects"),
        ({"positive_ctxs": [{"title": "a"}]}, "text must be a string, not NoneType"),
        ({"negative_ctxs": {"text": "a"}}, "negative_ctxs must be a list of objects"),
        ({"answers": [1]}, "answers must hold strings, not int"),
    ],
)
def test_a_broken_dpr_row_gives_no_passage(tmp_path: Path, broken: dict[str, object], reason: str) -> None:
    row = {"question": "a", "answers": [], "positive_ctxs": [_context("t", "b")], **broken}
    (reject,) = _rows(_write(tmp_path / "dpr.json", [row]), "dpr")
    assert isinstance(reject, Reject) and reject.reason == reason


def _page(title: str, *paragraphs: str, selected: bool = False) -> dict[str, object]:
    return {"is_selected": selected, "title": title, "most_related_para": 0, "paragraphs": list(paragraphs), "bs_rank_pos": 0}


def test_dureader(tmp_path: Path) -> None:
    filler = [f"这是第{number}段，讲的是别的事情，和问题没有什么关系，只是为了把这一页写得很长很长，好让它分成几段。" for number in range(14)]
    row = {
        "question": "孕妇感冒了怎么办",
        "question_id": 181574,
        "question_type": "DESCRIPTION",
        "fact_or_opinion": "FACT",
        "answers": ["孕妇感冒要多休息多喝温水，发烧超过三十八度五去医院。"],
        "documents": [
            _page("孕期感冒_百科", *filler, "孕妇感冒要多休息，多喝温水。", "发烧超过三十八度五去医院。", selected=True),
            _page("别的页", "今天天气很好。"),
        ],
        "answer_docs": [0],
    }
    bare = {**row, "question_id": 2, "documents": [_page("只有文章", "高血压按时吃药。")], "answers": []}
    path = tmp_path / "zhidao.dev.json"
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in (row, bare)), encoding="utf-8")
    found, queries, rejects = _split(_rows(path, "dureader"))
    assert {each.title for each in found} == {"孕期感冒_百科", "别的页", "只有文章"}
    written = "".join(each.text for each in found if each.title == "孕期感冒_百科")
    assert all(line in written for line in filler), "no paragraph is lost"
    (query,) = queries
    assert (query.split, query.id, query.line, query.answers) == ("dev", "dureader/181574", 1, tuple(row["answers"]))  # type: ignore[arg-type]
    (right,) = [each for each in found if each.id in query.answer_ids]
    assert "孕妇感冒要多休息" in right.text and query.negative_ids == ()
    (reject,) = rejects
    assert reject.line == 2 and "its passages are kept" in reject.reason


def test_dureader_retrieval_json(tmp_path: Path) -> None:
    row = {
        "question": "太阳花怎么养",
        "question_id": "edb58f525bd14724d6f490722fa8a657",
        "answer_paragraphs": [{"paragraph_id": "5ea96c", "paragraph_text": "太阳花喜欢阳光。"}, {"paragraph_id": "5ea96d"}],
    }
    path = tmp_path / "train.json"
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in (row, {**row, "answer_paragraphs": []})), encoding="utf-8")
    found, queries, rejects = _split(_rows(path, "dureader_retrieval"))
    assert found == [Document("太阳花喜欢阳光。", id="5ea96c")]
    assert [(each.answer_ids, each.split) for each in queries] == [(("5ea96c", "5ea96d"), "train")]
    assert [each.reason for each in rejects] == ["answer_paragraphs names no passage"]


def test_dureader_retrieval_with_hard_negatives(tmp_path: Path) -> None:
    """dual.train.tsv: neighbouring lines are one question."""
    rows = [
        "孕吐怎么办\t-\t少吃多餐。\t孕期\t多走路。\t0",
        "孕吐怎么办\t-\t少吃多餐。\t-\t去旅游。\t0",
        "坏行\t只有两格",
        "失眠怎么办\t睡眠\t早起。\t-\t少吃多餐。\t0",
    ]
    path = tmp_path / "dual.train.tsv"
    path.write_text("\n".join(rows), encoding="utf-8")
    path.with_suffix(".good").write_text("\n".join(rows[:2]), encoding="utf-8")
    found, queries, rejects = _split(list(passages.read_dual(Source(path, "", "utf-8-sig", ""))))
    assert _rows(path.with_suffix(".good"), "dureader_retrieval_tsv")
    name = {each.text: each.id for each in found}
    assert [each.title for each in found[:2]] == ["", "孕期"]
    assert [(each.question, each.answer_ids, each.negative_ids, each.split, each.line) for each in queries] == [
        ("孕吐怎么办", (name["少吃多餐。"],), (name["多走路。"], name["去旅游。"]), "train", 1),
        ("失眠怎么办", (name["早起。"],), (name["少吃多餐。"],), "train", 4),
    ]
    assert [(each.line, each.reason) for each in rejects] == [(3, "2 cells in a row; 4 or 6 are needed")]
    assert rejects[0].byte == len("\n".join(rows[:2]).encode()) + 1


def test_dureader_retrieval_with_labels_and_its_collection(tmp_path: Path) -> None:
    rows = ["孕吐怎么办\t\t少吃多餐。\t1", "孕吐怎么办\t\t多走路。\t0", "没有答案\t\t多走路。\t0", "-\t\t段落一。\t0", "-\t\t段落二。\t0"]
    path = tmp_path / "cross.dev.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    found, queries, rejects = _split(_rows(path, "dureader_retrieval_tsv"))
    assert [each.text for each in found] == ["少吃多餐。", "多走路。", "多走路。", "段落一。", "段落二。"]
    assert [(each.question, len(each.answer_ids), len(each.negative_ids), each.split) for each in queries] == [("孕吐怎么办", 1, 1, "dev")]
    assert [each.line for each in rejects] == [3]


ARTICLE = {
    "title": "产后护理",
    "id": "DEV_0",
    "paragraphs": [
        {
            "id": "DEV_0",
            "context": "产后六周可以开始轻的运动。",
            "qas": [
                {
                    "question": "产后多久运动？",
                    "id": "DEV_0_QUERY_0",
                    "answers": [{"text": "六周", "answer_start": 2}, {"text": "六周", "answer_start": 2}],
                }
            ],
        }
    ],
}


def test_cmrc_in_both_its_forms(tmp_path: Path) -> None:
    squad = _write(tmp_path / "cmrc2018_dev.json", {"version": "v1.0", "data": [ARTICLE, {"title": "坏", "paragraphs": [{"context": 3}]}, 4]})
    own = {
        "context_id": "DEV_0",
        "context_text": "产后六周可以开始轻的运动。",
        "qas": [{"query_text": "产后多久运动？", "query_id": "DEV_0_QUERY_0", "answers": ["六周", "六周"]}],
        "title": "产后护理",
    }
    original = _write(tmp_path / "cmrc2018_trial_dev.json", [own])
    first, query, *rejects = _rows(squad, "squad")
    context, other = _rows(original, "cmrc2018")
    assert first == context == Document("产后六周可以开始轻的运动。", "产后护理", "DEV_0")
    for row in (query, other):
        assert isinstance(row, Query)
        assert (row.question, row.answer_ids, row.answers) == ("产后多久运动？", ("DEV_0",), ("六周",))
        assert (row.split, row.id) == ("dev", "DEV_0_QUERY_0")
    assert [(row.line, row.reason) for row in rejects if isinstance(row, Reject)] == [
        (2, "article 2: context must be a string, not int"),
        (3, "article 3: a JSON int stands where an article is needed"),
    ]


def test_a_file_without_articles_cannot_be_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", {"version": "v1", "data": {}})
    with pytest.raises(ValueError, match=r"a\.json: data must be a list of articles"):
        list(passages.read_squad(Source(path, "squad", "utf-8-sig", "a")))


def test_real_cmrc() -> None:
    path = REAL / "cmrc2018/cmrc2018_dev.json"
    if not path.is_file():
        pytest.skip(f"no real data at {path}")
    rows = _rows(path, "squad")
    count = Counter(type(row).__name__ for row in rows)
    assert count["Document"] > 800 and count["Query"] > 3000 and not count["Reject"]
    texts = {row.id: row.text for row in rows if isinstance(row, Document)}
    assert all(any(answer in texts[row.answer_ids[0]] for answer in row.answers) for row in rows if isinstance(row, Query))
