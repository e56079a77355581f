"""What is asked of the retriever: what its encoders see, and how passages are found."""

from __future__ import annotations

from dataclasses import dataclass, field

from medrag.lexical import UNITS


@dataclass
class Config:
    """What the encoders see; kept with their weights."""

    question_tokens: int = 256
    """longest question"""
    passage_tokens: int = 256
    """longest passage"""
    titles: bool = True
    """whether a passage's title is searched along with its text, where it has one"""


@dataclass
class Search:
    """How passages are found; kept with the index."""

    kind: str = "auto"
    """auto, flat, sq8, ivf, ivfpq, hnsw, or a Faiss factory string; always by inner product"""
    memory_gib: float = 4.0
    """memory that kind=auto may use for vectors"""
    probes: int = 0
    """lists that an IVF index looks into, or HNSW's efSearch; 0: chosen from kind and size"""
    refine: int = 0
    """candidates of an approximate index for each passage asked for, whose exact inner products are computed; 0: chosen by the kind"""
    shard_passages: int = 50_000
    """passages encoded and written at once; finished shards survive a kill"""
    encoding: str = "auto"
    """arithmetic of the passage encoder while indexing: fp32, bf16, fp16, int8 or auto"""
    candidates: int = 200
    """passages taken from each signal before their scores are added up"""
    lexical: list[str] = field(default_factory=lambda: list(UNITS))
    """what BM25 counts, a signal each: words (jieba, search mode), characters (and pairs of them); empty: no BM25"""
    questions: bool = False
    """whether a passage is also found through the training questions it answers"""
    synonyms: str = "corpora/synonyms.txt"
    """groups of words that mean the same, for questions in everyday words; empty: none"""


def check(search: Search) -> None:
    """Raise ValueError where a value is out of range."""
    if unknown := [name for name in search.lexical if name not in UNITS]:
        raise ValueError(f"index.lexical={unknown[0]!r}; allowed: {', '.join(UNITS)}")
    if len(set(search.lexical)) != len(search.lexical):
        raise ValueError(f"index.lexical={search.lexical}; each signal may be named once")
    for name in ("candidates", "shard_passages"):
        if getattr(search, name) < 1:
            raise ValueError(f"index.{name}={getattr(search, name)}; it must be 1 or more")
    for name in ("probes", "refine"):
        if getattr(search, name) < 0:
            raise ValueError(f"index.{name}={getattr(search, name)}; it must be 0 (chosen) or more")
    if search.memory_gib <= 0:
        raise ValueError(f"index.memory_gib={search.memory_gib}; it must be above 0")
