"""Questions that come with the passages they were asked of: DPR, DuReader, DuReader-retrieval, CMRC 2018.

Each passage becomes a Document, under the id that the source gives it or a hash of title and text, and each question a Query that names
them. A passage that stands at many questions comes many times: ``prepare`` merges exact doubles.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from medrag import text
from medrag.sources import documents, lines, values
from medrag.sources.kinds import Kind
from medrag.sources.rows import Document, Query, Reject, Row, Source


def from_dpr(row: dict[str, Any]) -> Iterator[Row]:
    """``{"question", "answers", "positive_ctxs", "negative_ctxs", "hard_negative_ctxs"}``, a context ``{"title", "text", "passage_id"}``.

    Source: facebookresearch/DPR, README (Retriever input data format). The downloads name a context by ``passage_id`` or ``psg_id``; the two
    lists of negatives may be missing, and a title may be null. Hard negatives come first. Ids get ``dpr/`` in front: they are plain numbers.
    """
    question, answers = values.string(row, "question"), tuple(values.strings(row, "answers"))
    named = {name: list(map(_context, values.objects(row, name))) for name in ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")}
    right = text.unique(each.id for each in named.pop("positive_ctxs"))
    if not right:
        raise ValueError("positive_ctxs names no passage")
    wrong = text.unique(each.id for held in named.values() for each in held if each.id not in right)
    seen = set[str]()
    for name in ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs"):
        for context in map(_context, values.objects(row, name)):
            if context.id not in seen:
                seen.add(context.id)
                yield context
    yield Query(question, right, answers=answers, negative_ids=wrong)


def _context(row: dict[str, Any]) -> Document:
    title, body = values.optional(row, "title"), values.string(row, "text")
    name = values.identity(row, "passage_id", "psg_id", "id")
    return Document(body, title, f"dpr/{name}" if name else documents.identity(title, body))


def from_dureader(row: dict[str, Any]) -> Iterator[Row]:
    """``{"question", "question_id", "answers", "documents": [{"title", "paragraphs", "is_selected", ...}], ...}``: DuReader 2.0.

    Source: baidu/DuReader, README and utils/preprocess.py, and the demo data. The paragraphs of a document, often single lines, become
    passages of up to ``documents.PASSAGE_CHARACTERS``. Annotators wrote the answer from the selected documents: of each of them the passage
    that shares most pairs of characters with an answer is a right one. The others are not known to be wrong, and are no negatives.
    Raises ValueError where nothing is selected, as in the test sets, once the passages are given.
    """
    question, answers = values.string(row, "question"), tuple(values.strings(row, "answers"))
    wanted = {unit for answer in answers for unit in text.characters_and_pairs(answer) if len(unit) > 1}
    right: list[str] = []
    for source in values.objects(row, "documents"):
        body = "\n".join(values.strings(source, "paragraphs"))
        found = list(documents.passages(values.optional(source, "title"), [("", body)]))
        yield from found
        shared = [len(wanted.intersection(text.characters_and_pairs(each.text))) for each in found]
        if source.get("is_selected") and max(shared, default=0):
            right.append(found[shared.index(max(shared))].id)
    if not right:
        raise ValueError("no document is selected and shares words with an answer; its passages are kept, its question is not")
    name = values.identity(row, "question_id")
    yield Query(question, text.unique(right), id=f"dureader/{name}" if name else "", answers=answers)


def from_answer_paragraphs(row: dict[str, Any]) -> Iterator[Row]:
    """``{"question", "question_id", "answer_paragraphs": [{"paragraph_id", "paragraph_text"}]}``: DuReader-retrieval, training and development.

    Source: PaddlePaddle/RocketQA, research/DuReader-Retrieval-Baseline (README and metric/evaluation.py). A paragraph without its text is in
    the passage collection alone.
    """
    question, right = values.string(row, "question"), list[str]()
    for paragraph in values.objects(row, "answer_paragraphs"):
        name = values.identity(paragraph, "paragraph_id")
        body = values.optional(paragraph, "paragraph_text")
        if not name and not body:
            raise ValueError("an answer paragraph needs paragraph_id or paragraph_text")
        right.append(name or documents.identity("", body))
        if body:
            yield Document(body, id=right[-1])
    if not right:
        raise ValueError("answer_paragraphs names no passage")
    yield Query(question, text.unique(right), id=values.identity(row, "question_id"))


def from_paragraph(row: dict[str, Any]) -> Iterator[Row]:
    """``{"paragraph_id", "paragraph_text"}``: a row of DuReader-retrieval's passage_collection.json. Ids are hashes, and are kept."""
    yield Document(values.string(row, "paragraph_text"), id=values.identity(row, "paragraph_id"))


def from_context_text(row: dict[str, Any]) -> Iterator[Row]:
    """``{"context_id", "context_text", "title", "qas": [{"query_id", "query_text", "answers": [text, ...]}]}``: CMRC 2018's own form.

    Source: ymcui/cmrc2018, data/cmrc2018_trial.json, a JSON array of such objects.
    """
    context = Document(values.string(row, "context_text"), values.optional(row, "title"), values.identity(row, "context_id"))
    yield context
    for asked in values.objects(row, "qas"):
        answers = text.unique(values.strings(asked, "answers"))
        yield Query(values.string(asked, "query_text"), (context.id,), id=values.identity(asked, "query_id"), answers=answers)


def read_squad(source: Source) -> Iterator[Row]:
    """``{"version", "data": [{"title", "paragraphs": [{"id", "context", "qas": [{"id", "question", "answers": [{"text"}]}]}]}]}``.

    Source: ymcui/cmrc2018, squad-style-data. The file is held in memory; the split is that of its name, as in cmrc2018_dev.json. An article
    that is broken is one Reject, whose line is its number, counted from 1. Raises ValueError where ``data`` is no list.
    """
    whole = lines.document(source.path, source.encoding)
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
        raise ValueError(f"source {source.path}: data must be a list of articles")
    split = values.split_of(source.path)
    for number, article in enumerate(whole["data"], 1):
        try:
            yield from _article(article, split, str(source.path), number)
        except ValueError as error:
            yield Reject(str(source.path), number, 0, f"article {number}: {error}")


def _article(article: Any, split: str, file: str, number: int) -> list[Row]:
    if not isinstance(article, dict):
        raise ValueError(f"a JSON {type(article).__name__} stands where an article is needed")
    rows: list[Row] = []
    for paragraph in values.objects(article, "paragraphs"):
        title, body = values.optional(article, "title"), values.string(paragraph, "context")
        name = values.identity(paragraph, "id") or documents.identity(title, body)
        rows.append(Document(body, title, name))
        for asked in values.objects(paragraph, "qas"):
            answers = text.unique(values.string(answer, "text") for answer in values.objects(asked, "answers"))
            question, query = values.string(asked, "question"), values.identity(asked, "id")
            rows.append(Query(question, (name,), split, query, file, number, answers=answers))
    return rows


def read_dual(source: Source) -> Iterator[Row]:
    """Tab-separated: ``query title para label``, or ``query title_pos para_pos title_neg para_neg label``, without a line of names.

    Source: PaddlePaddle/RocketQA, research/DuReader-Retrieval-Baseline/src/reader (reader_ce.py, reader_de.py). Neighbouring lines with the
    same query are one question. Label 1 says that the passage answers it. A query ``-`` marks the collection itself (part-00 ...), and ``-``
    as a title means none. A question without a right passage, as among retrieved ones, is a Reject; its passages are kept.
    """
    path, split = str(source.path), values.split_of(source.path)
    kept = (each for each in lines.lines(source.path, source.encoding) if isinstance(each[2], Reject) or each[2].strip())
    for query, group in groupby(kept, lambda each: "" if isinstance(each[2], Reject) else each[2].split("\t", 1)[0]):
        right, wrong, place = list[str](), list[str](), (0, 0)
        for number, start, line in group:
            if isinstance(line, Reject):
                yield line
                continue
            place = place if any(place) else (number, start)
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) not in (4, 6):
                yield Reject(path, number, start, f"{len(cells)} cells in a row; 4 or 6 are needed")
                continue
            if len(cells) == 4 and query != "-" and cells[3] not in ("0", "1"):
                yield Reject(path, number, start, "the label must be 0 or 1")
                continue
            for at in range(1, len(cells) - 1, 2):
                title, body = cells[at].strip().removeprefix("-"), cells[at + 1]
                passage = Document(body, title, documents.identity(title, body))
                (right if at == 1 and (len(cells) == 6 or cells[3] == "1") else wrong).append(passage.id)
                yield passage
        if right and query != "-":
            wrong = [name for name in wrong if name not in right]
            yield Query(query, text.unique(right), split, "", path, *place, negative_ids=text.unique(wrong))
        elif wrong and query not in ("-", ""):
            yield Reject(path, *place, "no passage of this question has the label 1; they are kept, the question is not")


def _is_squad(path: Path, head: str) -> bool:
    return head.startswith("{") and '"data"' in head and '"paragraphs"' in head and '"context"' in head and '"qas"' in head


def _is_dual(path: Path, head: str) -> bool:
    rows = [line.split("\t") for line in head.splitlines()[:-1] or [head]]
    return all(len(cells) in (4, 6) and cells[-1] in ("0", "1") for cells in rows) and all(not cells[1].isdigit() for cells in rows)


KINDS = {
    "squad": Kind(read_squad, _is_squad, layout='{"data": [{"paragraphs": [{"context", "qas"}]}]}'),
    "dureader_retrieval_tsv": Kind(read_dual, _is_dual, layout="query TAB title TAB para TAB label"),
}
