"""Is an index whole, and does it find what it holds? What hashes cannot show: a wrong encoder, a lookup gone astray, a search too coarse.

Shapes: N passages, B questions, D width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from medrag.encoding import Encoding
from medrag.files import Artifact
from medrag.index.vectors import Vectors
from medrag.memory import FOLDERS, Memory
from medrag.passages import SHARDS
from medrag.retriever import Retriever

QUESTIONS = 200
"""development questions that the search is tried on"""
SAMPLE = 64
"""passages encoded anew, evenly spread"""
LEAST_COSINE = 0.999
"""of a passage's vector now and then: batches of other texts, and narrow arithmetic, change the last bits"""
LEAST_RECALL = 0.9
"""of the ten best by exact search, the share that the index must find"""
BLOCK_ROWS = 65_536


def verify(index: Artifact, finder: Retriever, encoding: Encoding, questions: Sequence[str], progress: bool = True) -> Iterator[str]:
    """What is in order, one thing a line. Raises ValueError at the first thing that is not.

    ``finder`` has the index loaded (so that counts fit), and ``encoding`` is its passage encoder.
    """
    vectors, memory = Vectors.load(index.path / SHARDS), finder.memory
    assert memory is not None
    passages = memory.passages
    counts = {"passages": len(passages), "vectors": len(vectors), "vectors of the search index": len(memory.index)}
    counts |= {FOLDERS[name]: len(lexical) for name, lexical in memory.lexicals.items() if name != "question_characters"}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{index.path}: the parts hold different numbers of rows: {counts}")
    yield f"{', '.join(counts)}: {len(passages)} each"
    if len(memory.owners_M) and not 0 <= memory.owners_M.min() <= memory.owners_M.max() < len(passages):
        raise ValueError(f"{index.path / 'questions'}: a question belongs to a row that is not there")

    removed = set(memory.removed_R.tolist())
    _ids(index, memory, removed, progress)
    yield f"{len(passages) - len(removed)} ids, each of one passage and each found; {len(removed)} rows removed"
    for start, x_ND in vectors.blocks(BLOCK_ROWS):
        if not (finite := np.isfinite(x_ND).all(axis=1)).all():
            raise ValueError(f"{index.path / SHARDS}: the vector of row {start + int(np.argmin(finite))} is not finite")
    yield "every vector is finite"

    rows = np.unique(np.linspace(0, len(passages) - 1, SAMPLE).astype(np.int64))
    now = encoding([finder.searched(passages[row]) for row in rows.tolist()])
    then = vectors.take(rows)
    cosine = (now * then).sum(1) / np.maximum(np.linalg.norm(now, axis=1) * np.linalg.norm(then, axis=1), 1e-30)
    if cosine.min() < LEAST_COSINE:
        worst = passages[int(rows[cosine.argmin()])].id
        raise ValueError(
            f"{index.path}: passage {worst!r} encoded now is another vector than the one kept (cosine {cosine.min():.4f}; at least {LEAST_COSINE}): "
            "the encoder or the vectors are not those of this index"
        )
    yield f"{len(rows)} passages encoded anew: least cosine {cosine.min():.6f} (at least {LEAST_COSINE})"

    if questions:
        recall = memory.index.probe(finder.question_vectors(questions), 10)
        if recall < LEAST_RECALL:
            raise ValueError(
                f"{index.path}: finds {recall:.3f} of the ten best passages that exact search finds (at least {LEAST_RECALL}): "
                "build it with larger index.probes or index.refine, or another index.kind"
            )
        asked = f"{len(questions)} questions"
        yield f"recall@10 of the search ({memory.index.kind}) against exact search on {asked}: {recall:.3f} (at least {LEAST_RECALL})"


def _ids(index: Artifact, memory: Memory, removed: set[int], progress: bool) -> None:
    """Every live row is found by its id, so no two have one; and nothing else is found."""
    for row, passage in enumerate(tqdm(memory.passages, desc="ids", unit=" passages", disable=not progress, file=sys.stderr)):
        found = memory.row.get(passage.id)
        if row not in removed and found != row:
            raise ValueError(f"{index.path}: the id {passage.id!r} of row {row} leads to row {found}")
    if len(memory.row) != len(memory.passages) - len(removed):
        raise ValueError(f"{index.path}: {len(memory.row)} ids for {len(memory.passages) - len(removed)} passages that are not removed")
