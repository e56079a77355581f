"""The classifier of emergencies: fitted, held to writers it has not seen, its weights written.

    python tests/benchmarks/emergencies.py [--data ../shared/data] [--write]

Learned from: ``corpora/emergencies.jsonl``, the sets of ``tests/emergencies.jsonl`` that are named in ``TRAINED``, and as harmless the questions of
``corpora/`` and of public collections under ``--data``, without those that rules or a first fit take for emergencies (nobody has labelled these).
Naive Bayes says how much each feature tells; a logistic regression over features so scaled does the rest (Wang and Manning, 2012), with a convolution
(``emergency_network.py``) beside it. The same weights come out again on the same machine; some minutes on one core.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emergency_network
import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.optimize import minimize

from medrag.safety import TRUSTED, classifier, emergency, rules

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "medrag" / "safety" / "weights.npz"
TRAINED = ("development", "held_out", "second", "third", "fourth", "writer_a", "writer_b", "writer_c", "writer_e")
"""splits of ``tests/emergencies.jsonl`` that the classifier learns from; whatever else stands there measures it"""
HELD_OUT = {
    "writer_a": ("after_ab", "after_abce"),
    "writer_b": ("after_ab", "after_abce"),
    "writer_c": ("after_c", "after_abce"),
    "writer_e": ("after_abce",),
    "earlier": ("after_ab", "after_c", "after_abce"),
}
"""writers that are held out one by one, each with what was written after a look at what it got wrong"""
STAGES = (("emergency-4603", "after_abce"), ("emergency-3784", "after_c"), ("emergency-0000", "after_ab"))
"""first id in the corpus of what was written after a look at some writers, latest first"""
PUBLIC, SEED = 4000, 0
"""public questions learned from as harmless, drawn at random; the rest of them measures how often they alarm"""
SCALE, RIDGE, SMOOTH, UNLABELLED = 6.0, 0.3, 0.5, 0.1
"""of features; of squared weights; counts added to each feature; weight of a question that nobody labelled"""
UNLABELLED_READ = 6000
"""of the unlabelled questions, those that the convolution learns from"""
DOUBTFUL = -1.5
"""log odds from which the first fit takes an unlabelled question out"""
THRESHOLD = -0.5
"""sum of both models' log odds from which it is an emergency: missing one is worse than alarming for nothing"""


@dataclass(frozen=True, slots=True)
class Row:
    """A question with what it is looked at for."""

    question: str
    emergency: str
    writer: str
    text: str
    features: frozenset[str]


def read(question: str, kind: str, writer: str) -> Row:
    asked = rules.read(question)
    classed = classifier.classed(asked)
    return Row(question, kind, writer, classed, frozenset(classifier.features(classed, rules.matching(asked))))


def labelled() -> list[Row]:
    """Every labelled question. What of the corpus is not ``blind`` is named after the writers looked at before; ``earlier`` is yet another hand."""
    rows = [
        read(row["question"], row["emergency"], "blind" if row["blind"] else stage(row["id"]))
        for row in lines(ROOT / "corpora" / "emergencies.jsonl")
    ]
    for row in lines(ROOT / "tests" / "emergencies.jsonl"):
        writer = "unseen" if row["split"] not in TRAINED else row["split"] if row["split"].startswith("writer") else "earlier"
        rows.append(read(row["question"], row["emergency"], writer))
    return rows


def stage(name: str) -> str:
    """After a look at which writers a question of the corpus was written, by its id."""
    return next(stage for first, stage in STAGES if name >= first)


def lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def corpora() -> list[str]:
    return [
        row["question"] for name in ("consultation", "maternal", "questions", "unanswerable") for row in lines(ROOT / "corpora" / f"{name}.jsonl")
    ]


def public(data: Path) -> list[str]:
    """Questions of the public collections, each once, in an order drawn by ``SEED``."""
    found = [row["questions"] for row in lines(data / "caregpt" / "test_datasets.jsonl")]
    found += [row["instruction"] for row in lines(data / "huatuo_llama" / "llama_data.json")]
    found += [str(row["conversations"][0]["value"]) for row in lines(data / "medicalgpt" / "medical_sft_1K_format.jsonl")]
    table = io.StringIO((data / "toyhom" / "internal_medicine_sample.csv").read_text("gb18030", "replace"))
    found += [row[name] or "" for row in csv.DictReader(table) for name in ("title", "ask")]
    kept = [question for question in dict.fromkeys(found) if 4 <= len(question) <= 400]
    return [kept[place] for place in np.random.default_rng(SEED).permutation(len(kept))]


def matrix(rows: Sequence[frozenset[str]], row: dict[str, int]) -> sparse.csr_matrix:
    columns = [sorted(row[name] for name in found if name in row) for found in rows]
    ends = np.cumsum([0, *map(len, columns)])
    values = np.repeat([1 / max(len(found), 1) ** 0.5 for found in rows], np.diff(ends))
    return sparse.csr_matrix((values, np.concatenate([*map(np.array, columns), []]).astype(np.int64), ends), (len(rows), len(row)))


def scales(X: sparse.csr_matrix, told: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much a feature tells by itself: its absolute log ratio between both classes."""
    there = X.sign()
    yes, no = (np.asarray(there.T @ (weights * chosen)) + SMOOTH for chosen in (told, ~told))
    return np.asarray(SCALE * (np.abs(np.log(yes / yes.sum()) - np.log(no / no.sum())) + 0.1))


def logistic(X: sparse.csr_matrix, told: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights and, last, the bias that minimise the summed log loss plus ``RIDGE / 2`` times the squared weights."""
    signs = np.where(told, 1.0, -1.0)

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (X @ at[:-1] + at[-1])
        pull = -weights * signs / (1 + np.exp(margins))
        value = (weights * np.logaddexp(0, -margins)).sum() + RIDGE / 2 * (at[:-1] ** 2).sum()
        return float(value), np.append(X.T @ pull + RIDGE * at[:-1], pull.sum())

    return np.asarray(minimize(loss, np.zeros(X.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x)


def naming(X: sparse.csr_matrix, kind: NDArray[np.int64], kinds: int) -> NDArray[np.float64]:
    """(features + 1, kinds): a softmax regression over the emergencies."""
    wide = sparse.hstack([X * SCALE, np.ones((X.shape[0], 1))]).tocsr()
    right = np.eye(kinds)[kind]

    def loss(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        W = at.reshape(-1, kinds)
        logits = wide @ W
        logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return float(-(logp * right).sum() + RIDGE / 2 * (W**2).sum()), (wide.T @ (np.exp(logp) - right) + RIDGE * W).ravel()

    W = minimize(loss, np.zeros(wide.shape[1] * kinds), jac=True, method="L-BFGS-B", options={"maxiter": 60}).x.reshape(-1, kinds)
    W[:-1] *= SCALE
    return np.asarray(W)


def fit(rows: Sequence[Row], unlabelled: Sequence[Row], texts: Sequence[str]) -> classifier.Models:
    """Both linear models and the convolution; of ``texts`` only the use of characters is learned."""
    counts = collections.Counter(name for row in rows for name in row.features)
    index = {name: at for at, name in enumerate(sorted(name for name, count in counts.items() if count > 1))}
    kept = [row for row in unlabelled if "rule" not in row.features]
    for last in (False, True):
        X = matrix([row.features for row in (*rows, *kept)], index)
        told = np.array([bool(row.emergency) for row in rows] + [False] * len(kept))
        weights = np.array([1.0] * len(rows) + [UNLABELLED] * len(kept))
        scale = scales(X, told, weights)
        found = logistic((X @ sparse.diags(scale)).tocsr(), told, weights)
        alarm, bias = found[:-1] * scale, float(found[-1])
        if not last:
            kept = [row for row, score in zip(kept, (X @ alarm + bias)[len(rows) :], strict=True) if score < DOUBTFUL]
    urgent = [row for row in rows if row.emergency]
    kinds = tuple(kind for kind in rules.advice() if any(row.emergency == kind for row in urgent))
    W = naming(matrix([row.features for row in urgent], index), np.array([kinds.index(row.emergency) for row in urgent]), len(kinds))
    read_too = [*rows, *kept[:UNLABELLED_READ]]
    network = emergency_network.train([row.text for row in read_too], told[: len(read_too)].tolist(), weights[: len(read_too)].tolist(), texts)
    by_feature = dict(zip(index, alarm.tolist(), strict=True))
    return classifier.Models(index, by_feature, bias, THRESHOLD, kinds, W[:-1].astype(np.float32), W[-1].astype(np.float32), network)


def alarms(score: float, row: Row) -> bool:
    """As ``emergency`` decides."""
    return score > 0 or ("rule" in row.features and score > TRUSTED)


def shown(name: str, models: classifier.Models, rows: Sequence[Row], verbose: bool) -> None:
    """One line on how a set is judged by these models, and with ``verbose`` what is judged wrong."""
    scores = np.array([models.score(row.text, set(row.features)) for row in rows])
    told = np.array([bool(row.emergency) for row in rows])
    together = np.array([alarms(score, row) for score, row in zip(scores, rows, strict=True)])
    by_rule = np.array(["rule" in row.features for row in rows])
    if not told.any():
        print(f"{name}: alarms {together.mean():.2%} of {len(rows)}, rules alone {by_rule.mean():.2%}")
        return
    right = np.mean([models.name(set(row.features))[0] == row.emergency for row, at in zip(rows, together & told, strict=True) if at])
    figures = "; ".join(
        f"{what} {flags[told].mean():.1%} found, {flags[~told].mean():.1%} false"
        for what, flags in (("together", together), ("rules alone", by_rule))
    )
    print(f"{name}, {told.sum()} emergencies and {(~told).sum()} others: {figures}; kind {right:.1%}", flush=True)
    if verbose:
        for row, score, alarm in sorted(zip(rows, scores, together, strict=True), key=lambda triple: float(triple[1])):
            if alarm != bool(row.emergency):
                print(f"    {score:+.2f} {row.emergency or 'harmless'} {row.question}")


def main(arguments: Sequence[str]) -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    asked.add_argument("--write", action="store_true")
    asked.add_argument("--fast", action="store_true", help="fit on all at once, without the writers held out one by one")
    asked.add_argument("--verbose", action="store_true")
    said = asked.parse_args(arguments)
    everybody = labelled()
    learned = [row for row in everybody if row.writer != "unseen"]
    questions = public(said.data)
    unlabelled = [read(question, "", "nobody") for question in (*questions[:PUBLIC], *corpora())]
    texts = [classifier.classed(rules.read(question)) for question in questions]
    rest = [read(question, "", "nobody") for question in questions[PUBLIC : PUBLIC + 4000]]
    for writer, seen in () if said.fast else HELD_OUT.items():
        models = fit([row for row in learned if row.writer not in (writer, *seen)], unlabelled, texts)
        shown(f"{writer}, not learned from, nor what was written after it", models, [row for row in learned if row.writer == writer], said.verbose)
        shown("  public questions not learned from", models, rest, False)
    fitted = fit(learned, unlabelled, texts)
    for writer in sorted({row.writer for row in everybody}):
        shown(f"{writer}, all learned from", fitted, [row for row in everybody if row.writer == writer], said.verbose)
    shown("public questions not learned from", fitted, rest, False)
    if said.write:
        classifier.write(fitted, unfinished := WEIGHTS.with_name("unfinished.npz"))
        os.replace(unfinished, WEIGHTS)
        print(f"{WEIGHTS}: {len(fitted.row)} features, {len(fitted.network.row)} characters, {WEIGHTS.stat().st_size / 1e3:.0f} kB")
    if WEIGHTS.exists():
        classifier.models.cache_clear()
        for name, rows in (("emergencies", [row for row in everybody if row.emergency]), ("public questions", rest)):
            emergency("热身")
            start = time.process_time()
            for row in rows:
                emergency(row.question)
            print(f"{name}: {(time.process_time() - start) / len(rows) * 1e6:.0f} microseconds a question")


if __name__ == "__main__":
    main(sys.argv[1:])
