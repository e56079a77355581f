"""Knowledge that answers no question of its own: monographs, encyclopaedia and other pages, cut into titled passages.

A passage is titled with its document's name and its section, for the title is what a retriever sees of the document. Passages are cut at
sentence ends; title and text together hold everything but outer white space.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medrag import text
from medrag.sources import lines, values
from medrag.sources.kinds import Kind
from medrag.sources.rows import Document, Reject, Row, Source

PASSAGE_CHARACTERS = 300
"""the length that a passage is filled up to"""
TAIL_CHARACTERS = 75
"""a last passage shorter than this is taken into the one before it"""
SHORT_CHARACTERS = 60
"""sections shorter than this are joined with short neighbours: alone they say too little to be found"""
_CLAUSE = re.compile(r"[^，,、：: ]*[，,、：: ]+|[^，,、：: ]+")
_LABEL = re.compile(r"(?:【([^】]{1,16})】|([^\s:：。，,；;！？、\d【]{2,12})[:：])(.*)", re.DOTALL)
_HEADING = re.compile(r"(#{1,6})[ \t]+(.*?)[ \t]*#*|(第[一二三四五六七八九十百零\d]+[篇章节])(.{0,28})|([一二三四五六七八九十]{1,3}、)(.{1,28})")
_DRUG = re.compile(r'\[\s*"[^"\\\n]{1,80}\\n[^"\\:：]{2,12}[:：]')


def identity(title: str, body: str) -> str:
    """The id of a passage that its source gives none: a hash, so that the same passage has the same id wherever it stands."""
    return hashlib.sha256(f"{title}\n{body}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def chunks(body: str, size: int = PASSAGE_CHARACTERS) -> list[str]:
    """Pieces of whole sentences, each at most ``size`` characters long, but for a last one that took in a short tail.

    A sentence longer than that is cut after commas, a clause longer than that anywhere. Nothing is lost but white space at the cuts.
    """
    pieces: list[str] = []
    for sentence in text.sentences(body):
        for clause in [sentence] if len(sentence) <= size else _CLAUSE.findall(sentence):
            pieces += [clause[start : start + size] for start in range(0, len(clause), size)]
    packed: list[str] = []
    for piece in pieces:
        if packed and len(together := _glued(packed[-1], piece)) <= size:
            packed[-1] = together
        else:
            packed.append(piece)
    if len(packed) > 1 and len(packed[-1]) < TAIL_CHARACTERS:
        tail = packed.pop()
        packed[-1] = _glued(packed[-1], tail)
    return [stripped for piece in packed if (stripped := piece.strip())]


def _glued(first: str, second: str) -> str:
    """Chinese needs no blank between sentences; other scripts do."""
    blank = " " if first[-1:].isascii() and second[:1].isascii() and not first[-1:].isspace() else ""
    return f"{first}{blank}{second}"


def passages(name: str, sections: Iterable[tuple[str, str]], source: str = "") -> Iterator[Document]:
    """``(heading, text)`` of one document -> its passages; the heading is empty for what stands before the first one.

    Short neighbouring sections share a passage: its title names them all, and each text keeps its heading.
    """
    short: list[tuple[str, str]] = []
    for heading, body in [*((heading.strip(), body.strip()) for heading, body in sections), ("", "")]:
        if body and len(body) < SHORT_CHARACTERS and sum(len(each) for _, each in short) < PASSAGE_CHARACTERS:
            short.append((heading, body))
            continue
        if short:
            said = short[0][1] if len(short) == 1 else "\n".join(f"{each}：{kept}" if each else kept for each, kept in short)
            yield _passage(name, "、".join(each for each, _ in short if each), said, source)
        short = []
        if not body:
            continue
        for piece in chunks(body):
            yield _passage(name, heading, piece, source)


def _passage(name: str, heading: str, body: str, source: str) -> Document:
    title = "：".join(part for part in (name.strip(), heading) if part)
    return Document(body, title, identity(title, body), source)


def from_page(row: dict[str, Any]) -> Iterator[Document]:
    """``{"id", "url", "title", "text"}``: Wikipedia as wikiextractor (``--json``, which adds ``revid``) and nlp_chinese_corpus give it.

    Source: attardi/wikiextractor and brightmart/nlp_chinese_corpus, README. The text repeats the title as its first line.
    """
    name, body = values.string(row, "title").strip(), values.string(row, "text").strip()
    first, _, rest = body.partition("\n")
    if not body:
        raise ValueError("text is empty")
    yield from passages(name, [("", rest if rest and first.strip() == name else body)])


def from_text(row: dict[str, Any]) -> Iterator[Document]:
    """``{"text"}``: a text without a title, such as a page of a book. Source: shibing624/MedicalGPT, docs/datasets.md (pretraining data)."""
    body = values.string(row, "text").strip()
    if not body:
        raise ValueError("text is empty")
    yield from passages("", [("", body)])


def from_monograph(body: str) -> Iterator[Document]:
    """A drug's name on the first line, then ``适应证:...`` or ``【适应证】...`` lines; a line without a label goes on with its section.

    Source: the drug.json of WangRongsheng/CareGPT, an array of such texts; its name is sometimes itself a labelled line.
    """
    name, *rest = body.strip().splitlines() or [""]
    if found := _LABEL.fullmatch(name):
        rest = [name, *rest]
        name = re.split("[；;]", found[3])[0]
    sections: list[tuple[str, list[str]]] = []
    for line in filter(None, map(str.strip, rest)):
        if found := _LABEL.fullmatch(line):
            sections.append((found[1] or found[2], [found[3].strip()]))
        elif sections:
            sections[-1][1].append(line)
        else:
            sections.append(("", [line]))
    if not sections:
        raise ValueError("a monograph needs its name on the first line and text on the others")
    yield from passages(name, [(heading, "\n".join(held)) for heading, held in sections])


def from_markup(name: str, body: str) -> Iterator[Document]:
    """A page, held in memory, with ``# headings`` (Markdown) or lines like ``第三章 ...`` and ``二、...``; a title is the name with
    the headings above.

    ``name``, such as a file's, stands for the first heading of the first level where there is none.
    """
    above: dict[int, str] = {}
    sections: list[tuple[str, list[str]]] = [("", [])]
    fenced = False
    for line in body.splitlines():
        fenced ^= line.lstrip().startswith("```")
        found = None if fenced else _HEADING.fullmatch(line.strip())
        if found is None or line.rstrip().endswith(("。", "；", "，")):
            sections[-1][1].append(line)
            continue
        level = len(found[1]) if found[1] else 7 if found[3] else 8
        heading = found[2] if found[1] else line.strip()
        above = {each: kept for each, kept in above.items() if each < level} | {level: heading}
        if level == 1 and len(sections) == 1 and not "".join(sections[0][1]).strip():
            name, above = heading, {}
        sections.append(("：".join(above[each] for each in sorted(above)), []))
    # A heading with nothing under it is still in the titles of those below it, or else it is kept as a text.
    headings = [heading for heading, _ in sections]
    for at, (heading, held) in enumerate(sections):
        if heading and not "".join(held).strip() and not any(other.startswith(heading + "：") for other in headings[at + 1 :]):
            held.append(heading)
    yield from passages(name, [(heading, "\n".join(held)) for heading, held in sections])


def read_monographs(source: Source) -> Iterator[Row]:
    """A JSON array of texts, one a drug: see ``from_monograph``."""
    for number, start, value in lines.objects(source.path, source.encoding):
        if isinstance(value, Reject):
            yield value
        elif not isinstance(value, str):
            yield Reject(str(source.path), number, start, f"a JSON {type(value).__name__} stands where a text is needed")
        else:
            try:
                yield from from_monograph(value)
            except ValueError as error:
                yield Reject(str(source.path), number, start, str(error))


def read_page(source: Source) -> Iterator[Row]:
    """One Markdown or text file: one document, named by its first heading or its file."""
    yield from _read_page(source.path, source.encoding)


def read_pages(source: Source) -> Iterator[Row]:
    """A folder of pages (``*.md``, ``*.txt``, also in folders within), in order of name; each file's encoding is told by itself."""
    for path in _pages(source.path):
        try:
            encoding = lines.encoding(path)
        except ValueError as error:
            yield Reject(str(path), 0, 0, str(error).removeprefix(f"source {path}: "))
            continue
        yield from _read_page(path, encoding)


def _read_page(path: Path, encoding: str) -> Iterator[Row]:
    held: list[str] = []
    for _, _, line in lines.lines(path, encoding):
        if isinstance(line, Reject):
            yield line
        else:
            held.append(line.rstrip("\r\n"))
    written = "\n".join(held)
    if not written.strip():
        yield Reject(str(path), 1, 0, "a page without text")
    yield from from_markup(lines.stem(path), written)


def _pages(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if lines.suffix(path) in (".md", ".txt")]


def _files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in found if path.is_file())


def _mostly_pages(folder: Path) -> bool:
    """A folder of data with a README is none of pages."""
    return 2 * len(_pages(folder)) > len(_files(folder))


def _is_page(path: Path, head: str) -> bool:
    marked = any(line.startswith("#") and _HEADING.fullmatch(line.strip()) for line in head.splitlines()[:50])
    return lines.suffix(path) == ".md" or (lines.suffix(path) == ".txt" and marked)


KINDS = {
    "drug_monographs": Kind(read_monographs, lambda path, head: _DRUG.match(head) is not None, layout='["name\\n适应证:...", ...]'),
    "page": Kind(read_page, _is_page, layout="a page with # headings"),
    "pages": Kind(read_pages, lambda path, head: _mostly_pages(path), folder=True, layout="a folder of *.md and *.txt pages"),
}
