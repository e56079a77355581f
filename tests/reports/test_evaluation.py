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

TEXT_F1 = {"mean": 0.31, "low": 0.29, "high": 0.33, "count": 40}


def _mean(mean: float, count: int = 40) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.02, "count": count}


def _means(values: dict[str, float], count: int = 40) -> dict[str, Any]:
    return {measure: _mean(value, count) for measure, value in values.items()}


def _text(method: str, pool: str) -> dict[str, Any]:
    return {
        "method": method,
        "pool": pool,
        "character_f1": TEXT_F1,
        "bleu": 7.4,
        "bleu_low": 6.8,
        "bleu_high": 8.1,
        "rouge_l": _mean(0.22),
        "seconds_per_question": 0.0421,
    }


def _result() -> dict[str, Any]:
    retrievers = ("BM25, words", "BM25, characters and pairs", "BM25, training questions", "dense", "dense, training questions", "fusion")
    measures = {"recall@1": 0.4, "recall@10": 0.7, "recall@100": 0.9, "MRR@10": 0.5}
    return {
        "questions": {"answerable": 40, "unanswerable": 3, "generated_for": 20},
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
        "texts": [_text("dense", "closed"), _text("dense", "open"), _text("closed_book", "closed")],
        "bleu_signature": "nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0",
        "refusal": {
            "threshold": 0.35,
            "refused_of_answerable": 0.1,
            "refused_of_unanswerable": 0.667,
            "unanswerable": 3,
            "right_of_all_answerable": 0.5,
            "right_of_answered": 0.55,
            "area_under_roc_answerable": 0.81,
            "area_under_roc_right": 0.77,
            "calibration_error": 0.04,
            "reliability": [[10, 0.25, 0.22, 0.2], [33, 0.75, 0.74, 0.7]],
            "confidence_answerable": [0.1, 0.5, 0.72, 0.9, 1.0],
            "confidence_unanswerable": [0.0, 0.2, 0.4],
            "curve": [{"threshold": 0.0, "answered": 1.0, "right": 0.5}, {"threshold": 1.0, "answered": 0.0, "right": None}],
        },
        "samples": [
            {
                "question": "孕期可以喝咖啡吗？",
                "reference": "少量可以。",
                "answers": {"dense, closed": "少量", "dense, open": "", "closed_book, closed": "不清楚"},
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
    for wanted in ("70.0%", "67.0, 72.0", "31.0%", "6.8, 8.1", "0.042", "tok:zh", "问诊", "母婴", "封闭", "开放", "66.7%", "1234", "阈值 0.35"):
        assert wanted in words, wanted
    assert "AI 生成，仅供参考，不能替代医生诊断" in words
    assert parsed.tags["svg"] == 5
    assert "闭卷生成 closed_book · 不检索 none" in words
    assert "（空）" in words
    for wanted in ("融合 fusion", "4.3%", "-11.7%", "30 题", "按类别 by label", "训练问题"):
        assert wanted in words, wanted
    assert "按来源" not in words, "a table of one source says nothing new"


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
    result["samples"][0] = {"question": evil, "reference": evil, "answers": {f"{evil}, open": evil}}
    result["texts"].append(_text(evil, "open"))
    result["retrieval"][evil] = result["retrieval"].pop("dense")
    result["retrieval_by"]["source"][evil] = result["retrieval_by"]["label"]["maternal"]
    result["retrieval_differences"][0]["of"] = evil
    result["bleu_signature"] = evil
    page, parsed = _written(result, tmp_path)
    assert not {"script", "img"} & set(parsed.tags)
    assert "<script" not in page and "{{ 7*7 }}" in page


def test_no_unanswerable_questions(tmp_path: Path) -> None:
    result = _result()
    result["questions"]["unanswerable"] = 0
    missing = {"refused_of_unanswerable": None, "right_of_answered": None, "area_under_roc_answerable": None, "area_under_roc_right": None}
    result["refusal"] |= missing | {"unanswerable": 0, "confidence_unanswerable": []}
    page, parsed = _written(result, tmp_path)
    assert "没有不可答题" in page and page.count("<b>—</b>") == 4 and "None" not in page
    assert parsed.tags["svg"] == 5


@pytest.mark.parametrize("absent", [None, float("nan")])
def test_missing_values(tmp_path: Path, absent: float | None) -> None:
    nothing = {"mean": absent, "low": absent, "high": absent, "count": 0}
    result = _result()
    result["retrieval"]["dense"] = dict.fromkeys(result["retrieval"]["dense"], nothing)
    result["retrieval_by"]["label"]["maternal"]["dense"] = dict.fromkeys(result["retrieval"]["dense"], nothing)
    result["texts"][0] |= {"character_f1": nothing, "bleu": absent, "bleu_low": absent, "bleu_high": absent, "seconds_per_question": absent}
    page, parsed = _written(result, tmp_path)
    assert not re.search(r">\s*(None|nan)|nan%", page)
    assert parsed.tags["svg"] == 5


def test_nothing_but_counts(tmp_path: Path) -> None:
    result = _result()
    result |= {
        "retrieval": {},
        "retrieval_differences": [],
        "retrieval_by": {"label": {}, "source": {}},
        "texts": [],
        "bleu_signature": "",
        "samples": [],
    }
    result["refusal"] |= {"reliability": [], "confidence_answerable": [], "confidence_unanswerable": [], "curve": []}
    page, parsed = _written(result, tmp_path)
    assert parsed.tags["svg"] == 0
    assert "没有评测回答文本" in page and "没有样例" in page
