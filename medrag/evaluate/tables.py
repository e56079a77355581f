"""The figures as text for a terminal of 150 columns, a block for each question that they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medrag import ranking
from medrag.evaluate.scoring import COMPARED, SLICED

NAMES = {
    "character_f1": "character F1",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "characters": "characters",
    "supported": "supported",
    "copied": "copied",
    "withheld": "dose withheld",
    "empty": "empty",
}
OVERLAP = ("character_f1", "bleu_1", "bleu_4", "rouge_1", "rouge_2", "rouge_l")
SAID = ("bleu_2", "bleu_3", "distinct_1", "distinct_2", "characters")
GROUNDS = ("supported", "copied", "withheld", "empty")
_FIRST, _OTHER = 24, 21
_SLICE = 46


def table(result: dict[str, Any]) -> str:
    """What ``evaluate`` returned."""
    lines = ranking.table(result)
    rows = result["methods"]
    if not rows:
        return "\n".join(lines)
    counts = result["questions"]
    lines += [f"texts: {counts['asked']} of {counts['answerable']} answerable test questions; F1, ROUGE, shares and BLEU in per cent", ""]
    lines += _scores("overlap with reference", rows, OVERLAP) + _scores("and", rows, SAID)
    lines += [_row("what is said", [*(NAMES[name] for name in GROUNDS), "questions/s", "peak GiB"])]
    for row in rows:
        cells = [scored(name, row["scores"][name]) for name in GROUNDS]
        lines.append(_row(_label(row), [*cells, f"{row['questions_per_second']:.2f}", f"{row['peak_memory_gib']:.2f}"]))
    lines += [f"peak: {result['memory']}", "", *_differences(result), *_slices(rows), *_trust(result)]
    lines += [_row("published, of other data", ["data", "BLEU-1", "BLEU-4", "ROUGE-1", "ROUGE-L"])]
    for other in result["published"]:
        lines.append(_row(other["name"], [other["data"], *(f"{other[name]:.2f}" for name in ("bleu_1", "bleu_4", "rouge_1", "rouge_l"))]))
    lines += ["not to be compared figure by figure: other questions, other answers, texts cut into words otherwise"]
    return "\n".join([*lines, "", f"BLEU signature {result['bleu_signature']}"])


def scored(name: str, value: dict[str, Any], sign: str = "") -> str:
    """``29.8 [27.5, 32.1]``, in per cent but for numbers of characters."""
    unit = 1 if name.startswith("bleu") or name == "characters" else 100
    return f"{unit * value['mean']:{sign}.1f} [{unit * value['low']:{sign}.1f}, {unit * value['high']:{sign}.1f}]"


def _label(row: dict[str, Any]) -> str:
    return f"{row['method']}, {row['pool']}"


def _row(head: str, cells: Sequence[str], width: int = _OTHER, first: int = _FIRST) -> str:
    return f"{head:<{first}}" + "".join(f"{cell:>{width}}" for cell in cells)


def _scores(title: str, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    shown = [_row(_label(row), [scored(name, row["scores"][name]) for name in names]) for row in rows]
    return [_row(title, [NAMES[name] for name in names]), *shown, ""]


def _differences(result: dict[str, Any]) -> list[str]:
    if not result["differences"]:
        return []
    lines = [_row(f"less {result['baseline']}", [NAMES[name] for name in COMPARED], 38)]
    for row in result["differences"]:
        cells = [f"{scored(name, row['scores'][name], '+')} p={row['scores'][name]['p']:.3f}" for name in COMPARED]
        lines.append(_row(f"{row['of']}, {row['pool']}", cells, 38))
    return [*lines, ""]


def _slices(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for kind, parts in rows[0]["by"].items():
        for value, scores in parts.items():
            lines.append(_row(f"{kind} {value or 'none'}, {scores['supported']['count']}", [NAMES[name] for name in SLICED], first=_SLICE))
            for row in rows:
                lines.append(_row(_label(row), [scored(name, row["by"][kind][value][name]) for name in SLICED], first=_SLICE))
            lines.append("")
    return lines


def _trust(result: dict[str, Any]) -> list[str]:
    heads = ["threshold", "answered", "right", "of answered", "refused", "unanswerable", "ECE before", "after", "AUROC"]
    lines = [_row("trust", heads, 13)]
    for row in result["methods"]:
        trust = row["trust"]
        names = ("answered", "right", "right_of_answered", "refused_of_answerable", "refused_of_unanswerable")
        errors = [trust["before"]["error"], trust["after"]["error"], trust["auroc_right"]]
        cells = [f"{trust['threshold']:.3f}", *(_part(trust[name], 100, 1) for name in names), *(_part(error, 1, 3) for error in errors)]
        lines.append(_row(_label(row), cells, 13))
    lines += ["in per cent of all questions asked; right: the recorded passage quoted, or a text near enough to the recorded answer", ""]
    kinds = list(result["methods"][0]["trust"]["refused_by_kind"])
    if not kinds:
        return lines
    asked = result["methods"][0]["trust"]["refused_by_kind"]
    lines.append(_row("refused, per cent", [f"{kind} ({asked[kind]['questions']})" for kind in kinds], 24))
    for row in result["methods"]:
        lines.append(_row(_label(row), [_part(row["trust"]["refused_by_kind"][kind]["refused"], 100, 1) for kind in kinds], 24))
    return [*lines, ""]


def _part(value: float | None, unit: int, digits: int) -> str:
    return "-" if value is None else f"{unit * value:.{digits}f}"
