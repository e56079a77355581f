"""Passages on disk: JSON lines that are mapped into memory, not read, and a lookup of rows by id or by what a passage says.

Millions of passages then cost the memory of those that are looked at. Rows are numbered over all shards, in the order of their numbers.

Shapes: N passages, S shards.
"""

from __future__ import annotations

import json
import mmap
import operator
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import SupportsIndex, TypeAlias, overload

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from medrag import text
from medrag.types import Passage

SHARDS = "shards"
"""the folder of the shards within an index"""
Rows64: TypeAlias = npt.NDArray[np.int64]


def said(passage: Passage) -> str:
    """What two passages share that say the same; the title belongs to it, for the same words under another title speak of something else."""
    return text.key(passage.title + passage.text)


_FIELDS = tuple(field.name for field in fields(Passage))
_KEYS: dict[str, Callable[[Passage], str]] = {"ids": operator.attrgetter("id"), "texts": said}
"""by the names of their files, what passages are looked up by"""


def write_shard(folder: Path, number: int, passages: Sequence[Passage]) -> None:
    """Write one shard into ``folder``: ``00012.jsonl`` and ``00012.offsets.npy``, int64 (N + 1), the byte where each line begins.

    Raises ValueError where there are no passages.
    """
    if not passages:
        raise ValueError("there are no passages to write")
    offsets = [0]
    with open(folder / f"{number:05d}.jsonl", "wb") as stream:
        for passage in passages:
            row = {name: getattr(passage, name) for name in _FIELDS}
            stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
            offsets.append(stream.tell())
    np.save(folder / f"{number:05d}.offsets.npy", np.array(offsets, np.int64), allow_pickle=False)


class Passages(Sequence[Passage]):
    """The passages of ``folder/shards``. Raises ValueError where a shard's lines are not those that its offsets count."""

    def __init__(self, folder: Path) -> None:
        self.numbers: list[int] = []
        """of the shards, in order"""
        self._lines: list[mmap.mmap] = []
        self._offsets: list[Rows64] = []
        for path in sorted((folder / SHARDS).glob("*.jsonl")):
            offsets: Rows64 = np.load(path.with_suffix(".offsets.npy"), mmap_mode="r", allow_pickle=False).view(np.ndarray)
            with open(path, "rb") as stream:
                lines = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            if int(offsets[-1]) != len(lines):
                raise ValueError(f"{path}: {len(lines)} bytes, but its offsets count {int(offsets[-1])}")
            self.numbers.append(int(path.stem))
            self._lines.append(lines)
            self._offsets.append(offsets)
        self.first: Rows64 = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)], dtype=np.int64)
        """(S + 1,) the row that each shard begins with, and the number of rows"""

    def __len__(self) -> int:
        return int(self.first[-1])

    @overload
    def __getitem__(self, row: SupportsIndex) -> Passage: ...
    @overload
    def __getitem__(self, row: slice) -> list[Passage]: ...
    def __getitem__(self, row: SupportsIndex | slice) -> Passage | list[Passage]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        wanted = operator.index(row)
        wanted += len(self) if wanted < 0 else 0
        if not 0 <= wanted < len(self):
            raise IndexError(f"passage {row} of {len(self)}")
        shard = int(np.searchsorted(self.first, wanted, "right")) - 1
        place = wanted - int(self.first[shard])
        offsets = self._offsets[shard]
        return Passage(**json.loads(self._lines[shard][int(offsets[place]) : int(offsets[place + 1])]))

    def __iter__(self) -> Iterator[Passage]:
        for lines, offsets in zip(self._lines, self._offsets, strict=True):
            for start, end in pairwise(offsets.tolist()):
                yield Passage(**json.loads(lines[start:end]))


class Rows(Mapping[str, int]):
    """The row of a passage by its id, or with ``by="texts"`` by what ``said`` makes of it; rows that were removed are not in it.

    Sorted 63-bit hashes lead to the rows; the passage itself is looked at, since two keys may have one hash.
    """

    def __init__(self, folder: Path, passages: Sequence[Passage], by: str = "ids") -> None:
        self._passages, self._key = passages, _KEYS[by]
        self._hash_N, self._row_N = _load(folder, by)

    def __len__(self) -> int:
        return len(self._row_N)

    def __iter__(self) -> Iterator[str]:
        return (self._key(self._passages[row]) for row in np.sort(self._row_N).tolist())

    def __getitem__(self, key: str) -> int:
        wanted = np.int64(_hash(key))
        place = int(np.searchsorted(self._hash_N, wanted))
        while place < len(self._hash_N) and self._hash_N[place] == wanted:
            row = int(self._row_N[place])
            if self._key(self._passages[row]) == key:
                return row
            place += 1
        raise KeyError(key)


def write_ids(
    folder: Path,
    passages: Sequence[Passage],
    first_row: int = 0,
    before: Path | None = None,
    removed: Rows64 | Sequence[int] = (),
    progress: bool = False,
) -> None:
    """Write what ``Rows`` reads, by id and by text, of passages whose rows count from ``first_row``.

    ``before`` is the folder of an index whose passages are kept beside them, without those of the rows ``removed``. Raises ValueError where
    two of the passages have one id; that none of them has the id of one kept is for the caller to see.
    """
    hashes = {name: array("q") for name in _KEYS}
    for passage in tqdm(passages, desc="lookups", unit=" passages", disable=not progress, file=sys.stderr):
        for name, key in _KEYS.items():
            hashes[name].append(_hash(key(passage)))
    if doubled := _doubled(np.array(hashes["ids"], np.int64), passages):
        raise ValueError(f"{len(doubled)} passages have the id of another, as {doubled[0]!r}")
    for name in _KEYS:
        hash_N, row_N = np.array(hashes[name], np.int64), np.arange(first_row, first_row + len(passages), dtype=np.int64)
        if before is not None:
            old_hash, old_row = _load(before, name)
            kept = ~np.isin(old_row, np.asarray(removed, np.int64))
            hash_N, row_N = np.concatenate([old_hash[kept], hash_N]), np.concatenate([old_row[kept], row_N])
        order_N = np.lexsort((row_N, hash_N))
        np.save(folder / f"{name}.npy", hash_N[order_N], allow_pickle=False)
        np.save(folder / f"{name}.order.npy", row_N[order_N], allow_pickle=False)


def _doubled(hash_N: Rows64, passages: Sequence[Passage]) -> list[str]:
    """Ids that stand at a second passage, once for each such passage."""
    values, counts = np.unique(hash_N, return_counts=True)
    suspects = np.flatnonzero(np.isin(hash_N, values[counts > 1])).tolist()
    seen = set[str]()
    doubled = []
    for name in (passages[place].id for place in suspects):
        if name in seen:
            doubled.append(name)
        seen.add(name)
    return doubled


def _load(folder: Path, name: str) -> tuple[Rows64, Rows64]:
    """Sorted hashes, and their rows."""
    hash_N, row_N = (np.load(folder / f"{name}{part}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray) for part in ("", ".order"))
    if len(hash_N) != len(row_N):
        raise ValueError(f"{folder / name}.npy: {len(hash_N)} hashes for {len(row_N)} rows")
    return hash_N, row_N


def _hash(key: str) -> int:
    """63 bits, the same on every machine."""
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1
