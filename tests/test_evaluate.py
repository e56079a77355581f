"""Methods side by side: figures against loops, answers kept over a kill, and what the report's key holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import DENSE, ROOT, TINY
from conftest import Tiny
from sacrebleu.metrics.bleu import BLEU
from test_infer import Echo, Killed

from medrag import assemble, evaluate, files, grounding, responses
from medrag.__main__ import main
from medrag.assemble import contest, trained
from medrag.config import compose
from medrag.evaluate import Config, Contestant, answering, scoring, tables
from medrag.evaluate.answering import Told
from medrag.evaluate.trust import trust
from medrag.generator.decoding import Decoding
from medrag.methods import Method, Parts, closed_book, dense
from medrag.metrics import texts
from medrag.responses import Config as Answering
from medrag.types import Answer, Example, Hit, Passage

SETTINGS = Answering(refuse_below=0.5, batch_questions=4)
CONFIG = Config(methods=["dense", "closed_book"], resamples=60, samples=3)


@pytest.fixture(scope="module")
def test_questions(tiny: Tiny) -> list[Example]:
    """Eighteen that can be answered, from two departments and two sources, and three that cannot."""
    known = [replace(example, source="甲" if number % 3 else "乙") for number, example in enumerate(tiny.examples[3:21])]
    strange = [
        Example(f"u{number}", question, (), (), (), label)
        for number, (question, label) in enumerate([("明天下雨吗？", "off_topic"), ("股票怎么买？", "off_topic"), ("铱星过敏吗？", "maternal")])
    ]
    return known + strange


@pytest.fixture(scope="module")
def contestants(tiny: Tiny) -> dict[str, Callable[[], Method]]:
    def quoting() -> Method:
        return dense.build(dense.Config(passages=3), Parts(retriever=tiny.retriever(lexical=True), library=tiny.library)).eval()

    def writing() -> Method:
        made = closed_book.build(closed_book.Config(source_tokens=24, answer_tokens=12), Parts(generator=tiny.generator())).eval()
        made.decoding = Decoding(beams=1, answer_tokens=12)
        return made

    return {"dense": quoting, "closed_book": writing}


@pytest.fixture(scope="module")
def measured(
    tiny: Tiny, test_questions: list[Example], contestants: dict[str, Callable[[], Method]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[Told]]:
    made = [Contestant(name, load, name == "closed_book") for name, load in contestants.items()]
    work = tmp_path_factory.mktemp("work")
    return evaluate.evaluate(made, contestants["dense"], test_questions, tiny.segmenter, CONFIG, SETTINGS, 0, work)


def of(told: Sequence[Told], method: str, pool: str, count: int = 18) -> list[Told]:
    return [one for one in told if (one.method, one.pool) == (method, pool)][:count]


def test_every_method_answers_every_question_in_its_pools(measured: tuple[dict[str, Any], list[Told]], test_questions: list[Example]) -> None:
    result, told = measured
    assert [(row["method"], row["pool"]) for row in result["methods"]] == [("dense", "closed"), ("dense", "open"), ("closed_book", "none")]
    assert [one.question for one in told] == 3 * [example.id for example in test_questions]
    right = {name for example in test_questions for name in example.positives}
    assert not right & {name for one in of(told, "dense", "open") for name in one.passages}, "test answers are hidden in the open pool"
    assert right & {name for one in of(told, "dense", "closed") for name in one.passages}
    assert result["questions"] == {"answerable": 18, "unanswerable": 3, "asked": 18}
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("method", "pool", "place"), [("dense", "closed", 0), ("dense", "open", 1), ("closed_book", "none", 2)])
def test_figures_are_those_of_the_answers(
    measured: tuple[dict[str, Any], list[Told]], test_questions: list[Example], tiny: Tiny, method: str, pool: str, place: int
) -> None:
    result, told = measured
    row, answers, examples = result["methods"][place], of(told, method, pool), test_questions[:18]
    words = [tiny.segmenter.join(one.text).split() for one in answers]
    grounded = [grounding.ground(one.text, [tiny.library[name].text for name in one.passages]) for one in answers]
    rouges = [texts.rouge(found, [tiny.segmenter.join(example.answers[0]).split()]) for found, example in zip(words, examples, strict=True)]
    expected = {
        "character_f1": np.mean([texts.character_f1(one.text, example.answers) for one, example in zip(answers, examples, strict=True)]),
        "rouge_1": np.mean([rouge.one for rouge in rouges]),
        "rouge_2": np.mean([rouge.two for rouge in rouges]),
        "rouge_l": np.mean([rouge.longest for rouge in rouges]),
        "characters": np.mean([len(one.text) for one in answers]),
        "supported": np.mean([one.supported for one in grounded]),
        "copied": np.mean([one.copied for one in grounded]),
        "withheld": np.mean([any(sentence.withheld for sentence in one.sentences) for one in grounded]),
        "empty": np.mean([not one.text.strip() for one in answers]),
        "distinct_1": texts.distinct(words, 1).mean,
        "distinct_2": texts.distinct(words, 2).mean,
    }
    for order in (1, 2, 3, 4):
        metric = BLEU(tokenize="zh", max_ngram_order=order)
        expected[f"bleu_{order}"] = metric.corpus_score([one.text for one in answers], [[example.answers[0] for example in examples]]).score
    assert set(row["scores"]) == set(expected)
    for name, value in expected.items():
        scored = row["scores"][name]
        assert scored["mean"] == pytest.approx(value), name
        assert scored["low"] - 1e-9 <= scored["high"] and scored["count"] == 18
    if method == "dense":
        assert expected["copied"] == expected["supported"] == 1, "what is quoted is copied and supported"


def test_the_paired_bootstrap_is_a_loop_over_draws(measured: tuple[dict[str, Any], list[Told]], test_questions: list[Example]) -> None:
    """Koehn's: the same questions drawn for both, every figure computed anew from the texts drawn."""
    result, told = measured
    examples = test_questions[:18]
    ours = of(told, "closed_book", "none")
    assert [(row["of"], row["less"], row["pool"]) for row in result["differences"]] == [
        ("closed_book", "dense", "closed"),
        ("closed_book", "dense", "open"),
    ]
    for row in result["differences"]:
        theirs = of(told, "dense", row["pool"])

        def difference(places: Sequence[int], theirs: list[Told] = theirs) -> list[float]:
            wanted = [examples[place].answers for place in places]
            found = []
            for some in (ours, theirs):
                said = [some[place].text for place in places]
                f1 = float(np.mean([texts.character_f1(text, references) for text, references in zip(said, wanted, strict=True)]))
                found.append((f1, BLEU(tokenize="zh").corpus_score(said, [[references[0] for references in wanted]]).score))
            return [one - other for one, other in zip(*found, strict=True)]

        generator = np.random.default_rng(0)
        drawn = np.array([difference(generator.integers(18, size=18).tolist()) for _ in range(CONFIG.resamples)])
        for column, name in enumerate(("character_f1", "bleu_4")):
            scored = row["scores"][name]
            assert scored["mean"] == pytest.approx(difference(range(18))[column])
            assert (scored["low"], scored["high"]) == pytest.approx(np.percentile(drawn[:, column], (2.5, 97.5)))
            fewer = min((drawn[:, column] <= 0).sum(), (drawn[:, column] >= 0).sum())
            assert scored["p"] == pytest.approx(min(1, 2 * (fewer + 1) / (CONFIG.resamples + 1)))


def test_any_method_may_be_the_one_that_others_are_compared_with() -> None:
    sheet = scoring.Sheet(np.ones((4, len(scoring.MEANS) + 10)), [["甲"]] * 4, "")
    sheets = {("dense", "closed"): sheet, ("dense", "open"): sheet, ("closed_book", "none"): sheet, ("fid", "closed"): sheet, ("fid", "open"): sheet}
    rows = evaluate._differences(sheets, "closed_book", 5, 0)
    assert [(row["of"], row["pool"]) for row in rows] == [("dense", "closed"), ("dense", "open"), ("fid", "closed"), ("fid", "open")]
    rows = evaluate._differences(sheets, "fid", 5, 0)
    assert [(row["of"], row["pool"]) for row in rows] == [("dense", "closed"), ("dense", "open"), ("closed_book", "closed"), ("closed_book", "open")]
    assert all(value["mean"] == 0 and value["p"] == 1 for row in rows for value in row["scores"].values())


def test_slices(measured: tuple[dict[str, Any], list[Told]], test_questions: list[Example]) -> None:
    result, told = measured
    answers = of(told, "closed_book", "none")
    by = result["methods"][2]["by"]
    assert {kind: {value: scores["bleu_4"]["count"] for value, scores in parts.items()} for kind, parts in by.items()} == {
        "label": {"consultation": 9, "maternal": 9},
        "source": {"甲": 12, "乙": 6},
    }
    some = [place for place in range(18) if test_questions[place].source == "乙"]
    f1 = np.mean([texts.character_f1(answers[place].text, test_questions[place].answers) for place in some])
    assert by["source"]["乙"]["character_f1"]["mean"] == pytest.approx(f1)


def told(confidence: float, text: str = "多喝水", logprob: float = 0.0, tokens: int = 1) -> Told:
    return Told("e", "fid", "open", text, confidence, logprob, tokens, (), (), 0.0, 0.1, 1)


def test_trust_by_hand() -> None:
    known, strange, other = (
        Example("e", "问", ("多喝水",), ("p",)),
        Example("u", "问", (), (), (), "off_topic"),
        Example("v", "问", (), (), (), "maternal"),
    )
    rows = [told(0.9, logprob=2 * np.log(0.5), tokens=2), told(0.8), told(0.8, text=" "), told(0.35), told(0.1), told(0.75)]
    examples = [known, known, known, known, strange, other]
    found = trust(rows, examples, [True, False, False, True, False, False], [1.0, 0.2, 0.0, 0.6, 0.0, 0.0], 0.35)
    assert (found["answered"], found["right"], found["right_of_answered"]) == pytest.approx((4 / 6, 2 / 6, 2 / 4))
    assert found["character_f1_of_answered"] == pytest.approx((1 + 0.2 + 0.6 + 0) / 4)
    assert found["refused_of_answerable"] == pytest.approx(1 / 4), "an empty answer is a refusal"
    assert found["refused_of_unanswerable"] == pytest.approx(1 / 2)
    assert found["refused_by_kind"] == {"off_topic": {"questions": 1, "refused": 1.0}, "unanswerable": {"questions": 1, "refused": 0.0}}
    # bins: 0.9 (right), 0.8 twice (wrong), 0.75 (wrong), 0.35 (right), 0.1 (wrong)
    assert found["after"]["error"] == pytest.approx((0.1 + 2 * 0.8 + 0.75 + 0.65 + 0.1) / 6)
    # 0.5 per token (right), and 1.0 five times, of which one is right
    assert found["before"]["error"] == pytest.approx((1 * 0.5 + 5 * (1 - 1 / 5)) / 6)
    # of right 0.9 and 0.35 against wrong 0.8, 0.8, 0.75, 0.1: 4 + 1 of 8 pairs
    assert found["auroc_right"] == pytest.approx(5 / 8)
    assert found["auroc_answerable"] == pytest.approx((2 + 2 + 2 + 1) / 8)
    by_threshold = {row["threshold"]: row for row in found["curve"]}
    assert list(by_threshold) == [0.0, 0.1, 0.35, 0.75, 0.8, 0.9]
    assert by_threshold[0.0]["answered"] == pytest.approx(5 / 6) and by_threshold[0.9] == {
        "threshold": 0.9, "answered": pytest.approx(1 / 6), "right": 1.0, "character_f1": 1.0,
    }  # fmt: skip
    assert by_threshold[0.75]["right"] == pytest.approx(1 / 3)
    nothing = trust(rows, examples, [False] * 6, [0.0] * 6, 1.0)
    assert nothing["right_of_answered"] is None and nothing["auroc_right"] is None and nothing["answered"] == 0


def test_what_may_not_be_shown_counts_as_refused() -> None:
    """As ``responses.respond`` has it."""
    plain, dose = grounding.Sentence("多喝水。", 0, 1.0), grounding.Sentence("每天三片。", None, 0.1, "dose")
    cases = [((plain,), ("p",)), ((plain, dose), ("p",)), ((dose,), ("p",)), ((plain, dose), ()), ((plain,), ()), ((), ())]
    rows = [replace(told(0.9, "".join(one.text for one in some)), sentences=some, passages=names) for some, names in cases]
    assert [one.silent for one in rows] == [False, False, True, True, False, True]
    found = trust(rows, [Example("e", "问", ("多喝水",), ("p",))] * 6, [False] * 6, [0.0] * 6, 0.5)
    assert found["answered"] == found["curve"][0]["answered"] == pytest.approx(3 / 6)
    for one in rows:
        library = {"p": Passage("p", "多喝水。", "s")}
        answer = Answer(one.text, tuple(Hit(library[name], 1.0) for name in one.passages), 0.0, 0.9)
        assert responses.respond("问", answer, SETTINGS, "fid", 0.5)["refused"] == one.silent, one.text


# -- resuming -----------------------------------------------------------------------------------------------------------------------


class Doser(Echo):
    """Answers with the question and a dose."""

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        super().answer(questions)
        return [Answer(f"答{question}。每天三片。", (Hit(Passage("p1", f"答{question}。", "s"), 2.0),), -1.5, 0.9, 3) for question in questions]


QUESTIONS = [Example(f"e{number}", "问" * (1 + number * 7 % 11) + str(number), ("答",), ("p",)) for number in range(30)]


def answered(method: Method, path: Path, batch_questions: int = 4) -> list[Told]:
    return answering.answers(method, "echo", "none", QUESTIONS, frozenset(), path, batch_questions)


def without_cost(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "peak_bytes")} for row in files.read_jsonl(path)]


@pytest.mark.parametrize("dies_after", [1, 6, 9, 16, 29])
@pytest.mark.parametrize("torn", [b"", b'{"question": "e', b'{"question": "\xe5'])
def test_killed_and_run_again_nothing_is_asked_twice(tmp_path: Path, dies_after: int, torn: bytes) -> None:
    whole = answered(Doser(), tmp_path / "whole.jsonl")
    assert [one.question for one in whole] == [example.id for example in QUESTIONS]
    assert all(one.text == f"答{example.question}。每天三片。" for one, example in zip(whole, QUESTIONS, strict=True))
    assert all(one.sentences[-1].withheld == "dose" and one.supported == 0.5 and one.seconds >= 0 and one.peak_bytes > 2**20 for one in whole)
    path = tmp_path / "part.jsonl"
    with pytest.raises(Killed):
        answered(Doser(dies_after), path)
    with open(path, "ab") as stream:
        stream.write(torn)
    second = Doser()
    assert [(one.question, one.text) for one in answered(second, path)] == [(one.question, one.text) for one in whole]
    assert without_cost(path) == without_cost(tmp_path / "whole.jsonl")
    assert len(second.asked) == 1 + 30 - (dies_after - 1) // 4 * 4
    third = Doser()
    assert answered(third, path) == answered(Doser(), path) and third.asked == []
    assert [answering.read(json.loads(json.dumps(asdict(one)))) for one in whole] == whole


def test_a_batch_that_was_written_in_part_is_answered_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    answered(Doser(), path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]))
    second = Doser()
    answered(second, path)
    assert len(second.asked) == 1 + 30 - 8 and path.read_bytes().count(b"\n") == 30


# -- the command --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an untrained dense and its index."""
    folder = tmp_path_factory.mktemp("evaluate")
    store = folder / "store"
    lines = (ROOT / "corpora" / "maternal.jsonl").read_text("utf-8").splitlines()[:60]
    (folder / "some.jsonl").write_text("\n".join(lines), "utf-8")
    assert main(["prepare", str(folder / "some.jsonl"), f"store={store}", "prepare.dev_share=0.1", "prepare.test_share=0.2"]) == 0
    run = compose([f"store={store}", *DENSE, *TINY])
    built = assemble.fresh(run, assemble.corpus(run))
    with files.publish(store, "dense", key="untrained", parents=built.parents, config={"model": {}}) as made:
        trained.save(built, made)
    assert main(["index", "build", f"store={store}"]) == 0
    return store


def test_stopped_and_called_again_the_command_goes_on(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", f"store={store}", "evaluate.resamples=20", "evaluate.samples=2", "answer.batch_questions=3", "answer.refuse_below=0.2"]
    calls = 0

    def dying(self: dense.Dense, questions: Sequence[str]) -> list[Answer]:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise KeyboardInterrupt
        return alive(self, questions)

    alive = dense.Dense.answer
    with monkeypatch.context() as patched:
        patched.setattr(dense.Dense, "answer", dying)
        assert main(command) == 130
    (work,) = (store / "report").glob(".work-*")
    kept = (work / "dense-open.jsonl").read_bytes()
    assert kept.count(b"\n") + (work / "dense-closed.jsonl").read_bytes().count(b"\n") == 3 * 4
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 150 and "T5 with RAG" in out and "25.86" in out and "tok:zh" in out
    report = files.current(store, "report")
    assert sorted(path.name for path in (store / "report").iterdir()) == ["CURRENT", report.path.name]
    rows = list(files.read_jsonl(report.path / "answers.jsonl"))
    result = json.loads((report.path / "evaluation.json").read_text("utf-8"))
    assert len(rows) == 2 * 9 and {row["pool"] for row in rows} == {"closed", "open"}
    assert result["methods"][0]["scores"]["characters"]["mean"] == pytest.approx(
        np.mean([len(row["text"]) for row in rows if row["pool"] == "closed"])
    )
    assert result["methods"][0]["trust"]["threshold"] == 0.2
    sample = result["samples"][0]["answers"][0]
    assert sample["evidence"][0]["text"] == sample["text"], "a quoted passage is its own evidence"


def test_only_what_determines_the_report_makes_another(store: Path) -> None:
    settings = [f"store={store}", "evaluate.questions=4"]

    def key(*changed: str) -> str:
        return contest.entered(compose([*settings, *changed])).key

    first = key()
    for same in ("evaluate.baseline=dense", "answer.batch_questions=2", "answer.decoding.beams=2", "answer.evidence=1", "hardware.threads=1"):
        assert key(same) == first, same
    for other in ("evaluate.questions=5", "evaluate.samples=2", "evaluate.resamples=7", "answer.refuse_below=0.7", "seed=3"):
        assert key(other) != first, other


def test_how_texts_are_written_is_part_of_the_report_of_what_writes(store: Path, tmp_path: Path) -> None:
    """As are the weights; and a method of another corpus is refused."""
    copied = tmp_path / "store"
    shutil.copytree(store, copied)
    run = compose([f"store={copied}", "task=closed_book", *TINY])
    built = assemble.fresh(run, assemble.corpus(run))

    def published(key: str) -> None:
        with files.publish(copied, "closed_book", key=key, parents=built.parents, config={"model": {}}) as made:
            trained.save(built, made)

    def key(*changed: str) -> str:
        return contest.entered(compose([f"store={copied}", "evaluate.methods=[dense,closed_book]", *changed])).key

    published("one")
    first = key()
    assert key() == key("evaluate.baseline=dense") == first
    assert len({first, key("answer.decoding.beams=2"), key("answer.decoding.seed=1"), key("evaluate.baseline=closed_book")}) == 4
    assert key("answer.precision=bf16") != first
    published("two")
    assert key() != first
    lines = (ROOT / "corpora" / "maternal.jsonl").read_text("utf-8").splitlines()[:20]
    (tmp_path / "more.jsonl").write_text("\n".join(lines), "utf-8")
    assert main(["prepare", str(tmp_path / "more.jsonl"), f"store={copied}", "prepare.negatives=0"]) == 0
    with pytest.raises(ValueError, match=r"made from another corpus than .*medrag train task=dense"):
        key()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("methods=[dense,magic]", "there is no method 'magic'; allowed: closed_book, dense"),
        ("methods=[dense,dense]", "names a method twice"),
        ("methods=[dense,closed_book]", "holds no closed_book yet"),
        ("baseline=fid", "evaluate.baseline='fid'; allowed: dense"),
        ("questions=-1", "evaluate.questions=-1; it must be 0 or more"),
        ("resamples=0", "evaluate.resamples=0; it must be 1 or more"),
        ("samples=-2", "evaluate.samples=-2; it must be 0 or more"),
    ],
)
def test_bad_values_are_refused(store: Path, value: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", f"store={store}", f"evaluate.{value}"]) == 2
    caught = capsys.readouterr().err
    assert words in caught and caught.count("\n") == 1


def test_nothing_to_measure(tiny: Tiny, contestants: dict[str, Callable[[], Method]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no answerable test questions"):
        evaluate.evaluate([], contestants["dense"], [Example("u", "明天下雨吗？", (), ())], tiny.segmenter, Config(methods=[]), SETTINGS, 0, tmp_path)


def test_the_table_fits_a_terminal(measured: tuple[dict[str, Any], list[Told]]) -> None:
    lines = tables.table(measured[0]).splitlines()
    assert max(map(len, lines)) <= 150
    for words in ("closed_book, none", "less dense", "label maternal, 9", "source 乙, 6", "off_topic (2)", "dose withheld", "peak: "):
        assert any(words in line for line in lines), words


def test_a_version_of_a_method_may_be_named() -> None:
    evaluate.check(evaluate.Config(methods=["dense", "fid@v000002", "fid@v000001"]))
    with pytest.raises(ValueError, match="there is no method 'magic@v000001'"):
        evaluate.check(evaluate.Config(methods=["magic@v000001"]))
