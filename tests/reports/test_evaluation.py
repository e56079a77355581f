"""The page must stand alone, escape what models say, and survive missing figures."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from parsed import Page

from medrag.reports import evaluation

MEASURES = ("character_f1", *(f"bleu_{order}" for order in (1, 2, 3, 4)), "rouge_1", "rouge_2", "rouge_l", "distinct_1", "distinct_2")
SAID = ("characters", "supported", "copied", "withheld", "empty")


def _mean(mean: float, count: int = 40) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.02, "count": count}


def _means(values: dict[str, float], count: int = 40) -> dict[str, Any]:
    return {measure: _mean(value, count) for measure, value in values.items()}


def _trust() -> dict[str, Any]:
    return {
        "threshold": 0.35,
        "questions": 43,
        "answered": 0.8,
        "right": 0.5,
        "right_of_answered": 0.55,
        "character_f1_of_answered": 0.33,
        "refused_of_answerable": 0.1,
        "refused_of_unanswerable": 0.667,
        "refused_by_kind": {"off_topic": {"questions": 2, "refused": 1.0}, "unanswerable": {"questions": 1, "refused": 0.0}},
        "before": {"error": 0.31, "reliability": [[43, 1.0, 0.92, 0.5]]},
        "after": {"error": 0.04, "reliability": [[10, 0.25, 0.22, 0.2], [33, 0.75, 0.74, 0.7]]},
        "auroc_right": 0.77,
        "auroc_answerable": 0.81,
        "curve": [
            {"threshold": 0.0, "answered": 1.0, "right": 0.5, "character_f1": 0.3},
            {"threshold": 0.35, "answered": 0.8, "right": 0.55, "character_f1": 0.33},
            {"threshold": 1.0, "answered": 0.0, "right": None, "character_f1": None},
        ],
    }


def _row(method: str, pool: str) -> dict[str, Any]:
    scores = _means(dict.fromkeys((*MEASURES, *SAID), 0.31)) | {"bleu_4": {"mean": 7.4, "low": 6.8, "high": 8.1, "count": 40}}
    sliced = ("character_f1", "bleu_4", "rouge_l", "supported")
    by = {"label": {label: _means(dict.fromkeys(sliced, 0.21), 20) for label in ("consultation", "maternal")}, "source": {}}
    return {
        "method": method,
        "pool": pool,
        "writes": method != "dense",
        "scores": scores,
        "by": by,
        "trust": _trust(),
        "questions_per_second": 12.345,
        "peak_memory_gib": 0.987,
    }


def _answer(method: str, pool: str, text: str, **changed: Any) -> dict[str, Any]:
    sentences = [{"text": text, "passage": None, "support": 0.2, "withheld": ""}] if text else []
    return {"method": method, "pool": pool, "text": text, "confidence": 0.5, "refused": False, "sentences": sentences, "evidence": []} | changed


def _result() -> dict[str, Any]:
    retrievers = ("BM25, words", "BM25, characters and pairs", "BM25, training questions", "dense", "dense, training questions", "fusion")
    measures = {"recall@1": 0.4, "recall@10": 0.7, "recall@100": 0.9, "MRR@10": 0.5}
    differences = {name: {**_mean(-0.117), "p": 0.014} for name in ("character_f1", "bleu_4", "rouge_l")}
    return {
        "questions": {"answerable": 40, "unanswerable": 3, "asked": 20},
        "passages": 1234,
        "retrieval": {name: _means(measures) for name in retrievers},
        "retrieval_differences": [
            {"of": "fusion", "less": "BM25, words", "scores": _means(dict.fromkeys(measures, 0.043))},
            {"of": "dense", "less": "BM25, characters and pairs", "scores": _means(dict.fromkeys(measures, -0.117))},
        ],
        "retrieval_by": {
            "label": {
                "consultation": {name: _means(dict.fromkeys(measures, 0.71), 30) for name in retrievers},
                "maternal": {name: _means(dict.fromkeys(measures, 0.66), 10) for name in retrievers},
            },
            "source": {"only": {name: _means(measures) for name in retrievers}},
        },
        "ranks": {"questions": ["a", "b"], "first_right": {name: [1, None] for name in retrievers}},
        "methods": [_row("dense", "closed"), _row("dense", "open"), _row("closed_book", "none")],
        "baseline": "dense",
        "differences": [{"of": "closed_book", "less": "dense", "pool": pool, "scores": differences} for pool in ("closed", "open")],
        "published": [{"name": "T5 with RAG", "data": "cMedQA2", "bleu_1": 25.86, "bleu_4": 13.02, "rouge_1": 34.24, "rouge_l": 27.54}],
        "bleu_signature": "nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0",
        "memory": "resident memory of the process",
        "samples": [
            {
                "id": "a",
                "question": "孕期可以喝咖啡吗？",
                "reference": "少量可以。",
                "answers": [
                    _answer(
                        "dense",
                        "closed",
                        "少量可以。每天三片。多睡。",
                        sentences=[
                            {"text": "少量可以。", "passage": 1, "support": 0.9, "withheld": ""},
                            {"text": "每天三片。", "passage": None, "support": 0.1, "withheld": "dose"},
                            {"text": "多睡。", "passage": None, "support": 0.3, "withheld": ""},
                        ],
                        evidence=[{"place": place, "id": f"p{place}", "title": "", "text": f"第{place}段原文"} for place in (0, 1)],
                    ),
                    _answer("dense", "open", "", refused=True),
                    _answer("closed_book", "none", "不清楚"),
                ],
            }
        ],
    }


def _written(result: dict[str, Any], folder: Path) -> tuple[str, Page]:
    before = copy.deepcopy(result)
    path = folder / "report.html"
    evaluation.write(result, path)
    assert result == before
    page = path.read_text("utf-8")
    return page, Page(page)


def test_page_shows_the_figures(tmp_path: Path) -> None:
    page, parsed = _written(_result(), tmp_path)
    words = " ".join(parsed.words)
    assert '<html lang="zh-CN">' in page and "<title>评测报告</title>" in page
    shown = (
        "31.0",
        "28.0, 33.0",
        "6.8, 8.1",
        "12.35",
        "0.99",
        "tok:zh",
        "问诊",
        "母婴",
        "封闭",
        "开放",
        "66.7%",
        "1234",
        "0.350",
        "70.0%",
        "67.0, 72.0",
    )
    for wanted in shown:
        assert wanted in words, wanted
    assert "AI 生成，仅供参考，不能替代医生诊断" in words
    for wanted in ("-11.7", "p=0.014", "25.86", "不可逐项相比", "非医疗 off_topic（2）", "误差 0.310", "误差 0.040", "闭卷生成 closed_book"):
        assert wanted in words, wanted
    # scores, grounds, speed; two curves in two pools; reliability but for quotes from an open pool, where none is right; retrieval
    assert parsed.tags["svg"] == 3 + 4 + 2 + 1
    for wanted in ("融合 fusion", "4.3%", "-11.7%", "30 题", "按类别 by label", "训练问题"):
        assert wanted in words, wanted
    assert "按来源" not in words, "a table of one source says nothing new"


def test_a_sample_shows_what_supports_it(tmp_path: Path) -> None:
    page, _ = _written(_result(), tmp_path)
    assert "少量可以。<sup>[2]</sup>" in page and '<span class="loose">多睡。</span>' in page
    assert re.search(r"<del [^>]*>每天三片。</del>", page)
    assert '<li value="2">第1段原文' in page and "依据 evidence（2）" in page
    assert page.count("拒答 refused</b>") == 1 and "（空）" in page


def test_page_stands_alone(tmp_path: Path) -> None:
    page, parsed = _written(_result(), tmp_path)
    parsed.check()
    plots = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--first)" in plots and "var(--ink)" in plots


def test_same_figures_same_bytes(tmp_path: Path) -> None:
    first, _ = _written(_result(), tmp_path)
    second, _ = _written(json.loads(json.dumps(_result())), tmp_path)
    assert first == second


def test_answers_are_escaped(tmp_path: Path) -> None:
    result = _result()
    evil = '<script>alert(1)</script><img src=x onerror="x()">{{ 7*7 }}$\\frac$'
    result["samples"][0] = {"id": evil, "question": evil, "reference": evil, "answers": [_answer(evil, "open", evil)]}
    result["samples"][0]["answers"][0]["evidence"] = [{"place": 0, "id": evil, "title": evil, "text": evil}]
    result["methods"].append(_row(evil, "open"))
    for row in result["methods"]:
        row["by"]["label"][evil] = row["by"]["label"]["maternal"]
        row["trust"]["refused_by_kind"][evil] = {"questions": 1, "refused": 0.5}
    result["retrieval"][evil] = result["retrieval"].pop("dense")
    result["retrieval_by"]["source"][evil] = result["retrieval_by"]["label"]["maternal"]
    result["retrieval_differences"][0]["of"] = result["differences"][0]["of"] = result["baseline"] = result["published"][0]["name"] = evil
    result["bleu_signature"] = result["memory"] = evil
    page, parsed = _written(result, tmp_path)
    parsed.check()
    assert not {"script", "img"} & set(parsed.tags)
    assert "<script" not in page and "{{ 7*7 }}" in page


def test_no_unanswerable_questions(tmp_path: Path) -> None:
    result = _result()
    result["questions"]["unanswerable"] = 0
    for row in result["methods"]:
        row["trust"] |= {"refused_of_unanswerable": None, "auroc_answerable": None, "auroc_right": None, "refused_by_kind": {}}
    page, _ = _written(result, tmp_path)
    assert "没有不可答题" in page and page.count("<td>—</td>") == 9 and "None" not in page


@pytest.mark.parametrize("absent", [None, float("nan")])
def test_missing_values(tmp_path: Path, absent: float | None) -> None:
    nothing = {"mean": absent, "low": absent, "high": absent, "count": 0}
    result = _result()
    result["retrieval"]["dense"] = dict.fromkeys(result["retrieval"]["dense"], nothing)
    result["retrieval_by"]["label"]["maternal"]["dense"] = dict.fromkeys(result["retrieval"]["dense"], nothing)
    result["methods"][0]["scores"] = dict.fromkeys(result["methods"][0]["scores"], nothing)
    result["methods"][0]["questions_per_second"] = absent
    result["methods"][1]["trust"]["curve"] = [{"threshold": 0.35, "answered": 0.0, "right": absent, "character_f1": absent}]
    page, parsed = _written(result, tmp_path)
    assert not re.search(r">\s*(None|nan)|nan%", page)
    assert parsed.tags["svg"] == 10


def test_more_methods_than_colours(tmp_path: Path) -> None:
    result = _result()
    result["methods"] += [_row(f"method_{number}", pool) for number in range(7) for pool in ("closed", "open")]
    _, parsed = _written(result, tmp_path)
    parsed.check()
    assert parsed.tags["svg"] == 3 + 4 + 2 + 14 + 1


def test_nothing_but_counts(tmp_path: Path) -> None:
    result = _result()
    result |= {
        "retrieval": {},
        "retrieval_differences": [],
        "retrieval_by": {"label": {}, "source": {}},
        "methods": [],
        "differences": [],
        "published": [],
        "bleu_signature": "",
        "memory": "",
        "samples": [],
    }
    page, parsed = _written(result, tmp_path)
    assert parsed.tags["svg"] == 0
    assert "没有评测回答文本" in page and "没有样例" in page and "没有可衡量的回答" in page
