"""Search by inner product over rows.

Faiss and the scans only propose rows. Every score that leaves this file is the inner product with the row of ``Vectors``, computed by one
routine (``np.vecdot``) whose result for a pair does not depend on the pairs beside it: each kind, on each device, gives a row the same score.

Shapes: N vectors, B questions, K neighbours, C candidates, D width.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from medrag.index import approximate
from medrag.index.kinds import automatic, recipe, usual_probes
from medrag.index.scan import BLOCK_ROWS, Scan, TorchScan, merge
from medrag.index.vectors import Vectors, check_finite

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

BLOCK_BYTES = 1 << 28
"""of vectors gathered at once for exact scores, and of a block of them that is added"""
GPU_NEIGHBOURS = 2048
"""that faiss-gpu finds at most"""
ROUNDS = 3
"""searches, each four times as wide as the one before, until enough candidates are not skipped; then what is left is scanned exactly"""


def choose(kind: str, count: int, width: int, memory_gib: float) -> str:
    """The kind itself, or what ``auto`` stands for (``kinds.automatic``). Raises ValueError where Faiss has no such index, or too few vectors."""
    resolved = automatic(count, width, memory_gib) if kind == "auto" else kind
    if resolved != "flat":
        approximate.empty(resolved, recipe(resolved, count, width), width)
    return resolved


class Index:
    """The rows with the largest inner products; rows are numbered as they were added."""

    ABOUT = "search.json"
    FILE = "search.faiss"

    def __init__(self, width: int) -> None:
        """Empty, in memory, exact."""
        self._start(Vectors([np.zeros((0, width), np.float32)]), "flat", "", 0, 0)

    @classmethod
    def build(cls, vectors: Vectors, kind: str, memory_gib: float, probes: int = 0, refine: int = 0, progress: bool = False) -> Index:
        """Train and fill a kind (see ``choose``) block by block; ``progress`` shows rows and the time left on stderr.

        ``probes``: IVF lists looked into, or HNSW's efSearch; 0: see ``kinds.usual_probes``. ``refine``: candidates for each neighbour asked for;
        0: 20 where codes are PQ, otherwise 2. The same vectors and settings give the same bytes, but for ``hnsw``, whose threads insert in no fixed
        order (OMP_NUM_THREADS=1 fixes it). Raises ValueError on a bad setting and on vectors that are not finite.
        """
        index = cls.__new__(cls)
        kind = choose(kind, len(vectors), vectors.width, memory_gib)
        index._start(vectors, kind, recipe(kind, len(vectors), vectors.width), probes, refine)
        if index.factory:
            index._faiss = index._near = approximate.trained(index.kind, index.factory, vectors)
        with tqdm(total=len(vectors), desc=f"index {kind}", unit=" rows", disable=not progress) as bar:
            for _, x_ND in vectors.blocks(max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * vectors.width)))):
                check_finite(x_ND)
                if index._faiss is not None:
                    index._faiss.add(x_ND)
                bar.update(len(x_ND))
        return index

    def _start(self, vectors: Vectors, kind: str, string: str, probes: int, refine: int) -> None:
        if probes < 0:
            raise ValueError(f"index.probes={probes}: 1 or more, or 0: chosen from the kind")
        if refine < 0:
            raise ValueError(f"index.refine={refine}: 1 or more, or 0: chosen from the kind")
        self.kind, self.factory, self.probes, self.refine = kind, string, probes, refine
        self._vectors = vectors
        self._scan: Scan | TorchScan = Scan(vectors)
        self._faiss: faiss.Index | None = None
        self._near: faiss.Index | None = None  # what proposes rows: the same, its copy on a GPU, or nothing: the scan does
        self._viewed: Path | None = None  # the file that the Faiss index is a view of

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def width(self) -> int:
        return self._vectors.width

    def add(self, x_ND: Floats) -> None:
        """Append vectors, also to ``Vectors``. Raises ValueError on another width or a component that is not finite."""
        if x_ND.ndim != 2 or x_ND.shape[1] != self.width:
            raise ValueError(f"the index holds vectors of width {self.width}, not of shape {x_ND.shape}")
        check_finite(x_ND)
        x_ND = np.ascontiguousarray(x_ND, dtype=np.float32)
        self._own()
        for index in (self._faiss, self._near if self._near is not self._faiss else None):
            if index is not None:
                index.add(x_ND)
        self._vectors.append(x_ND)

    def search(self, q_BD: Floats, k: int, skip: Sequence[int] | Rows = ()) -> tuple[Floats, Rows]:
        """``(score_BK, row_BK)``: exact inner products, best first, equal ones in the order of rows; K = min(k, rows that are not skipped).

        An exact kind returns what it would without the rows of ``skip``. Another proposes k * refine rows, more by the share of skipped ones, and
        where too few of them may be shown looks wider, at last exactly: it needs no selector, which not every Faiss index obeys, costs nothing where
        nothing is skipped, and never returns fewer than K rows. Raises ValueError on another width, on what is not finite and on rows not held.
        """
        if q_BD.ndim != 2 or q_BD.shape[1] != self.width:
            raise ValueError(f"the index holds vectors of width {self.width}, not of shape {q_BD.shape}")
        check_finite(q_BD)
        q_BD = np.ascontiguousarray(q_BD, dtype=np.float32)
        hidden = np.unique(np.asarray(skip, dtype=np.int64))
        if len(hidden) and not 0 <= hidden[0] <= hidden[-1] < len(self):
            raise ValueError(f"rows 0 to {len(self) - 1} can be skipped, not {hidden[0]} to {hidden[-1]}")
        k = max(0, min(k, len(self) - len(hidden)))
        score_BK, row_BK = np.zeros((len(q_BD), k), np.float32), np.zeros((len(q_BD), k), np.int64)
        near = self._near
        want = _wanted(k) if near is None else k * self._refine()
        at_once = max(1, BLOCK_BYTES // (4 * self.width * max(1, want)))
        for start in range(0, len(q_BD) if k else 0, at_once):
            some = slice(start, start + at_once)
            found = self._exact(q_BD[some], k, hidden) if near is None else self._approximate(near, q_BD[some], k, hidden)
            score_BK[some], row_BK[some] = found
        return score_BK, row_BK

    def _exact(self, q_BD: Floats, k: int, hidden: Rows) -> tuple[Floats, Rows]:
        left = len(self) - len(hidden)
        guess_BC, row_BC = self._scan.propose(q_BD, min(left, _wanted(k)), hidden)
        x_BCD = self._vectors.take(row_BC.ravel()).reshape(*row_BC.shape, self.width)
        score_BC = np.vecdot(q_BD[:, None], x_BCD)
        score_BK, kept_BK = _best(score_BC, row_BC, k)
        if row_BC.shape[1] < left:
            # A row that was not proposed may belong here where the last proposed is not clearly worse: by more than the scan rounds (gamma_D |q| |x|,
            # and what it was seen to).
            length_B = np.sqrt(np.vecdot(q_BD, q_BD) * np.vecdot(x_BCD, x_BCD).max(axis=1))
            slack_B = self.width * np.finfo(np.float32).eps * length_B + 4 * np.abs(score_BC - guess_BC).max(axis=1)
            for at in np.flatnonzero(score_BK[:, -1] <= guess_BC[:, -1] + slack_B):
                score_BK[at], kept_BK[at] = self._every(q_BD[at], k, hidden)
        return score_BK, kept_BK

    def _every(self, q_D: Floats, k: int, hidden: Rows) -> tuple[Floats, Rows]:
        """One question against every row in turn, for where so many rows are equal that a list of the nearest does not hold them all."""
        score_1K, row_1K = np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int64)
        for start, x_ND in self._vectors.blocks(BLOCK_ROWS):
            score_N = np.vecdot(q_D, x_ND)
            score_N[hidden[np.searchsorted(hidden, start) : np.searchsorted(hidden, start + len(x_ND))] - start] = -np.inf
            score_1K, row_1K = merge(score_1K, row_1K, score_N[None], np.arange(start, start + len(x_ND))[None], k)
        return score_1K[0], row_1K[0]

    def _approximate(self, near: faiss.Index, q_BD: Floats, k: int, hidden: Rows) -> tuple[Floats, Rows]:
        left = len(self) - len(hidden)
        if 4 * left < len(self):  # proposals would be of hidden rows mostly, and the scan passes those over
            return self._exact(q_BD, k, hidden)
        most = len(self) if near is self._faiss else min(len(self), GPU_NEIGHBOURS)
        want = min(left, k * self._refine(), most)
        count = math.ceil(want * len(self) / left)
        lists = approximate.lists(near)
        probes = max(self.probes or usual_probes(lists, len(self)), math.ceil(2 * count * lists / len(self)) if lists else count)
        score_BK, row_BK = np.zeros((len(q_BD), k), np.float32), np.zeros((len(q_BD), k), np.int64)
        todo = np.arange(len(q_BD))
        for turn in range(ROUNDS):
            enough = k if turn == ROUNDS - 1 else max(k, want // 2)
            found_BC = near.search(q_BD[todo], min(count, most), params=approximate.parameters(near, probes))[1]
            found_BC[np.isin(found_BC, hidden)] = -1
            done = (found_BC >= 0).sum(axis=1) >= enough
            shown_BC = np.argsort(found_BC[done] < 0, axis=1, kind="stable")[:, :want]
            at, row_BC = todo[done], np.take_along_axis(found_BC[done], shown_BC, axis=1)
            x_BCD = self._vectors.take(np.maximum(row_BC, 0).ravel()).reshape(*row_BC.shape, self.width)
            score_BC = np.where(row_BC >= 0, np.vecdot(q_BD[at][:, None], x_BCD), -np.inf).astype(np.float32)
            score_BK[at], row_BK[at] = _best(score_BC, row_BC, k)
            todo, count, probes = todo[~done], 4 * count, 4 * probes
            if not len(todo):
                return score_BK, row_BK
        score_BK[todo], row_BK[todo] = self._exact(q_BD[todo], k, hidden)
        return score_BK, row_BK

    def _refine(self) -> int:
        return self.refine or (20 if "PQ" in self.factory else 2)

    def vectors(self, rows: Sequence[int] | Rows) -> Floats:
        """The vectors (N, D) of these rows."""
        return self._vectors.take(rows)

    def probe(self, q_BD: Floats, k: int) -> float:
        """Recall@k against exact search, 0 to 1."""
        exact = Index(self.width)
        exact._start(self._vectors, "flat", "", 0, 0)
        pairs = zip(self.search(q_BD, k)[1], exact.search(q_BD, k)[1], strict=True)
        return float(np.mean([np.isin(want_K, row_K).mean() for row_K, want_K in pairs]))

    def to(self, device: torch.device) -> Index:
        """Search on this device from now on; returns itself. Adding and saving stay as they are, and so do scores.

        On cuda an IVF goes to faiss-gpu where that is installed and the chip is one it was built for (compute capability 7.0 or more). Everything
        else is searched exactly with torch there (``TorchScan``): the same rows as ``flat``, and on Pascal the only right ones.
        """
        self._scan, self._near = Scan(self._vectors), self._faiss
        if device.type == "cpu":
            return self
        served = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0 and torch.cuda.get_device_capability(device) >= (7, 0)
        if served and self._faiss is not None and approximate.lists(self._faiss):
            self._own()
            self._near = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, self._faiss)
        else:
            self._scan, self._near = TorchScan(self._vectors, device), None
        return self

    def _own(self) -> None:
        """Read a viewed file into memory: Faiss ends the process on an addition to a view."""
        if self._viewed is not None:
            viewed, self._faiss, self._viewed = self._faiss, faiss.read_index(str(self._viewed)), None
            self._near = self._faiss if self._near is viewed else self._near

    def save(self, folder: Path) -> None:
        """``search.json`` and, for a kind that has one, the Faiss file; the vectors are kept by whoever owns the shards."""
        about = {"kind": self.kind, "factory": self.factory, "probes": self.probes, "refine": self.refine, "rows": len(self), "width": self.width}
        (folder / self.ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if self._viewed is not None:
            shutil.copyfile(self._viewed, folder / self.FILE)
        elif self._faiss is not None:
            faiss.write_index(self._faiss, str(folder / self.FILE))

    @classmethod
    def load(cls, folder: Path, vectors: Vectors) -> Index:
        """Memory-map a saved index whose hash has been checked: Faiss itself does not notice a damaged file.

        Raises ValueError, naming the file, where it is not what ``search.json`` says, or not of these vectors.
        """
        path = folder / cls.ABOUT
        index = cls.__new__(cls)
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            index._start(vectors, str(about["kind"]), str(about["factory"]), int(about["probes"]), int(about["refine"]))
            size = (int(about["rows"]), int(about["width"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the description of an index: {type(error).__name__} {error}") from error
        if size != (len(vectors), vectors.width):
            raise ValueError(f"{path}: an index of {size[0]} vectors of width {size[1]}, but there are {len(vectors)} of width {vectors.width}")
        if not index.factory:
            return index
        path = folder / cls.FILE
        made = approximate.read(path, size)
        index._faiss, index._near, index._viewed = made, made, path
        return index


def _wanted(k: int) -> int:
    """Rows that a scan proposes: enough that the last is clearly worse than the k-th."""
    return k + k // 8 + 16


def _best(score_BC: Floats, row_BC: Rows, k: int) -> tuple[Floats, Rows]:
    order_BK = np.lexsort((row_BC, -score_BC), axis=-1)[:, :k]
    return np.take_along_axis(score_BC, order_BK, axis=1), np.take_along_axis(row_BC, order_BK, axis=1)
