"""Raw sources -> passages and examples: cleaned, deduplicated, labelled, split without leaks, with BM25 hard negatives."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from medrag import files, text
from medrag.files import Artifact
from medrag.lexical import Lexical
from medrag.sources import SPLITS, Query, Record, Reject, Source
from medrag.text import Segmenter
from medrag.types import Example, Passage


@dataclass
class Config:
    """How raw rows become examples."""

    dictionary: str = "corpora/medical_words.txt"
    """medical words for jieba, one a line, optionally with a tab and a frequency"""
    titles: bool = False
    """keep each record's question as the title of its passage. Right where the test questions are others than the records' own
    (the shipped corpora); with test questions taken from the records it would be reading the answer sheet"""
    dev_share: float = 0.05
    test_share: float = 0.05
    """shares of question groups held out of the records, beside the questions that the sources map themselves"""
    question_characters_min: int = 4
    answer_characters_min: int = 8
    negatives: int = 4
    """BM25 hard negatives kept for each training example"""
    negatives_depth: int = 50
    """passages that hard negatives are drawn from"""
    seed: int = 0


@dataclass
class Tally:
    """What became of the rows."""

    rows: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def prepare(sources: Sequence[Source], config: Config, store: Path, progress: bool = True) -> Artifact:
    """Publish a ``corpus`` artifact: passages, train, dev and test examples, the dictionary, rejects and statistics.

    An artifact already made from the same files with the same settings is returned as it is. Raises ValueError where nothing
    usable is left.
    """
    if not sources:
        raise ValueError("no source was named; as in: medrag prepare corpora/consultation.jsonl")
    for name, share in (("dev_share", config.dev_share), ("test_share", config.test_share)):
        if not 0 <= share < 0.5:
            raise ValueError(f"prepare.{name}={share}; allowed: 0 to 0.5")
    segmenter = Segmenter(Path(config.dictionary) if config.dictionary else None)
    inputs = [[source.path.name, source.kind, source.encoding, files.sha256(source.path)] for source in sources]
    settings = asdict(config) | {"dictionary": segmenter.entries}
    key = files.fingerprint(["corpus", 3, inputs, settings])
    if found := files.find(store, "corpus", key):
        files.set_current(store, "corpus", found.path)
        return found

    tally, rejects = Tally(), []
    records: list[Record] = []
    queries: list[Query] = []
    for source in sources:
        for row in tqdm(
            source.rows(), desc=f"{source.path.name} ({source.kind}, {source.encoding})", unit=" rows", disable=not progress, file=sys.stderr
        ):
            if isinstance(row, Reject):
                rejects.append(row)
            elif isinstance(row, Query):
                queries.append(replace(row, question=text.clean(row.question)))
            elif (kept := _usable(row, source, config, tally)) is not None:
                records.append(kept)
    passages, examples, alias = _merge(records, config, tally)
    if not passages:
        raise ValueError(f"no usable record in {', '.join(str(source.path) for source in sources)} ({dict(tally.dropped)})")
    splits = _split(examples, config)
    for query in queries:
        unknown = [name for name in query.answer_ids if name not in alias]
        if unknown:
            rejects.append(Reject(query.file, query.line, query.byte, f"question {query.id!r} names records that are not there: {unknown}"))
        else:
            splits[query.split].append(_mapped(query, passages, alias))
    _check_leaks(splits)
    splits["train"] = _with_negatives(splits["train"], list(passages.values()), segmenter, config, progress)

    with files.publish(store, "corpus", key=key, config=asdict(config)) as folder:
        files.write_jsonl(folder / "passages.jsonl", map(asdict, passages.values()))
        for split in SPLITS:
            files.write_jsonl(folder / f"{split}.jsonl", map(asdict, splits[split]))
        files.write_jsonl(folder / "rejects.jsonl", map(asdict, rejects))
        segmenter.save(folder / "dictionary.txt")
        files.write_json(folder / "statistics.json", _statistics(tally, rejects, passages, splits, sources))
    return files.current(store, "corpus")


def _usable(row: Record, source: Source, config: Config, tally: Tally) -> Record | None:
    """The cleaned record, or None, counted under the rule that dropped it."""
    tally.rows += 1
    record = Record(text.clean(row.question), text.clean(row.answer), text.clean(row.department), row.id, row.source or source.path.stem)
    question, answer = text.key(record.question), text.key(record.answer)
    if len(question) < config.question_characters_min:
        tally.dropped["question too short"] += 1
    elif len(answer) < config.answer_characters_min:
        tally.dropped["answer too short"] += 1
    elif answer == question:
        tally.dropped["answer repeats the question"] += 1
    else:
        tally.sources[record.source] += 1
        return record
    return None


def _merge(records: Iterable[Record], config: Config, tally: Tally) -> tuple[dict[str, Passage], list[Example], dict[str, str]]:
    """Passages by id, one for each distinct answer; examples, one for each distinct question; and record id -> passage id."""
    passages: dict[str, Passage] = {}
    by_answer: dict[str, str] = {}
    alias: dict[str, str] = {}
    grouped: dict[str, list[tuple[Record, str]]] = defaultdict(list)
    for record in records:
        answer = text.key(record.answer)
        name = by_answer.get(answer)
        if name is None:
            name = record.id or "p" + hashlib.sha256(answer.encode()).hexdigest()[:15]
            if name in passages:
                raise ValueError(f"two records have the id {name!r} but different answers")
            by_answer[answer] = name
            passages[name] = Passage(name, record.answer, record.source, record.question if config.titles else "")
        if record.id and alias.setdefault(record.id, name) != name:
            raise ValueError(f"two records have the id {record.id!r} but different answers")
        question = text.key(record.question)
        if any(name == other for _, other in grouped[question]):
            tally.dropped["duplicate pair"] += 1
        else:
            grouped[question].append((record, name))
    examples = []
    for question, rows in grouped.items():
        first = rows[0][0]
        label = "maternal" if text.is_maternal(first.question + first.answer) or "maternal" in first.source else "consultation"
        answers, positives = tuple(record.answer for record, _ in rows), tuple(name for _, name in rows)
        name = first.id or "e" + hashlib.sha256(question.encode()).hexdigest()[:15]
        examples.append(Example(name, first.question, answers, positives, (), label, first.source))
    return passages, examples, alias


def _split(examples: Sequence[Example], config: Config) -> dict[str, list[Example]]:
    """Examples that share a passage stand in one split, chosen by the hash of their group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for example in examples:
        for passage in example.positives[1:]:
            parent[root(passage)] = root(example.positives[0])
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    smallest: dict[str, str] = {}
    for example in examples:
        for passage in example.positives:
            group = root(passage)
            smallest[group] = min(smallest.get(group, passage), passage)
    for example in examples:
        draw = hashlib.sha256(f"{config.seed}:{smallest[root(example.positives[0])]}".encode()).digest()
        share = int.from_bytes(draw[:8], "big") / 2**64
        split = "test" if share < config.test_share else "dev" if share < config.test_share + config.dev_share else "train"
        splits[split].append(example)
    return splits


def _mapped(query: Query, passages: dict[str, Passage], alias: dict[str, str]) -> Example:
    positives = text.unique(alias[name] for name in query.answer_ids)
    answers = tuple(passages[name].text for name in positives)
    first = passages[positives[0]] if positives else None
    label = "maternal" if text.is_maternal(query.question) or (first and "maternal" in first.source) else "consultation"
    name = query.id or "e" + hashlib.sha256(text.key(query.question).encode()).hexdigest()[:15]
    return Example(name, query.question, answers, positives, (), label, first.source if first else "unanswerable")


def _check_leaks(splits: dict[str, list[Example]]) -> None:
    """Raise ValueError where a question stands in two splits: the splits could not be trusted."""
    where: dict[str, str] = {}
    for split, examples in splits.items():
        for example in examples:
            other = where.setdefault(text.key(example.question), split)
            if other != split:
                raise ValueError(f"leak: question {example.id!r} stands in {other} and in {split}")


def _with_negatives(examples: Sequence[Example], passages: Sequence[Passage], segmenter: Segmenter, config: Config, progress: bool) -> list[Example]:
    """Examples with the best BM25 passages that do not answer them (Karpukhin et al. 2020, section 3.2)."""
    if config.negatives == 0:
        return list(examples)
    lexical = Lexical(segmenter)
    lexical.build(passage.text for passage in tqdm(passages, desc="BM25", unit=" passages", disable=not progress, file=sys.stderr))
    mined = []
    for example in tqdm(examples, desc="hard negatives", unit=" questions", disable=not progress, file=sys.stderr):
        rows = lexical.search(example.question, config.negatives_depth)
        wrong = [passages[row].id for row in rows if passages[row].id not in example.positives]
        mined.append(replace(example, negatives=tuple(wrong[: config.negatives])))
    return mined


def _statistics(
    tally: Tally, rejects: Sequence[Reject], passages: dict[str, Passage], splits: dict[str, list[Example]], sources: Sequence[Source]
) -> dict[str, object]:
    lengths = sorted(len(passage.text) for passage in passages.values())
    return {
        "rows": tally.rows,
        "records_by_source": dict(tally.sources),
        "dropped": dict(tally.dropped),
        "rejected_rows": len(rejects),
        "passages": len(passages),
        "passage_characters": {"median": lengths[len(lengths) // 2], "p95": lengths[int(len(lengths) * 0.95)], "max": lengths[-1]},
        "splits": {split: len(rows) for split, rows in splits.items()},
        "unanswerable": {split: sum(not row.positives for row in rows) for split, rows in splits.items()},
        "labels": {split: dict(Counter(row.label for row in rows)) for split, rows in splits.items()},
        "files": [{"file": source.path.name, "kind": source.kind, "encoding": source.encoding} for source in sources],
    }


@dataclass(frozen=True, slots=True)
class Corpus:
    """A prepared corpus in memory."""

    artifact: Artifact
    passages: list[Passage]
    train: list[Example]
    dev: list[Example]
    test: list[Example]

    @property
    def dictionary(self) -> Path:
        return self.artifact.path / "dictionary.txt"

    def texts(self) -> Iterable[str]:
        """Every passage and every training question: what vocabularies are built from."""
        yield from (passage.text for passage in self.passages)
        yield from (example.question for example in self.train)


def read(artifact: Artifact) -> Corpus:
    """The corpus of a checked artifact."""
    passages = [Passage(**row) for row in files.read_jsonl(artifact.path / "passages.jsonl")]
    train, dev, test = ([_example(row) for row in files.read_jsonl(artifact.path / f"{split}.jsonl")] for split in SPLITS)
    return Corpus(artifact, passages, train, dev, test)


def _example(row: dict[str, object]) -> Example:
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Example(**lists)  # type: ignore[arg-type]
