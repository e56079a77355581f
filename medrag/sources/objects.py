"""JSON rows of question-answer data: one object a line, or an array of them, told apart by their keys.

``FORMS`` holds every form of row, the ones with more keys first. A file whose first rows are all of one form is of the kind of that name;
one with rows of several forms is ``jsonl``, where each row is told by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from medrag.sources import dialogues, documents, lines, passages, values
from medrag.sources.fields import from_columns, joined
from medrag.sources.kinds import Kind
from medrag.sources.rows import SPLITS, Document, Query, Record, Reject, Row, Source


@dataclass(frozen=True, slots=True)
class Form:
    """A form of row: the keys that all its rows have, and what becomes of one."""

    keys: tuple[str, ...]
    convert: Callable[[dict[str, Any]], Iterator[Row]]
    named_split: bool = False
    """its files declare their split in their names, as in ``train.json``"""
    together: bool = False
    """the records of one row are turns of a dialogue or wordings of a question: where there are several, they are a ``group``"""


def from_huatuo_llama(row: dict[str, Any]) -> Iterator[Row]:
    """``{"instruction", "input", "output"}``; the input goes on with the question.

    Source: SCIR-HI/Huatuo-Llama-Med-Chinese, data/llama_data.json (JSON lines despite its name); the form is Alpaca's.
    """
    yield Record(joined([values.string(row, "instruction"), values.optional(row, "input")]), values.string(row, "output"))


def from_chatmed(row: dict[str, Any]) -> Iterator[Row]:
    """``{"query", "response"}``: ChatMed_Consult_Dataset. Source: michael-wzhu/ChatMed, README and src/web_services/test_examples.

    The repository's own test file wraps a query as ``<s>问：\\n...\\n答：\\n``; that is taken off.
    """
    question = values.string(row, "query").removeprefix("<s>").strip()
    if question.startswith("问：") and question.endswith("答："):
        question = question[2:-2].strip()
    yield Record(question, values.string(row, "response"))


def from_sharegpt(row: dict[str, Any]) -> Iterator[Row]:
    """``{"conversations": [{"from": "human" or "gpt", "value"}, ...]}``: each answer with the human turn just before it.

    Source: shibing624/MedicalGPT, data/sft. Other speakers (system, observation) are passed over.
    """
    turns, asked, answered = row["conversations"], "", False
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations must be a list of objects with from and value")
    for turn in turns:
        speaker = turn.get("from")
        if speaker in ("human", "user"):
            asked = values.string(turn, "value")
        elif speaker in ("gpt", "assistant") and asked:
            yield Record(asked, values.string(turn, "value"))
            asked, answered = "", True
    if not answered:
        raise ValueError("a conversation without a question and its answer")


def from_questions(row: dict[str, Any]) -> Iterator[Row]:
    """``{"questions", "answers"}``: Huatuo-26M's parts, and CareGPT's and Huatuo's test sets, where both are plain texts.

    Source: FreedomIntelligence/Huatuo-26M, README, and its data sets huatuo_encyclopedia_qa, huatuo_knowledge_graph_qa and
    huatuo_consultation_qa: ``questions`` is a list of wordings, or of lists of them, ``answers`` a list of texts. Every wording makes a
    Record with every answer. The answers of huatuo_consultation_qa are addresses of pages: those rows raise ValueError.
    """
    questions, answers = values.strings(row, "questions"), values.strings(row, "answers")
    if not questions or not answers:
        raise ValueError(f"{'answers' if questions else 'questions'} must hold a string")
    if any(answer.strip().startswith(("http://", "https://")) for answer in answers):
        raise ValueError("the answer is the address of a page, not a text")
    for question in questions:
        for answer in answers:
            yield Record(question, answer)


def from_huatuo_lite(row: dict[str, Any]) -> Iterator[Row]:
    """``{"id", "answer", "score", "label", "question", "related_diseases"}``: Huatuo26M-Lite, format_data.jsonl; ``label`` is a department.

    Source: FreedomIntelligence/Huatuo-26M, README. Its ids are plain numbers and name no row elsewhere: they are left out.
    """
    yield Record(values.string(row, "question"), values.string(row, "answer"), values.label(row, "label"))


def from_baike2018qa(row: dict[str, Any]) -> Iterator[Row]:
    """``{"qid", "category", "title", "desc", "answer"}``; desc may be empty or say the title again.

    Source: brightmart/nlp_chinese_corpus, README. ``category``, such as 健康-妇产科, stands for the department.
    """
    question = joined([values.string(row, "title"), values.optional(row, "desc")])
    yield Record(question, values.string(row, "answer"), values.label(row, "category"))


def from_webtext2019zh(row: dict[str, Any]) -> Iterator[Row]:
    """``{"qid", "title", "desc", "topic", "star", "content", "answer_id", "answerer_tags"}``; ``content`` is the answer.

    Source: brightmart/nlp_chinese_corpus, README. ``topic`` stands for the department; the answers of one question are a group.
    """
    question = joined([values.string(row, "title"), values.optional(row, "desc")])
    yield Record(question, values.string(row, "content"), values.label(row, "topic"), group=values.identity(row, "qid"))


def from_mapped_question(row: dict[str, Any]) -> Iterator[Row]:
    """``{"question", "answer_ids"}`` and, where wanted, ``split`` (test), ``id``, ``source``, ``answers``, ``negative_ids``, ``reason``:
    medrag's own."""
    for name in ("answer_ids", "negative_ids"):
        ids = row.get(name, [])
        if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
            raise ValueError(f"{name} must be a list of strings")
    split = row.get("split", "test")
    if split not in SPLITS:
        raise ValueError(f"split is none of the allowed: {', '.join(SPLITS)}")
    yield Query(
        values.string(row, "question"),
        tuple(row["answer_ids"]),
        split,
        values.identity(row, "id"),
        answers=tuple(values.strings(row, "answers")),
        negative_ids=tuple(row.get("negative_ids", [])),
        source=values.identity(row, "source"),
        reason=values.optional(row, "reason"),
    )


def from_question(row: dict[str, Any]) -> Iterator[Row]:
    """``{"question", "answer"}`` and, where wanted, ``department`` (a name or a list), ``id``, ``source``, ``split``, ``group``: medrag's own."""
    split = values.optional(row, "split")
    if split and split not in SPLITS:
        raise ValueError(f"split is none of the allowed: {', '.join(SPLITS)}")
    question, answer = values.string(row, "question"), values.string(row, "answer")
    yield Record(
        question,
        answer,
        values.label(row, "department"),
        values.identity(row, "id"),
        values.identity(row, "source"),
        split,
        values.identity(row, "group"),
    )


def from_chinese_keys(row: dict[str, Any]) -> Iterator[Row]:
    """``{"问", "答"}``. Source: shibing624/MedicalGPT, data/rag/medical_corpus.txt."""
    yield Record(values.string(row, "问"), values.string(row, "答"))


def from_passage(row: dict[str, Any]) -> Iterator[Row]:
    """``{"id" or "_id", "title", "text"}`` that is a passage already: a row of BEIR's corpus.jsonl. It is not cut."""
    yield Document(values.string(row, "text"), values.optional(row, "title"), values.identity(row, "_id", "id"), values.identity(row, "source"))


FORMS: dict[str, Form] = {
    "dpr": Form(("question", "positive_ctxs"), passages.from_dpr),
    "dureader": Form(("question", "documents"), passages.from_dureader, named_split=True),
    "dureader_retrieval": Form(("question", "answer_paragraphs"), passages.from_answer_paragraphs, named_split=True),
    "dureader_passages": Form(("paragraph_id", "paragraph_text"), passages.from_paragraph),
    "cmrc2018": Form(("context_text", "qas"), passages.from_context_text, named_split=True),
    "mapped_questions": Form(("question", "answer_ids"), from_mapped_question),
    "huatuo_lite": Form(("question", "answer", "label", "related_diseases"), from_huatuo_lite),
    "sharegpt": Form(("conversations",), from_sharegpt, together=True),
    "utterances": Form(("utterances",), dialogues.from_utterances, named_split=True, together=True),
    "huatuo_llama": Form(("instruction", "output"), from_huatuo_llama),
    "chatmed": Form(("query", "response"), from_chatmed),
    "huatuo_26m": Form(("questions", "answers"), from_questions, together=True),
    "webtext2019zh": Form(("title", "desc", "content"), from_webtext2019zh),
    "baike2018qa": Form(("title", "desc", "answer"), from_baike2018qa),
    "question_answer": Form(("question", "answer"), from_question),
    "wen_da": Form(("问", "答"), from_chinese_keys),
    "beir_corpus": Form(("_id", "title", "text"), from_passage),
    "wikipedia": Form(("title", "text"), documents.from_page),
    "texts": Form(("text",), documents.from_text),
}


def form_of(row: Any) -> str:
    """The name of the form that an object is of. Raises ValueError that names its keys where there is none."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__} stands where an object is needed")
    for name, form in FORMS.items():
        if all(key in row for key in form.keys):
            return name
    known = ", ".join("/".join(form.keys) for form in FORMS.values())
    raise ValueError(f"keys {[key[:40] for key in sorted(row)[:8]]} are of no known form; known: {known}")


def read(source: Source, name: str = "") -> Iterator[Row]:
    """The rows of a file of one form; without its name, each row is told by its keys, or read by the columns that the source names."""
    declared = values.split_of(source.path)
    for which, (number, start, value) in enumerate(lines.objects(source.path, source.encoding), 1):
        if isinstance(value, Reject):
            yield value
            continue
        try:
            if source.columns:
                yield from_columns(_object(value), source.columns)
                continue
            form = FORMS[name or form_of(value)]
            if missing := [key for key in form.keys if key not in _object(value)]:
                raise ValueError(f"{missing[0]} is missing; rows of the form {name} have {', '.join(form.keys)}")
            split = declared if form.named_split else ""
            rows = form.convert(value)
            if form.together:
                rows = _together(rows, str(which))
            for row in rows:
                if isinstance(row, Query):
                    yield replace(row, file=str(source.path), line=number, byte=start, split=row.split or split)
                else:
                    yield replace(row, split=split) if split and isinstance(row, Record) else row
        except ValueError as error:
            yield Reject(str(source.path), number, start, str(error))


def _together(rows: Iterator[Row], group: str) -> Iterator[Row]:
    records = [row for row in rows if isinstance(row, Record)]
    return iter(dialogues.placed(iter(records), group, "") if len(records) > 1 else records)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__} stands where an object is needed")
    return value


def _sees(name: str, path: Path, head: str) -> bool:
    """Whether the first rows are all of one form."""
    found = values.first(head)
    try:
        return bool(found) and all(form_of(value) == name for value in found)
    except ValueError:
        return False


def _is_json(path: Path, head: str) -> bool:
    return head.startswith("{") or (head.startswith("[") and head[1:].lstrip().startswith("{"))


KINDS = {
    name: Kind(partial(read, name=name), partial(_sees, name), layout="{" + ", ".join(f'"{key}"' for key in form.keys) + "}")
    for name, form in FORMS.items()
} | {"jsonl": Kind(read, _is_json, columns=True, layout="JSON lines or an array of objects")}
