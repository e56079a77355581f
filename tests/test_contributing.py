"""CONTRIBUTING.md keeps its word: its examples are put where it says and run; its map, layers and doors are those of the code."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Tiny
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from medrag import config, methods, prepare, sources, text
from medrag import hardware as machine
from medrag.methods import Method, Parts
from medrag.plan.machine import Card, Machine, obstacle
from medrag.retriever import Retriever
from medrag.schedule import Task, shares
from medrag.sources import Record, Reject
from medrag.types import Example

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
"""code by the path that stands above it"""
METHOD, PRESET, READER, CARD = BLOCKS


def test_there_is_an_example_of_each() -> None:
    assert [METHOD, PRESET, READER, CARD] == [
        "medrag/methods/first_sentence.py",
        "configs/task/first_sentence.yaml",
        "medrag/sources/pairs.py",
        "configs/hardware/l4.yaml",
    ]


@pytest.mark.parametrize("path", [METHOD, READER])
def test_the_examples_are_formatted(path: str) -> None:
    for check in (["format", "--check"], ["check"]):
        command = [sys.executable, "-m", "ruff", *check, "--no-cache", "--stdin-filename", path, "-"]
        done = subprocess.run(command, cwd=ROOT, input=BLOCKS[path], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# -- the method ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's module, found by its file name in a folder beside the house's own methods."""
    name = Path(METHOD).stem
    with pytest.raises(ValueError, match=f"task.method='{name}'; allowed: .*dense"):
        methods.load(name)
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / Path(METHOD).name).write_text(BLOCKS[METHOD], encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    importlib.invalidate_caches()
    try:
        yield methods.load(name)
    finally:
        sys.modules.pop(f"{methods.__name__}.{name}", None)
        vars(methods).pop(name, None)


def made(module: ModuleType, tiny: Tiny, **options: Any) -> tuple[Method, Retriever]:
    """The method as training has it: the passages remembered, then no passage encoder."""
    finder = tiny.retriever(remember=False)
    method = module.build(module.Config(**options), Parts(finder, library=tiny.library))
    assert isinstance(method, Method)
    method.index(tiny.passages)
    finder.context_encoder = None
    return method, finder


def test_the_method_is_of_the_house(module: ModuleType, tiny: Tiny) -> None:
    kind = methods.the_class(Path(METHOD).stem)
    assert kind.__bases__ == (Method,) and getattr(kind, "__final__", False)
    assert kind.needs == {"index"}, "it brings no weights of its own"
    method, finder = made(module, tiny)
    assert {id(p) for p in method.parameters()} == {id(p) for p in finder.question_encoder.parameters()}
    with pytest.raises(ValueError, match="needs a retriever"):
        module.build(module.Config(), Parts())
    with pytest.raises(ValueError, match=r"task\.options\.negatives=0; it must be 1 or more"):
        made(module, tiny, negatives=0)


def test_the_method_sees(module: ModuleType, tiny: Tiny) -> None:
    method, finder = made(module, tiny)
    called: list[nn.Module] = []
    hook = register_module_forward_pre_hook(lambda called_module, _inputs: called.append(called_module))
    try:
        batch = method.collate(tiny.examples[4:10])
    finally:
        hook.remove()
    assert not called
    assert batch.weight == 6
    assert batch.tensors["right_B"].tolist() == [finder.row[example.positives[0]] for example in tiny.examples[4:10]]
    with pytest.raises(ValueError, match="lost"):
        method.collate([*tiny.examples[:2], Example("lost", "明天下雨吗？", (), ())])


def test_the_method_learns(module: ModuleType, tiny: Tiny) -> None:
    """The first loss is DPR's over the right passage and the best wrong ones, worked out from the vectors; then it falls."""
    method, finder = made(module, tiny, negatives=4)
    examples = tiny.examples[:6]
    batch = method.collate(examples)
    first = method(batch)
    with torch.no_grad():
        q_BD = finder.encode_questions([example.question for example in examples])
        assert finder.index is not None
        score_BN = q_BD @ torch.from_numpy(finder.index.vectors(range(len(tiny.passages)))).T
    expected = 0.0
    for b, example in enumerate(examples):
        right = finder.row[example.positives[0]]
        wrong = torch.cat([score_BN[b, :right], score_BN[b, right + 1 :]]).topk(4).values
        expected += float(torch.cat([score_BN[b, right : right + 1], wrong]).logsumexp(0) - score_BN[b, right]) / len(examples)
    assert first.shape == () and float(first.detach()) == pytest.approx(expected, rel=1e-3)
    first.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in method.parameters())
    assert any(bool(parameter.grad.abs().max() > 0) for parameter in method.parameters() if parameter.grad is not None)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        method(batch).backward()
        optimizer.step()
    assert method.validate(examples, 3)["minus_nats"] > -float(first.detach())


def test_the_method_answers_with_the_first_sentence(module: ModuleType, tiny: Tiny) -> None:
    longer = [replace(passage, text=passage.text + "这是第二句。") for passage in tiny.passages]
    method, finder = made(module, tiny, passages=3)
    finder.context_encoder = tiny.encoder(100)
    method.index(longer)
    questions = tiny.questions[:5]
    answers = method.answer(questions)
    found = finder.retrieve(questions, 3)
    assert [answer.hits for answer in answers] == [tuple(hits) for hits in found]
    for answer in answers:
        assert answer.text == text.sentences(answer.hits[0].passage.text)[0]
        assert answer.text and "第二句" not in answer.text
        assert answer.logprob <= 0 <= answer.confidence <= 1
    assert len({answer.text for answer in answers}) > 1, "answers that are all the same prove nothing"
    assert [answer.text for answer in method.answer(questions[::-1])] == [answer.text for answer in answers[::-1]]
    assert method.answer([]) == []
    finder.hidden = frozenset(passage.id for passage in longer)
    assert [(answer.text, answer.hits) for answer in method.answer(questions[:1])] == [("", ())]


# -- the source ---------------------------------------------------------------------------------------------------------------------


def test_the_source_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good rows, bad rows with their places, and the whole way into a corpus; the module stands in a folder beside the house's own."""
    kind = Path(READER).stem
    assert f"Put `{kind}.KINDS` into the `KINDS`" in PAGE and kind not in sources.KINDS
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / Path(READER).name).write_text(BLOCKS[READER], encoding="utf-8")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(folder)])
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(f"{sources.__name__}.{kind}")
    finally:
        sys.modules.pop(f"{sources.__name__}.{kind}", None)
        vars(sources).pop(kind, None)
    monkeypatch.setattr(sources, "KINDS", module.KINDS | sources.KINDS)
    good = ["孕期可以喝咖啡吗？\t可以少喝，每天不超过一小杯。\n", "宝宝发烧怎么办？\t多喝水，超过三十八度五吃退烧药。\t儿科\r\n"]
    lines = [line.encode() for line in [good[0], "\n", "没有答案的一行\n", good[1]]] + ["坏".encode()[:2] + b"\tx\n", b"a\tb\tc\td"]
    path = tmp_path / "ward.pairs"
    path.write_bytes(b"".join(lines))
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]

    source = sources.recognise(str(path))
    assert (source.kind, source.encoding) == (kind, "utf-8-sig") and source == sources.recognise(f"{kind}:{path}")
    rows = list(sources.read(source))
    assert [row for row in rows if isinstance(row, Record)] == [
        Record("孕期可以喝咖啡吗？", "可以少喝，每天不超过一小杯。", source="ward.pairs"),
        Record("宝宝发烧怎么办？", "多喝水，超过三十八度五吃退烧药。", "儿科", source="ward.pairs"),
    ]
    rejects = [row for row in rows if isinstance(row, Reject)]
    assert [(row.file, row.line, row.byte) for row in rejects] == [(str(path), line, starts[line - 1]) for line in (3, 5, 6)]
    assert [row.reason.split(":")[0] for row in rejects] == [
        "1 cells in a row; 2 or 3 are needed",
        "not utf-8-sig",
        "4 cells in a row; 2 or 3 are needed",
    ]
    assert [type(row) for row in rows] == [Record, Reject, Record, Reject, Reject], "in file order"

    settings = prepare.Config(dictionary="", dev_share=0, test_share=0, negatives=0)
    artifact = prepare.prepare([source], settings, tmp_path / "store", progress=False)
    corpus = prepare.read(artifact)
    assert {example.question for example in corpus.train} == {"孕期可以喝咖啡吗？", "宝宝发烧怎么办？"}
    kept = [json.loads(line) for line in (artifact.path / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert [row["line"] for row in kept] == [3, 5, 6]


# -- the presets --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the presets with the two examples among them."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr(config, "HOME", tmp_path)
    with pytest.raises(ValueError, match=r"hardware=l4; allowed: 1080ti, .*t4"):
        config.compose(["hardware=l4"])
    for path in (PRESET, CARD):
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(BLOCKS[path], encoding="utf-8")
    return tmp_path


def test_the_card_is_composed(home: Path) -> None:
    run = config.compose(["hardware=l4"])
    assert (run.hardware.device, run.hardware.precision, run.hardware.compute_capability) == ("cuda", "bf16", 8.9)
    machine.check(run.hardware)
    for name in methods.names():
        asked = config.compose([f"task={name}"]).task
        task = config.compose(["hardware=l4", f"task={name}"]).task
        assert task == asked, "a card never changes the optimisation"
        cut = shares(task, run.hardware, methods.the_class(name).whole_batch)
        assert cut.micro * cut.accumulation * run.hardware.devices == task.global_batch


def test_the_card_fits_itself_and_no_smaller_one(home: Path) -> None:
    hardware = config.compose(["hardware=l4"]).hardware
    l4, old = Card("NVIDIA L4", 22.0, 8.9), Card("NVIDIA GeForce GTX 1080 Ti", 10.9, 6.1)
    assert obstacle(hardware, Machine(4, 32, 100, True, (l4,))) == ""
    assert obstacle(hardware, Machine(4, 32, 100, True, (old,))) == "10.9 of 22.0 GiB"


def test_the_methods_preset_is_composed(home: Path, module: ModuleType) -> None:
    """And its options are the method's own, misspelt ones refused."""
    run = config.compose([f"task={Path(PRESET).stem}", "task.options.negatives=7", "hardware=l4"])
    assert run.task.method == Path(METHOD).stem
    assert run.task.options == module.Config(negatives=7)
    assert (run.task.epochs, run.task.learning_rate) == (5, 1e-5) and Task().epochs != 5
    shares(run.task, run.hardware, methods.the_class(Path(METHOD).stem).whole_batch)
    with pytest.raises(ValueError, match=r"did you mean task\.options\.negatives"):
        config.compose([f"task={Path(PRESET).stem}", "task.options.negative=7"])


# -- the map ------------------------------------------------------------------------------------------------------------------------


def _table(head: str) -> list[list[str]]:
    """The rows of the table under a head, cell by cell."""
    body = PAGE.split(head, 1)[1].split("\n\n", 1)[0].strip().splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in body]


def test_the_map_names_every_module() -> None:
    named = {name.strip("/") for row in _table("| module | what it does |\n") for name in re.findall(r"`([\w/]+)`", row[0])}
    home = ROOT / "medrag"
    present = {path.stem for path in home.glob("*.py")} - {"__init__"} | {path.parent.name for path in home.glob("*/__init__.py")}
    assert named == present


def test_the_layers_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = (each for each in contracts if each["type"] == "layers")
    assert "\n```\n" + "\n".join(contract["layers"]).replace("medrag.", "") + "\n```\n" in PAGE


def test_each_heavy_library_has_the_doors_named() -> None:
    named = {library: set(re.findall(r"`(\w+)`", row[1])) for row in _table("| library | door |\n") for library in re.findall(r"`(\w+)`", row[0])}
    assert len(named) >= 10
    found: dict[str, set[str]] = {library: set() for library in named}
    for path in (ROOT / "medrag").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.split(".")[0] in found:
                    found[name.split(".")[0]].add(path.relative_to(ROOT / "medrag").parts[0].removesuffix(".py"))
    assert found == named
