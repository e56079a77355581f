"""Published data sets with a layout of their own: MATINF, webMedQA, cMedQA, and folders in BEIR's or C-MTEB's layout.

Ids of a folder get the source's name in front, ``cMedQA2/17``: in most data sets they are plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from sys import intern

from medrag import text
from medrag.sources import lines, tables, values
from medrag.sources.fields import from_columns
from medrag.sources.kinds import Kind
from medrag.sources.rows import SPLITS, Document, Query, Record, Reject, Row, Source

NEGATIVES = 30
"""wrong candidates kept of one question of cMedQA, the first ones: the lists hold a hundred, most drawn at random"""
Columns = tuple[tuple[str, str], ...]
_ORDER = ("test", "dev", "train", "")
"""a question of several splits is of the first of these: it is tested on, not trained on"""
_CANDIDATES = ("question_id,pos_ans_id,neg_ans_id", "question_id,ans_id,cnt,label")
_CORPUS: tuple[Columns, ...] = tuple(
    (("text", "text"), *title, ("id", name)) for title in ((("title", "title"),), ()) for name in ("_id", "id", "corpus-id")
)
_QUERIES: tuple[Columns, ...] = tuple((("text", "text"), ("id", name)) for name in ("_id", "id", "query-id"))
_QRELS: tuple[Columns, ...] = tuple(
    (("text", passage), ("id", query), ("source", "score")) for query, passage in (("query-id", "corpus-id"), ("qid", "pid"))
)
"""a judgement takes the place of a Document: the passage as its text, the question as its id, the score as its source"""


@dataclass(slots=True)
class Judged:
    """What a data set says of one question, by ids."""

    split: str = ""
    right: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def query(self, question: str, id: str, name: str, file: Path, line: int) -> Query:
        """The row that it makes, every id with the data set's name before it; a passage that is both right and wrong is right."""
        known = set(self.right)
        right = text.unique(f"{name}/{each}" for each in self.right)
        wrong = text.unique(f"{name}/{each}" for each in self.wrong if each not in known)
        return Query(question, right, self.split, f"{name}/{id}", str(file), line, negative_ids=wrong)


def read_matinf(source: Source) -> Iterator[Row]:
    """CSV with the columns question, description, answer, class, id: MATINF's train.csv, dev.csv and test.csv.

    Source: WHUIR/MATINF (the files are sent on request) and the reader of huggingface/datasets, datasets/matinf. The question is followed by
    its description; ``class``, an age or a topic of maternal and infant care, stands for the department. Ids name no other row: left out.
    """
    columns = (("question", "question+description"), ("answer", "answer"), ("department", "class"))
    split = values.split_of(source.path)
    for row in tables.KINDS["csv"].read(replace(source, columns=columns)):
        yield replace(row, split=split) if isinstance(row, Record) else row


def read_webmedqa(source: Source) -> Iterator[Row]:
    """Tab-separated without column names: id, label, department, question, answer: medQA.train.txt, medQA.valid.txt, medQA.test.txt.

    Source: hejunqing/webMedQA, README and its sample. Some copies have id and department in each other's place: the one of digits is the id.
    Lines with the label 0 are answers of other questions, drawn at random; they stand at their own question, and are passed over here.
    """
    split = values.split_of(source.path)
    for number, start, line in lines.lines(source.path, source.encoding):
        if isinstance(line, Reject):
            yield line
            continue
        cells = line.rstrip("\r\n").split("\t")
        if not line.strip():
            continue
        if len(cells) != 5:
            yield Reject(str(source.path), number, start, f"{len(cells)} cells in a row; 5 are needed")
        elif cells[1] not in ("0", "1"):
            yield Reject(str(source.path), number, start, "the label, the second cell, must be 0 or 1")
        elif cells[1] == "1":
            department = cells[0] if cells[2].isdigit() else cells[2]
            yield Record(cells[3], cells[4], department, split=split)


def read_cmedqa(source: Source) -> Iterator[Row]:
    """A folder with question(s).csv, answer(s).csv and {train,dev,test}_candidates.txt, unpacked or as zip files: cMedQA v1 and v2.

    Source: zhangsheng93/cMedQA and zhangsheng93/cMedQA2, README and dev_candidates. Columns: question_id,content; ans_id,question_id,content;
    candidates have question_id,pos_ans_id,neg_ans_id (training) or question_id,ans_id,cnt,label. Answers become Documents, questions Queries
    with their split. Ids alone are held in memory: 67 MiB were measured for 50,000 questions with 50 candidates each. The line of a Query,
    and of a question's Reject, is the number of its row.
    """
    files = _cmedqa_files(source.path)
    judged: dict[str, Judged] = {}
    for split in _ORDER[:3]:
        if path := files.get(f"{split}_candidates"):
            yield from _candidates(path, split, judged)
    for row in _cells(source, files["answer"], ((("text", "content"), ("id", "ans_id"), ("source", "question_id")),)):
        if isinstance(row, Document):
            asked = judged.get(row.source)
            if asked:
                asked.right.append(row.id)
            yield Document(row.text, id=f"{source.name}/{row.id}")
        else:
            yield row
    columns = tuple((("text", "content"), ("id", name)) for name in ("question_id", "que_id"))
    for number, row in enumerate(_cells(source, files["question"], columns), 1):
        yield _asked(row, judged, source.name, files["question"], number)


def _cmedqa_files(folder: Path) -> dict[str, Path]:
    """Role -> file, an unpacked one before an archive."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.suffix.lower() == ".zip", path.name)):
        name = lines.stem(path).lower()
        role = name.removesuffix("s") if name.removesuffix("s") in ("question", "answer") else name
        if path.is_file() and (role in ("question", "answer") or role.removesuffix("_candidates") in SPLITS):
            found.setdefault(role, path)
    return found


def _candidates(path: Path, split: str, judged: dict[str, Judged]) -> Iterator[Reject]:
    header: list[str] = []
    for number, start, line in lines.lines(path, "utf-8"):
        if isinstance(line, Reject):
            yield line
            continue
        cells = line.strip().split(",")
        if not header:
            if line.strip() not in _CANDIDATES:
                raise ValueError(f"source {path}: the first line must be one of {' or '.join(_CANDIDATES)}")
            header = cells
            continue
        if len(cells) != len(header) or not all(cell.isdigit() for cell in cells):
            if line.strip():
                yield Reject(str(path), number, start, f"{len(header)} numbers are needed in a row")
            continue
        asked = judged.get(cells[0])
        if asked is None:
            asked = judged[cells[0]] = Judged(split)
        if asked.split != split:
            continue
        labelled = header[-1] == "label"
        if (not labelled or cells[3] == "1") and asked.right[-1:] != [cells[1]]:
            asked.right.append(intern(cells[1]))
        if (not labelled or cells[3] != "1") and len(asked.wrong) < NEGATIVES:
            asked.wrong.append(intern(cells[1 if labelled else 2]))


def read_beir(source: Source) -> Iterator[Row]:
    """A folder with corpus, queries and qrels, each as JSON lines, TSV or Parquet: the layout of BEIR, and of C-MTEB.

    Source: beir-cellar/beir, beir/datasets/data_loader.py (corpus.jsonl with _id, title, text; queries.jsonl with _id, text; qrels/SPLIT.tsv
    with query-id, corpus-id, score), and C-MTEB's sets on their hub (data/corpus-*.parquet and data/queries-*.parquet with id, text; qrels
    with qid, pid, score in a set of their own, to be put into the same folder). Each file's part is in its name or in a folder's: corpus,
    queries or qrels; the split is in the name of the qrels' file. A score above 0 says that the passage answers the question. Passages come
    first, uncut; of the qrels, ids alone are held in memory. The line of a Query, and of a question's Reject, is the number of its row.
    """
    found = _beir_files(source.path)
    for path in found["corpus"]:
        for row in _cells(source, path, _CORPUS):
            yield replace(row, id=f"{source.name}/{row.id}", source="") if isinstance(row, Document) else row
    judged: dict[str, Judged] = {}
    for path in sorted(found["qrels"], key=lambda path: _ORDER.index(values.split_of(path))):
        split = values.split_of(path)
        for row in _cells(source, path, _QRELS):
            if not isinstance(row, Document):
                yield row
                continue
            asked = judged.get(row.id)
            if asked is None:
                asked = judged[row.id] = Judged(split)
            if asked.split == split:
                (asked.right if _score(row.source) > 0 else asked.wrong).append(intern(row.text))
    for path in found["queries"]:
        for number, row in enumerate(_cells(source, path, _QUERIES), 1):
            yield _asked(row, judged, source.name, path, number)


def _asked(row: Row, judged: dict[str, Judged], name: str, file: Path, number: int) -> Row:
    """What becomes of a question that was read as a Document."""
    if not isinstance(row, Document):
        return row
    asked = judged.get(row.id)
    if asked is None or not asked.right:
        return Reject(str(file), number, 0, "a question that the data set names no right answer for")
    return asked.query(row.text, row.id, name, file, number)


def _score(written: str) -> float:
    try:
        return float(written)
    except ValueError:
        return 0.0


def _beir_files(folder: Path) -> dict[str, list[Path]]:
    """The files of corpus, queries and qrels, told by the names of the files and of the folders that they are in."""
    found: dict[str, list[Path]] = {"corpus": [], "queries": [], "qrels": []}
    for path in sorted(folder.rglob("*")):
        names = path.relative_to(folder).parts
        if any(name.startswith(".") for name in names) or not path.is_file() or lines.suffix(path) not in (".jsonl", ".tsv", ".parquet"):
            continue
        role = next((role for role in ("qrels", "corpus", "queries") if any(role in name.lower() for name in names)), "")
        if role:
            found[role].append(path)
    return found


def _cells(source: Source, path: Path, choices: tuple[Columns, ...]) -> Iterator[Row]:
    """The rows of one file of a folder, by the first choice of columns that it has.

    Raises ValueError where it has none of them.
    """
    suffix = lines.suffix(lines.member(path))
    if suffix == ".jsonl":
        return _object_cells(path, lines.encoding(path), choices)
    kind = "parquet" if suffix == ".parquet" else "csv"
    encoding = "" if kind == "parquet" else lines.encoding(path)
    problem = ""
    for columns in choices:
        rows = tables.KINDS[kind].read(replace(source, path=path, kind=kind, encoding=encoding, columns=columns))
        try:
            first = next(rows, None)
        except ValueError as error:
            problem = problem or str(error)
            continue
        return rows if first is None else chain([first], rows)
    raise ValueError(problem)


def _object_cells(path: Path, encoding: str, choices: tuple[Columns, ...]) -> Iterator[Row]:
    """The same of JSON lines, where each row may have other keys."""
    for number, start, value in lines.objects(path, encoding):
        if isinstance(value, Reject):
            yield value
            continue
        try:
            if not isinstance(value, dict):
                raise ValueError(f"a JSON {type(value).__name__} stands where an object is needed")
            columns = next((each for each in choices if all(column in value for _, column in each)), choices[-1])
            yield from_columns(value, columns)
        except ValueError as error:
            yield Reject(str(path), number, start, str(error))


def _sees_matinf(path: Path, head: str) -> bool:
    names = {name.strip(' "\r').lower() for name in head.partition("\n")[0].split(",")}
    return lines.suffix(path) == ".csv" and {"question", "description", "answer", "class"} <= names


def _sees_webmedqa(path: Path, head: str) -> bool:
    rows = [line.split("\t") for line in head.splitlines()[:-1] or [head]]
    return all(len(cells) == 5 and cells[1] in ("0", "1") and (cells[0].isdigit() or cells[2].isdigit()) for cells in rows)


def _sees_cmedqa(path: Path, head: str) -> bool:
    found = _cmedqa_files(path)
    return {"question", "answer"} <= set(found) and any(role.endswith("_candidates") for role in found)


KINDS = {
    "matinf": Kind(read_matinf, _sees_matinf, layout="CSV with question, description, answer, class"),
    "webmedqa": Kind(read_webmedqa, _sees_webmedqa, layout="id TAB label TAB department TAB question TAB answer"),
    "cmedqa": Kind(read_cmedqa, _sees_cmedqa, folder=True, layout="question.csv, answer.csv, train_candidates.txt"),
    "beir": Kind(read_beir, lambda path, head: all(_beir_files(path).values()), folder=True, layout="corpus, queries, qrels"),
}
