"""The page of the corpus must stand alone, escape what rows say, and be right for a corpus that lacks everything."""

from __future__ import annotations

import copy
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from parsed import Page

from medrag.reports import corpus

EVIL = '</td><script>alert(1)</script><img src=x onerror="x()">{{ 7*7 }}$\\frac$ \'"&amp;'


def _statistics() -> dict[str, Any]:
    """Two sources, with figures that differ from each other, so that one in the wrong place is seen."""
    first = {"name": "toyhom_内科", "file": "IM_内科.csv", "kind": "toyhom_csv", "encoding": "gb18030", "bytes": 5_767_168}
    second = {"name": "wiki", "file": "wiki.jsonl", "kind": "documents", "encoding": "utf-8", "bytes": 900}
    return {
        "rows": 10_031,
        "sources": [
            first | {"records": 9_000, "documents": 0, "queries": 0, "rejects": 16, "passages": 7_001, "examples": 6_500},
            second | {"records": 0, "documents": 1_000, "queries": 31, "rejects": 1, "passages": 2_002, "examples": 31},
        ],
        "funnel": [
            {"rule": "read", "dropped": 0, "left": 9_000},
            {"rule": "question too short", "dropped": 900, "left": 8_100},
            {"rule": "某条新规则", "dropped": 1, "left": 8_099},
        ],
        "edits": {"html": 411, "width": 822},
        "boilerplate": {
            "answers_sampled": 5_003,
            "removed": [{"text": "祝您早日康复！", "answers": 313}],
            "kept": [{"text": "请及时就医。", "answers": 212, "reason": "a medical word"}],
        },
        "privacy": {"phone": 77, "id_number": 0, "passport_of_mars": 3},
        "lengths": {
            "question": {"median": 24, "p95": 60, "max": 99, "bins": [10, 20, 40, 80, 10_000_000], "counts": [1, 2, 4, 2, 1]},
            "answer": {"median": 5, "p95": 9, "max": 9, "bins": [10, 20, 40, 80, 10_000_000], "counts": [10, 0, 0, 0, 0]},
        },
        "departments": {"内科": 6_000, "儿科": 1_500, "其他": 20, "": 19},
        "terms": {"高血压": 640, "阿莫西林": 320},
        "terms_sampled_rows": 2_500,
        "duplicates": {
            **{"threshold": 0.8, "exact_questions": 101, "exact_answers": 102, "near_questions": 103, "near_answers": 104, "pairs_checked": 10_500},
            **{"groups": 106, "largest_group": 107, "index_bytes": 2_097_152, "sources": ["toyhom_内科", "wiki"]},
            "questions_matrix": [[1_000, 8], [9, 0]],
            "answers_matrix": [[0, 0], [0, 0]],
        },
        "splits": {"train": 6_000, "dev": 200, "test": 331},
        "labels": {"train": {"consultation": 4_500, "maternal": 1_500}, "dev": {"consultation": 200}, "test": {"consultation": 300, "maternal": 31}},
        "unanswerable": {"train": 0, "dev": 0, "test": 29},
        "leaks": {"pairs_checked": 4_321, "found": 0},
        "negatives": {"questions": 6_001, "mean": 5.678, "without": 12, "depth": 50, "from_source": 13},
        "passages": 9_003,
        "passage_characters": {"median": 151, "p95": 498, "max": 512},
        "dropped_samples": {"question too short": [{"question": "？", "answer": "请详细描述。", "source": "toyhom_内科"}]},
        "edited_samples": {"width": [{"before": "体温３８", "after": "体温38"}]},
        "rejects": {"not gb18030": 15, "2 cells in a row": 2},
        "reject_samples": [{"file": "IM_内科.csv", "line": 1_234, "byte": 56_789, "reason": "not gb18030: illegal multibyte sequence"}],
    }


def _written(statistics: dict[str, Any], folder: Path) -> tuple[str, Page]:
    before = copy.deepcopy(statistics)
    path = folder / "corpus.html"
    corpus.write(statistics, path)
    assert repr(statistics) == repr(before)
    page = path.read_text("utf-8")
    return page, Page(page)


def _between(page: str, start: str, end: str) -> str:
    """The part under one heading, without tags and needless spaces."""
    part = page.split(f'<h2 id="{start}">', 1)[1].split(f'<h2 id="{end}">', 1)[0]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", part)).split())


def test_every_part_shows_its_figures(tmp_path: Path) -> None:
    page, parsed = _written(_statistics(), tmp_path)
    assert '<html lang="zh-CN">' in page and "<title>语料报告</title>" in page
    top = " ".join(" ".join(parsed.words).split("每个原始文件")[0].split())
    for wanted in ("10,031 读入行数", "9,003 段落", "6,531 题", "901 被规则丢弃", "80 替换的个人信息", "103 近似重复", "17 坏行", "✓ 通过"):
        assert wanted in top, wanted
    sources = _between(page, "sources", "funnel")
    assert "toyhom_内科 IM_内科.csv toyhom_csv gb18030 5.5 MiB 9,000 0 0 16 7,001 6,500" in sources
    assert "合计 total 5.5 MiB 9,000 1,000 31 17 9,003 6,531" in sources and "900 B" in sources
    funnel = _between(page, "funnel", "edits")
    assert "问题过短 question too short 900 8,100 90.0%" in funnel and "某条新规则 1 8,099 90.0%" in funnel
    edits = _between(page, "edits", "privacy")
    assert "HTML 标签与实体 html 411" in edits and "5,003" in edits
    assert "祝您早日康复！ 313" in edits and "请及时就医。 a medical word 212" in edits
    privacy = _between(page, "privacy", "duplicates")
    assert "电话 phone 77 身份证号 id_number 0 passport_of_mars 3" in privacy
    duplicates = _between(page, "duplicates", "splits")
    assert all(str(count) in duplicates for count in (101, 102, 103, 104, 106, 107)) and "0.80" in duplicates and "2.0 MiB" in duplicates
    assert "1 toyhom_内科 1,000 8 2 wiki 9 0" in duplicates
    splits = _between(page, "splits", "lengths")
    assert "训练 train 6,000 4,500 1,500 0" in splits and "开发 dev 200 200 — 0" in splits and "测试 test 331 300 31 29" in splits
    assert "泄漏核对通过" in splits and "4,321" in splits and "5.68" in splits
    assert "中位数 median 24" in _between(page, "lengths", "departments") and "512" in _between(page, "lengths", "departments")
    assert "其他 20 未标注 unlabelled 19" in _between(page, "departments", "terms")
    assert "高血压 640" in _between(page, "terms", "dropped") and "2,500" in _between(page, "terms", "dropped")
    assert "？ 回答 answer 请详细描述。" in _between(page, "dropped", "rejects")
    assert "not gb18030 15" in _between(page, "rejects", "none") and "IM_内科.csv 1,234 56,789 not gb18030: illegal" in _between(
        page, "rejects", "none"
    )


def test_page_stands_alone(tmp_path: Path) -> None:
    page, parsed = _written(_statistics(), tmp_path)
    parsed.check()
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)
    assert parsed.tags["svg"] == 2
    assert ">字数 characters</text>" in page and "prefers-color-scheme: dark" in page


def test_same_figures_same_bytes(tmp_path: Path) -> None:
    first, _ = _written(_statistics(), tmp_path)
    second, _ = _written(json.loads(json.dumps(_statistics())), tmp_path)
    assert first == second


def test_bars_are_as_long_as_the_figures(tmp_path: Path) -> None:
    page, _ = _written(_statistics(), tmp_path)
    assert '<i style="width: 90.00%"></i><i style="width: 10.00%; background: var(--second)"></i>' in page
    assert '<span>儿科</span><i><i style="width: 25.00%"></i></i><b>1,500</b>' in page
    assert "<span>身份证号 id_number</span><i></i><b>0</b>" in page
    assert '<i style="width: 75.00%; background: var(--first)"></i><i style="width: 25.00%; background: var(--second)"></i>' in page
    levels = [float(level) for level in re.findall(r"--level: ([\d.]+)", page)]
    assert levels == [0.5, pytest.approx(0.1), pytest.approx(0.104), 0, 0, 0, 0, 0]


def test_histograms_end_with_the_longest_text(tmp_path: Path) -> None:
    """Empty bins at the end are left out, and an edge that stands for none is not shown as a number."""
    page, _ = _written(_statistics(), tmp_path)
    question, answer = (re.findall(r">([^<\n]+)</text>", plot) for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert question[:6] == ["0", "10", "20", "40", "80", "∞"]
    assert answer[:2] == ["0", "10"] and "20" not in answer
    bars = [len(set(re.findall(rf'id="length{place}-patch_(\d+)"', page))) for place in range(2)]
    assert bars[0] - bars[1] == 5 - 1, "one bar for each bin up to the last that is filled"


@pytest.mark.parametrize("absent", ["missing", None, math.nan])
def test_nothing_at_all(tmp_path: Path, absent: Any) -> None:
    statistics = {} if absent == "missing" else dict.fromkeys(_statistics(), absent)
    page, parsed = _written(statistics, tmp_path)
    parsed.check()
    assert parsed.tags["svg"] == 0 and parsed.tags["table"] == 0
    assert not re.search(r">\s*(None|nan)|nan%", page)
    for wanted in ("没有来源", "没有划分", "没有坏行", "没有丢弃的样例", "没有统计长度", "没有做泄漏核对"):
        assert wanted in page, wanted
    assert "通过" not in page


@pytest.mark.parametrize("absent", [None, 0])
def test_each_figure_may_be_absent(tmp_path: Path, absent: int | None) -> None:
    """Any single figure, at any depth: the rest of the page stays."""
    places: list[tuple[Any, ...]] = []

    def walk(value: Any, path: tuple[Any, ...]) -> None:
        if isinstance(value, dict | list):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(inner, (*path, key))
        if path and not isinstance(path[-1], int):
            places.append(path)

    walk(_statistics(), ())
    assert len(places) > 100
    for path in places:
        statistics = _statistics()
        inner: Any = statistics
        for key in path[:-1]:
            inner = inner[key]
        if path[0] != "lengths":
            del statistics["lengths"]  # plots take most of the time
        if absent is None or isinstance(inner[path[-1]], int | float):
            inner[path[-1]] = absent
        page, parsed = _written(statistics, tmp_path)
        assert not re.search(r">\s*(None|nan)|nan%|inf%", page), path
        assert parsed.tags["h2"] == 11, path


def test_zeros_are_no_absence(tmp_path: Path) -> None:
    statistics = _statistics()
    statistics |= {"rows": 0, "passages": 0, "privacy": {"phone": 0}, "edits": {"html": 0}, "splits": {"train": 0}, "labels": {}}
    statistics["funnel"] = [{"rule": "read", "dropped": 0, "left": 0}]
    statistics["lengths"] = {"question": {"median": 0, "p95": 0, "max": 0, "bins": [10], "counts": [0]}}
    page, parsed = _written(statistics, tmp_path)
    assert "<b>0</b><span>读入行数" in page and "<b>0</b><span>题 examples" in page
    assert "电话 phone 0" in _between(page, "privacy", "duplicates")
    assert "读入 read 0 0 —" in _between(page, "funnel", "edits")
    assert parsed.tags["svg"] == 0 and "没有可画的行" in page


@pytest.mark.parametrize(("found", "colour", "other"), [(0, "good", "bad"), (3, "bad", "good")])
def test_the_verdict_on_leaks(tmp_path: Path, found: int, colour: str, other: str) -> None:
    statistics = _statistics()
    statistics["leaks"]["found"] = found
    page, _ = _written(statistics, tmp_path)
    assert f'class="verdict {colour}"' in page and f'<div class="{colour}"><b>' in page
    assert f'class="verdict {other}"' not in page and f'<div class="{other}"><b>' not in page
    assert ("发现 3 对" in page) == bool(found)


def test_rows_are_escaped(tmp_path: Path) -> None:
    """Every string, and every name that a row can bring."""
    statistics = _statistics()

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        return EVIL if isinstance(value, str) else value

    statistics = poison(statistics)
    for part in ("edits", "privacy", "departments", "terms", "splits", "unanswerable", "rejects"):
        statistics[part][EVIL] = 5
    statistics["labels"]["train"][EVIL] = 5
    statistics["lengths"][EVIL] = statistics["lengths"]["question"]
    statistics["dropped_samples"][EVIL] = [{"question": EVIL, "answer": EVIL, "source": EVIL}]
    statistics["edited_samples"][EVIL] = [{"before": EVIL, "after": EVIL[::-1]}]
    page, parsed = _written(statistics, tmp_path)
    parsed.check()
    assert "<script" not in page and "{{ 7*7 }}" in page
    assert not any(EVIL[5:20] in value for _, value in parsed.attributes)


def test_characters_that_a_page_cannot_hold(tmp_path: Path) -> None:
    statistics = _statistics()
    statistics["departments"] = {"内\x00科\ud800": 3}
    statistics["edited_samples"] = {"controls": [{"before": "共\ud800同 血\u200b压\x07高", "after": "共\ud800同 血压高"}]}
    page, _ = _written(statistics, tmp_path)
    assert "<span>内\ufffd科\ufffd</span>" in page
    assert "共\ufffd同 血<del>⟨U+200B⟩</del>压<del>⟨U+0007⟩</del>高" in page and "共\ufffd同 血压高</p>" in page


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("体温３８度", "体温38度", ("体温<del>３８</del>度", "体温<ins>38</ins>度")),
        ("怎么 办", "怎么办", ("怎么<del>␣</del>办", "怎么办")),
        ("一\n\n二", "一\n二", ("一\n<del>↵\n</del>二", "一\n二")),
        ("您好 再见", "", ("<del>您好 再见</del>", "（空）")),
        ("a<b", "a", ("a<del>&lt;b</del>", "a")),
        ("", "新", ("（空）", "<ins>新</ins>")),
        ("同", "同", ("同", "同")),
        (
            "头" * 50 + "改" + "尾" * 50,
            "头" * 50 + "尾" * 50,
            ("…" + "头" * 40 + "<del>改</del>" + "尾" * 40 + "…", "…" + "头" * 40 + "尾" * 40 + "…"),
        ),
        ("头" * 40 + "改" + "尾" * 40, "头" * 40 + "尾" * 40, ("头" * 40 + "<del>改</del>" + "尾" * 40, "头" * 40 + "尾" * 40)),
        ("x" * 900, "", ("<del>" + "x" * 400 + "</del>…", "（空）")),
    ],
)
def test_what_was_edited_is_marked(tmp_path: Path, before: str, after: str, shown: tuple[str, str]) -> None:
    statistics = {"edited_samples": {"nfkc": [{"before": before, "after": after}]}}
    page, _ = _written(statistics, tmp_path)
    assert re.findall(r"</h4><p>(.*?)</p>", page, re.DOTALL) == list(shown)


def test_many_lines_of_boilerplate_fold(tmp_path: Path) -> None:
    """All are in the page, the commonest dozen in sight."""
    page, parsed = _written({"boilerplate": {"removed": [{"text": f"句{place}。", "answers": 99 - place} for place in range(30)]}}, tmp_path)
    sight, folded = page.split("<details>")
    assert "句11。" in sight and "句12。" not in sight and "其余 18 句" in folded and "句29。" in folded
    assert parsed.tags["details"] == 1


def test_long_samples_are_cut(tmp_path: Path) -> None:
    statistics = {"dropped_samples": {"answer too long": [{"question": "问", "answer": "答" * 3_000, "source": ""}]}}
    page, _ = _written(statistics, tmp_path)
    assert page.count("答" * 400) == 1 and "答" * 401 not in page and "共 3,000 字" in page


def test_the_count_of_rejected_rows_is_the_given_one(tmp_path: Path) -> None:
    """Classes of reasons may be cut to the commonest; the total, where there is one, is not."""
    page, _ = _written(_statistics() | {"rejected_rows": 90_210}, tmp_path)
    assert "<b>90,210</b><span>坏行" in page
