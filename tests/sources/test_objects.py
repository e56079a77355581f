"""JSON rows: every public form, told by its keys, and bad rows that keep their place and their neighbours."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrag import sources
from medrag.sources import documents, objects
from medrag.sources.rows import Document, Query, Record, Reject, Row, Source

REAL = Path(__file__).parents[3] / "shared/data"
INNER_KEYS = ["from", "value", "title", "text", "paragraphs", "is_selected", "passage_id", "paragraph_id", "paragraph_text", "answers", "query_text"]
GOOD = [Record("头痛怎么办？", "多休息，加重就去医院。"), Record("发烧怎么办？", "先物理降温。")]
LINES = [
    '{"question": "头痛怎么办？", "answer": "多休息，加重就去医院。"}\n'.encode(),
    '{"question": "发烧怎么办？", "answer": "先物理降温。"}\n'.encode(),
]


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _seen(path: Path) -> str:
    """The kind that a file is recognised as, among all."""
    return sources.recognise(str(path)).kind


def _rows(path: Path, kind: str = "", columns: tuple[tuple[str, str], ...] = ()) -> list[Row]:
    source = Source(path, kind or _seen(path), "utf-8-sig", "name", columns=columns)
    return list(objects.KINDS[source.kind].read(source))


LITE = {"id": 88, "answer": "多喝水。", "score": 5, "label": "妇产科", "question": "孕期便秘怎么办？", "related_diseases": "便秘"}
BAIKE = {"qid": "qid_1", "category": "健康-妇产科", "title": "孕期能喝茶吗", "desc": "", "answer": "淡茶可以少喝。"}
WEBTEXT = {
    "qid": 65618973,
    "title": "失眠怎么办？",
    "desc": "最近总睡不着。",
    "topic": "健康",
    "star": 3,
    "content": "睡前不看手机。",
    "answer_id": 545576062,
    "answerer_tags": "医生@心理学",
}


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("huatuo_llama", {"instruction": "头痛怎么办", "input": "", "output": "休息"}, [Record("头痛怎么办", "休息")]),
        ("huatuo_llama", {"instruction": "回答问题", "input": "头痛怎么办", "output": "休息"}, [Record("回答问题，头痛怎么办", "休息")]),
        ("huatuo_llama", {"instruction": "头痛怎么办", "input": None, "output": "休息"}, [Record("头痛怎么办", "休息")]),
        ("huatuo_llama", {"instruction": "头痛怎么办", "output": "休息"}, [Record("头痛怎么办", "休息")]),
        ("chatmed", {"query": "叶酸怎么吃", "response": "每天一片。"}, [Record("叶酸怎么吃", "每天一片。")]),
        ("chatmed", {"query": "<s>问：\n叶酸怎么吃\n答：\n", "response": "每天一片。"}, [Record("叶酸怎么吃", "每天一片。")]),
        ("sharegpt", {"conversations": [{"from": "human", "value": "头痛"}, {"from": "gpt", "value": "休息"}]}, [Record("头痛", "休息")]),
        ("huatuo_26m", {"questions": "头痛怎么办", "answers": "休息"}, [Record("头痛怎么办", "休息")]),
        ("huatuo_26m", {"questions": ["头痛的治疗"], "answers": ["休息"]}, [Record("头痛的治疗", "休息")]),
        (
            "huatuo_26m",
            {"questions": [["便秘怎么办", "便秘如何治"], ["大便干怎么办"]], "answers": ["多喝水。", "多吃菜。"]},
            [Record(asked, said, group="1") for asked in ("便秘怎么办", "便秘如何治", "大便干怎么办") for said in ("多喝水。", "多吃菜。")],
        ),
        ("huatuo_lite", LITE, [Record("孕期便秘怎么办？", "多喝水。", "妇产科")]),
        ("baike2018qa", BAIKE, [Record("孕期能喝茶吗", "淡茶可以少喝。", "健康-妇产科")]),
        ("baike2018qa", {**BAIKE, "desc": "孕期能喝茶吗？"}, [Record("孕期能喝茶吗？", "淡茶可以少喝。", "健康-妇产科")]),
        ("webtext2019zh", WEBTEXT, [Record("失眠怎么办？最近总睡不着。", "睡前不看手机。", "健康", group="65618973")]),
        ("question_answer", {"question": "头痛", "answer": "休息", "extra": [1]}, [Record("头痛", "休息")]),
        (
            "question_answer",
            {"question": "头痛", "answer": "休息", "department": ["内科", "神经科"], "id": 7, "source": "医院", "split": "dev"},
            [Record("头痛", "休息", "内科 神经科", "7", "医院", "dev")],
        ),
        ("question_answer", {"question": "头痛", "answer": "休息", "department": None, "id": None}, [Record("头痛", "休息")]),
        ("wen_da", {"问": "头痛怎么办", "答": "休息"}, [Record("头痛怎么办", "休息")]),
        ("texts", {"text": " 痛风少吃海鲜。多喝水。"}, [Document("痛风少吃海鲜。多喝水。", id=documents.identity("", "痛风少吃海鲜。多喝水。"))]),
        ("beir_corpus", {"_id": "d1", "title": "痛风", "text": "少吃海鲜。"}, [Document("少吃海鲜。", "痛风", "d1")]),
        ("dureader_passages", {"paragraph_id": "de1e2b", "paragraph_text": "多喝水。"}, [Document("多喝水。", id="de1e2b")]),
    ],
)
def test_each_public_form_is_recognised_and_read(tmp_path: Path, kind: str, row: dict[str, object], expected: list[Row]) -> None:
    path = _write(tmp_path / "data.json", row)
    assert _seen(path) == kind
    assert _rows(path) == expected == _rows(path, "jsonl")


def test_an_array_of_objects_is_read_like_lines(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text(json.dumps([{"query": "头痛", "response": "休息"}, {"query": "发烧", "response": "降温"}], indent=2), encoding="utf-8")
    assert _seen(path) == "chatmed"
    assert _rows(path) == [Record("头痛", "休息"), Record("发烧", "降温")]


def test_turns_of_one_conversation_are_a_group(tmp_path: Path) -> None:
    said = [("system", "你是医生"), ("human", "头痛怎么办"), ("gpt", "休息"), ("user", "还痛呢"), ("assistant", "去医院"), ("gpt", "多余的话")]
    path = _write(tmp_path / "a.jsonl", {"conversations": [{"from": who, "value": what} for who, what in said]})
    assert _rows(path) == [Record("头痛怎么办", "休息", group="1"), Record("还痛呢", "去医院", group="1")]


def test_answers_that_are_addresses_are_rejected(tmp_path: Path) -> None:
    """huatuo_consultation_qa gives the pages of its answers alone."""
    path = _write(tmp_path / "a.jsonl", {"questions": [["头痛"]], "answers": ["https://example.org/q/1.html"]})
    assert _rows(path) == [Reject(str(path), 1, 0, "the answer is the address of a page, not a text")]


def test_mapped_questions_know_their_place(tmp_path: Path) -> None:
    first = {"question": "头痛咋办", "answer_ids": ["a", "b"], "split": "dev", "id": "q1", "negative_ids": ["c"], "answers": ["休息"]}
    path = _write(tmp_path / "questions.jsonl", first, {"question": "股票", "answer_ids": []})
    start = len(path.read_bytes().split(b"\n")[0]) + 1
    assert _seen(path) == "mapped_questions"
    assert _rows(path) == [
        Query("头痛咋办", ("a", "b"), "dev", "q1", str(path), 1, 0, ("休息",), ("c",)),
        Query("股票", (), "test", "", str(path), 2, start),
    ]


def test_a_file_of_several_forms_is_jsonl(tmp_path: Path) -> None:
    path = _write(tmp_path / "mixed.jsonl", {"query": "头痛", "response": "休息"}, {"questions": "发烧", "answers": "降温"})
    assert _seen(path) == "jsonl"
    assert _rows(path) == [Record("头痛", "休息"), Record("发烧", "降温")]


def test_a_declared_form_refuses_rows_of_another(tmp_path: Path) -> None:
    path = _write(tmp_path / "mixed.jsonl", {"query": "头痛", "response": "休息"}, {"questions": "发烧", "answers": "降温"})
    good, bad = _rows(path, "chatmed")
    assert good == Record("头痛", "休息")
    assert isinstance(bad, Reject) and bad.line == 2
    assert bad.reason == "query is missing; rows of the form chatmed have query, response"


def test_named_columns_are_read_from_objects(tmp_path: Path) -> None:
    rows = [{"t": "头痛", "q": "疼了三天", "a": "休息"}, {"t": "头痛", "a": "休息"}, {"t": 1, "q": "b", "a": "c"}]
    first, second, third = _rows(_write(tmp_path / "a.jsonl", *rows), "jsonl", (("question", "t+q"), ("answer", "a")))
    assert first == Record("头痛，疼了三天", "休息")
    assert isinstance(second, Reject) and "no column 'q'" in second.reason
    assert isinstance(third, Reject) and third.reason == "t must be a string, not int"
    assert _rows(_write(tmp_path / "b.jsonl", {"body": "痛风少吃海鲜。", "name": "痛风"}), "jsonl", (("text", "body"), ("title", "name"))) == [
        Document("痛风少吃海鲜。", "痛风")
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"[1, 2]", "a JSON list stands where an object is needed"),
        (b"null", "a JSON NoneType"),
        (b"{}", r"keys \[\] are of no known form"),
        (b'{"frage": "a"}', r"keys \['frage'\] are of no known form; known: .*question/answer"),
        (b'{"question": "a"}', r"keys \['question'\] are of no known form"),
        (b'{"question": 7, "answer": "b"}', "question must be a string, not int"),
        (b'{"question": "a", "answer": null}', "answer must be a string, not NoneType"),
        (b'{"questions": [], "answers": "b"}', "questions must hold a string"),
        (b'{"questions": ["a"], "answers": []}', "answers must hold a string"),
        (b'{"questions": ["a", 3], "answers": "b"}', "questions must hold strings, not int"),
        (b'{"instruction": "a", "input": 1, "output": "b"}', "input must be a string, not int"),
        (b'{"question": "a", "answer": "b", "id": ["c"]}', "id must be a string or a number, not list"),
        (b'{"question": "a", "answer": "b", "department": [["c"]]}', "department must be a string or a number, not list"),
        (b'{"question": "a", "answer": "b", "split": "dev2"}', "split is none of the allowed: train, dev, test"),
        (b'{"question": "a", "answer": "b", "id": "\\ud800"}', "can't encode"),
        (b'{"question": "a", "answer_ids": "b"}', "answer_ids must be a list of strings"),
        (b'{"question": "a", "answer_ids": [1]}', "answer_ids must be a list of strings"),
        (b'{"question": "a", "answer_ids": [], "negative_ids": "b"}', "negative_ids must be a list of strings"),
        (b'{"question": null, "answer_ids": []}', "question must be a string"),
        (b'{"question": "a", "answer_ids": [], "split": ["dev"]}', "split is none of the allowed"),
        (b'{"conversations": {"from": "human"}}', "conversations must be a list of objects"),
        (b'{"conversations": ["human"]}', "conversations must be a list of objects"),
        (b'{"conversations": []}', "without a question and its answer"),
        (b'{"conversations": [{"from": "human", "value": "a"}]}', "without a question and its answer"),
        (b'{"conversations": [{"from": "human", "value": ["a"]}]}', "value must be a string"),
        (b'{"title": "a", "desc": 3, "answer": "b"}', "desc must be a string, not int"),
        (b'{"title": "a", "text": ""}', "text is empty"),
        (b'{"question": "a"', "delimiter"),
        (b'{"question": "\xff\xfe", "answer": "b"}', "not utf-8"),
    ],
)
def test_a_bad_row_keeps_its_place_and_its_neighbours(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES[0] + bad + b"\n" + LINES[1])
    first, reject, last = _rows(path, "jsonl")
    assert [first, last] == GOOD
    assert isinstance(reject, Reject) and (reject.file, reject.line, reject.byte) == (str(path), 2, len(LINES[0]))
    with pytest.raises(ValueError, match=reason):
        raise ValueError(reject.reason)


def test_a_reason_never_repeats_a_value(tmp_path: Path) -> None:
    secret = "病人张三"
    bad: list[object] = [
        {"question": secret, "answer": [secret]},
        {"question": [secret], "answer_ids": [secret], "split": secret},
        {"question": secret, "answer": "b", "split": secret},
        {"conversations": [{"from": secret, "value": secret}]},
        {"instruction": secret, "output": {"a": secret}},
        {"questions": secret, "answers": {"a": secret}},
        {"question": secret, "positive_ctxs": [{"title": secret}]},
        {"question": secret, "documents": secret},
        {"utterances": [secret]},
        [secret],
        secret,
    ]
    rows = _rows(_write(tmp_path / "a.jsonl", *bad), "jsonl")
    assert len(rows) == len(bad)
    for row in rows:
        assert isinstance(row, Reject) and secret not in row.reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-1, 1) | st.sampled_from(["", "病人：头痛", "医生：休息", "human", "gpt", "dev", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER_KEYS), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
@pytest.mark.parametrize("name", objects.FORMS)
def test_any_value_under_any_key_is_rows_or_a_reason(name: str, data: st.DataObject) -> None:
    """A converter that raised anything else than ValueError would stop the run."""
    row = data.draw(st.fixed_dictionaries(dict.fromkeys(objects.FORMS[name].keys, JSON)))
    with contextlib.suppress(ValueError):
        for each in objects.FORMS[name].convert(row):
            assert isinstance(each, Record | Document | Query)
            assert all(isinstance(text, str) for text in (each.id, each.source))


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("huatuo_llama/llama_data.json", "huatuo_llama", {"Record": 8220}),
        ("caregpt/test_datasets.jsonl", "huatuo_26m", {"Record": 5711}),
        ("medicalgpt/medical_sft_1K_format.jsonl", "sharegpt", {"Record": 945}),
        ("dureader/search.train.json", "dureader", {"Query": 95, "Reject": 5}),
    ],
)
def test_real_files(name: str, kind: str, count: dict[str, int]) -> None:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"no real data at {path}")
    assert _seen(path) == kind
    rows = _rows(path)
    found = Counter(type(row).__name__ for row in rows)
    assert all(abs(found[each] - number) <= number // 10 for each, number in count.items())
    assert sum(isinstance(row, Reject) for row in rows) <= len(rows) // 20
    assert all(row.question.strip() for row in rows if isinstance(row, Record | Query))
    known = {row.id for row in rows if isinstance(row, Document)}
    assert all(set(row.answer_ids) <= known and row.answers and row.split == "train" for row in rows if isinstance(row, Query))
