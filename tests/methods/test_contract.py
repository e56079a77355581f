"""The four verbs on every method there is: remember, see, learn, answer."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import torch
from conftest import Tiny
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from medrag import methods, search
from medrag.generator import Generator
from medrag.generator.decoding import Decoding
from medrag.methods import Method, Parts
from medrag.types import Answer, Example, Hit

NEEDS = {"encoder", "context_encoder", "index", "generator"}
SMALL = {
    "passages": 3,
    "source_tokens": 48,
    "tokens": 48,
    "answer_tokens": 16,
    "retriever": search.Config(question_tokens=32, passage_tokens=48),
}


def _needing(*parts: str) -> list[str]:
    return [name for name in methods.names() if methods.the_class(name).needs & set(parts)]


TOLD_BY_TOKEN = {"closed_book", "fid", "rag_token"}
"""methods whose greedy and drawn answers come token by token"""

every = pytest.mark.parametrize("name", methods.names())
generating = pytest.mark.parametrize("name", _needing("generator"))
encoding = pytest.mark.parametrize("name", _needing("context_encoder"))


def small(module: ModuleType) -> Any:
    """The method's own Config, with those fields small that it has."""
    config = module.Config()
    return dataclasses.replace(config, **{field.name: SMALL[field.name] for field in dataclasses.fields(config) if field.name in SMALL})


def make(name: str, tiny: Tiny) -> Method:
    """The method with what it needs, having remembered the corpus; one that needs an index keeps no passage encoder, as in training."""
    module = methods.load(name)
    needs = methods.the_class(name).needs
    finder = tiny.retriever(remember=False) if needs & {"context_encoder", "index"} else None
    parts = Parts(finder, tiny.generator() if "generator" in needs else None, tiny.library)
    if "encoder" in needs:
        parts = dataclasses.replace(parts, encoder=tiny.encoder(), wordpiece=tiny.wordpiece)
    method = module.build(small(module), parts)
    assert isinstance(method, Method)
    method.decoding = Decoding(beams=2, answer_tokens=5)
    method.index(tiny.passages)
    if finder is not None and "context_encoder" not in needs:
        finder.context_encoder = None
    return method.eval()


@every
def test_a_module_holds_a_config_one_final_method_and_build(name: str) -> None:
    module = methods.load(name)
    assert module.__doc__
    assert dataclasses.is_dataclass(module.Config) and isinstance(module.Config, type)
    module.Config()
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    made = [value for value in own if issubclass(value, Method)]
    assert len(made) == 1 and made[0] is methods.the_class(name)
    assert made[0].__bases__ == (Method,), "no inheritance deeper than one"
    assert getattr(made[0], "__final__", False)
    assert made[0].needs and made[0].needs <= NEEDS
    assert callable(module.build)


@every
def test_parts_that_are_missing_are_named(name: str) -> None:
    module = methods.load(name)
    with pytest.raises(ValueError, match=r"this method needs an? (retriever|generator|encoder)"):
        module.build(module.Config(), Parts())


@every
def test_collate_calls_no_model(name: str, tiny: Tiny) -> None:
    method = make(name, tiny)

    def refuse(module: nn.Module, _inputs: object) -> NoReturn:
        raise AssertionError(f"collate called {type(module).__name__}")

    hook = register_module_forward_pre_hook(refuse)
    try:
        batch = method.collate(tiny.examples[:4])
    finally:
        hook.remove()
    assert batch.examples == tuple(tiny.examples[:4])
    assert batch.weight >= 4
    assert batch.tensors
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in batch.tensors.values())
    moved = batch.to(torch.device("meta"))
    assert moved.examples == batch.examples and moved.weight == batch.weight
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}


@every
def test_the_same_seed_sees_the_same_batch(name: str, tiny: Tiny) -> None:
    """All draws come from torch's generator, so that a resumed run goes on as if it had not been interrupted."""
    method = make(name, tiny)
    examples = [dataclasses.replace(example, answers=("一", "二", "三"), positives=("p1", "p2", "p5"), negatives=()) for example in tiny.examples[:6]]
    torch.manual_seed(7)
    one = method.collate(examples)
    torch.manual_seed(7)
    two = method.collate(examples)
    assert all(torch.equal(tensor, two.tensors[key]) for key, tensor in one.tensors.items())
    others = [method.collate(examples).tensors for _ in range(5)]
    assert any(not torch.equal(tensor, other[key]) for other in others for key, tensor in one.tensors.items())


@every
def test_forward_learns(name: str, tiny: Tiny) -> None:
    """A finite scalar, finite gradients in everything trainable, and a small step down them lowers the loss by as much as they promise.

    What a method holds fast says so itself (``requires_grad``), so that no optimizer takes it up.
    """
    method = make(name, tiny).train()
    batch = method.collate(tiny.examples[:4])
    loss = method(batch)
    assert loss.shape == () and loss.dtype == torch.float32 and bool(loss.isfinite()) and float(loss.detach()) > 0
    loss.backward()
    norm = 0.0  # squared
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    for parameter_name, parameter in trained.items():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        norm += float(parameter.grad.square().sum())
    assert norm > 0
    promised = 1e-2
    with torch.no_grad():
        for parameter in trained.values():
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=-promised / norm)
        after = float(method(batch))
    assert float(loss.detach()) - after == pytest.approx(promised, rel=0.2)


@every
def test_answers_are_answers(name: str, tiny: Tiny) -> None:
    method = make(name, tiny)
    questions = tiny.questions[:5]
    answers = method.answer(questions)
    assert len(answers) == len(questions)
    for answer in answers:
        kinds = [type(value) for value in (answer, answer.text, answer.hits, answer.logprob, answer.confidence)]
        assert kinds == [Answer, str, tuple, float, float]
        assert {type(hit) for hit in answer.hits} <= {Hit}
        assert [hit.score for hit in answer.hits] == sorted((hit.score for hit in answer.hits), reverse=True)
        assert len(answer.hits) == (0 if not method.needs & {"context_encoder", "index"} else 3)
        assert answer.logprob <= 1e-6
        assert type(answer.tokens) is int and 1 <= answer.tokens <= (5 if "generator" in method.needs else 1)
        assert 0 <= answer.confidence <= 1
    assert method.answer([]) == []


@every
def test_a_batch_answers_as_one_by_one_in_the_order_asked(name: str, tiny: Tiny) -> None:
    method = make(name, tiny)
    questions = [*tiny.questions[:6], tiny.questions[2], "？"]
    together = method.answer(questions)
    assert len({(answer.text, answer.hits, round(answer.logprob, 3)) for answer in together}) > 1, "answers that are all the same prove nothing"
    for question, answer in zip(questions, together, strict=True):
        (alone,) = method.answer([question])
        assert answer.text == alone.text
        assert [hit.passage.id for hit in answer.hits] == [hit.passage.id for hit in alone.hits]
        assert [hit.score for hit in answer.hits] == pytest.approx([hit.score for hit in alone.hits], abs=1e-3)
        assert answer.logprob == pytest.approx(alone.logprob, abs=1e-3)
        assert answer.confidence == pytest.approx(alone.confidence, abs=1e-4)
    backwards = method.answer(questions[::-1])[::-1]
    assert [answer.text for answer in backwards] == [answer.text for answer in together]


@every
@pytest.mark.parametrize(
    "written", [{}, {"beams": 1}, {"beams": 3, "length_power": 0.0}, {"sample": True}, {"sample": True, "top_p": 0.8, "seed": 3}]
)
def test_a_stream_is_the_answer_in_pieces(name: str, tiny: Tiny, written: dict[str, Any]) -> None:
    """Texts of characters that are written byte by byte, whole ones and broken ones, among others."""
    method = make(name, tiny)
    if "generator" not in method.needs and written:
        pytest.skip("this method quotes")
    method.decoding = Decoding(**{"beams": 2, "answer_tokens": 12, "no_repeat_tokens": 0} | written)
    several = broken = 0
    for question in tiny.questions[:3]:
        if "generator" in method.needs:
            likely(method, spelled(tiny, "𠮷龘"))
        (answer,) = method.answer([question])
        *pieces, last = method.stream(question)
        assert isinstance(last, Answer) and all(isinstance(piece, str) and piece for piece in pieces)
        assert "".join(map(str, pieces)) == answer.text == last.text
        assert (last.tokens, [hit.passage for hit in last.hits]) == (answer.tokens, [hit.passage for hit in answer.hits])
        assert (last.logprob, last.confidence) == pytest.approx((answer.logprob, answer.confidence), abs=1e-4)
        several += len(pieces) > 1
        broken += "\ufffd" in answer.text
    assert broken or "generator" not in method.needs or name == "span_corruption", "no bytes were written"
    assert several or name not in TOLD_BY_TOKEN or method.decoding.width > 1


def spelled(tiny: Tiny, text: str) -> list[int]:
    """The tokens of a text, bytes among them."""
    tokens = tiny.sentencepiece.encode(text, 50)[:-1]
    assert any(map(tiny.sentencepiece.processor.is_byte, tokens))
    return tokens


def likely(method: Method, tokens: list[int]) -> None:
    """Make the generator write these tokens more than others, in any order."""
    generator = method.generator
    assert isinstance(generator, Generator)
    with torch.no_grad():
        generator.network.lm_head.weight[tokens] *= 2


@generating
def test_a_drawn_answer_is_a_questions_own(name: str, tiny: Tiny) -> None:
    """The same seed gives the same answer whatever is asked beside it, in any order; another seed gives others."""
    method = make(name, tiny)
    method.decoding = Decoding(sample=True, answer_tokens=6, temperature=1.5)
    questions = tiny.questions[:6]

    def drawn(asked: list[str]) -> list[tuple[str, float]]:
        return [(answer.text, round(answer.logprob, 2)) for answer in method.answer(asked)]

    together = drawn(questions)
    assert [drawn([question])[0] for question in questions] == together == drawn(questions[::-1])[::-1]
    assert drawn([questions[0]] * 2) == together[:1] * 2
    method.decoding = dataclasses.replace(method.decoding, seed=1)
    assert all(one != two for one, two in zip(drawn(questions), together, strict=True))


@generating
@pytest.mark.parametrize("written", [{"beams": 1}, {"beams": 3}, {"sample": True}])
def test_the_logprob_is_a_sum_over_tokens(name: str, tiny: Tiny, written: dict[str, Any]) -> None:
    """Each of them within what one token's may be: about the logarithm of the vocabulary's size."""
    method = make(name, tiny)
    method.decoding = Decoding(answer_tokens=6, **written)
    for answer in method.answer(tiny.questions[:4]):
        assert 0.05 < -answer.logprob / answer.tokens < 3 * math.log(tiny.sentencepiece.size)


@encoding
def test_remembering_again_replaces(name: str, tiny: Tiny) -> None:
    method = make(name, tiny)
    method.index(tiny.passages[:5])
    (answer,) = method.answer(tiny.questions[7:8])
    assert {hit.passage.id for hit in answer.hits} <= {"p0", "p1", "p2", "p3", "p4"}


@generating
def test_validate_is_higher_for_better(name: str, tiny: Tiny) -> None:
    """Examples that the method has just been fitted to must come out better; how they are batched must not matter."""
    method = make(name, tiny)
    examples = tiny.examples[:4]
    before = _criterion(method, examples, 4)
    assert before < 0
    assert _criterion(method, examples, 3) == pytest.approx(before, abs=1e-4)
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        method(method.collate(examples)).backward()
        optimizer.step()
    assert _criterion(method, examples, 4) > before


@every
def test_measures_have_names_and_are_finite(name: str, tiny: Tiny) -> None:
    measured = make(name, tiny).validate(tiny.examples[:3], 2)
    assert measured and all(measured) and all(map(math.isfinite, measured.values()))


@every
def test_renewing_is_allowed_at_every_step(name: str, tiny: Tiny, tmp_path: Path) -> None:
    """What training asks of every method; those that have nothing to renew see the same batches as before."""
    method = make(name, tiny)
    torch.manual_seed(3)
    one = method.collate(tiny.examples[:4])
    for step in range(3):
        method.renew(tiny.examples, tmp_path, step / 2, 0.0)
    torch.manual_seed(3)
    two = method.collate(tiny.examples[:4])
    assert all(torch.equal(tensor, two.tensors[key]) for key, tensor in one.tensors.items())


def _criterion(method: Method, examples: list[Example], batch_examples: int) -> float:
    return next(iter(method.validate(examples, batch_examples).values()))


@every
def test_a_target_is_needed_to_learn_from(name: str, tiny: Tiny) -> None:
    """An unanswerable question cannot be learned from, and the message names it."""
    method = make(name, tiny)
    with pytest.raises(ValueError, match="lost"):
        method.collate([tiny.examples[0], Example("lost", "劳动仲裁要准备什么", (), ())])
