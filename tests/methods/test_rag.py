"""RAG-Token and RAG-Sequence: against transformers' own, against enumeration, and against each other."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import Tiny
from oracle import config_of, fill, transformers_t5, untie, untied
from torch import Tensor
from transformers import RagConfig, RagSequenceForGeneration, RagTokenForGeneration

from medrag import losses, reader
from medrag.generator import Generator, writing
from medrag.generator.decoding import RAG_SEQUENCE, Decoding, Hypothesis, Past
from medrag.methods import Batch, Method, Parts, rag_sequence, rag_token
from medrag.methods.rag_sequence import RagSequence
from medrag.methods.rag_token import RagToken
from medrag.types import Example
from medrag.vocabulary import Sentencepiece

K, SOURCE_TOKENS = 3, 40
DECODING = Decoding(beams=3, answer_tokens=5)


def token(tiny: Tiny, passages: int = K, leave_out_own: bool = True, decoding: Decoding = DECODING, generator: Generator | None = None) -> RagToken:
    config = rag_token.Config(passages, SOURCE_TOKENS, 16, leave_out_own)
    method = RagToken(config, tiny.retriever(fixed=True), generator or tiny.generator())
    method.decoding = decoding
    return method


def sequence(
    tiny: Tiny, passages: int = K, leave_out_own: bool = True, decoding: Decoding = DECODING, generator: Generator | None = None
) -> RagSequence:
    config = rag_sequence.Config(passages, SOURCE_TOKENS, 16, leave_out_own)
    method = RagSequence(config, tiny.retriever(fixed=True), generator or tiny.generator())
    method.decoding = decoding
    return method


def nats(method: Method, batch: Batch) -> float:
    """The batch's loss as a sum."""
    with torch.no_grad():
        return float(method(batch)) * batch.weight


def short(sentencepiece: Sentencepiece, letters: int = 3) -> Sentencepiece:
    """A copy that may write only so many different tokens: every other one counts as a sentinel, which beam search never writes."""
    made = Sentencepiece(sentencepiece.proto)
    made.sentinels = [number for number in range(3, made.size) if not 400 <= number < 400 + letters]
    return made


def short_generator(tiny: Tiny) -> Generator:
    """Over three tokens and the end, all of them likely enough to matter."""
    generator = tiny.generator()
    generator.sentencepiece = short(tiny.sentencepiece)
    return generator


# -- learning -------------------------------------------------------------------------------------------------------------------


def oracle(kind: type[Any], tiny: Tiny, method: RagToken | RagSequence, examples: Sequence[Example]) -> Tensor:
    """transformers' negative log-likelihoods (B,) with the same weights, passages and scores."""
    own = method.generator.network
    encoder = copy.deepcopy(method.retriever.question_encoder.albert)
    assert encoder is not None
    config = RagConfig.from_question_encoder_generator_configs(encoder.config, config_of(own), n_docs=K)
    rag = kind(config=config, question_encoder=encoder, generator=fill(untied(config_of(own)), own)).eval()
    fill(untie(rag.generator), own)

    exclude = [example.positives for example in examples] if method.config.leave_out_own else None
    hits = method.retriever.retrieve([example.question for example in examples], K, exclude)
    heads = [example.question for example in examples for _ in range(K)]
    ids_NL, mask_NL = tiny.sentencepiece.pairs(heads, [hit.passage.text for row in hits for hit in row], SOURCE_TOKENS)
    target_BT, _ = tiny.sentencepiece.batch([example.answers[0] for example in examples], 16)
    labels_BT = torch.cat([torch.zeros(len(examples), 1, dtype=torch.long), target_BT], dim=1)
    with torch.no_grad():
        loss: Tensor = rag(
            context_input_ids=ids_NL,
            context_attention_mask=mask_NL.long(),
            doc_scores=torch.tensor([[hit.score for hit in row] for row in hits]),
            labels=labels_BT,
            reduce_loss=False,
        ).loss
    return loss


@pytest.mark.parametrize("leave_out_own", [True, False])
@pytest.mark.parametrize(("make", "kind"), [(token, RagTokenForGeneration), (sequence, RagSequenceForGeneration)])
def test_forward_equals_transformers(tiny: Tiny, make: Any, kind: type[Any], leave_out_own: bool) -> None:
    """Targets of unequal length, each of two tokens or more: with one token transformers' RAG-Sequence loses the passages' prior."""
    method = make(tiny, leave_out_own=leave_out_own)
    examples = [*tiny.examples[:4], dataclasses.replace(tiny.examples[4], answers=("水",))]
    batch = method.collate(examples)
    lengths = (batch.tensors["target_BT"] != 0).sum(1)
    assert int(lengths.min()) >= 2 and len(set(lengths.tolist())) > 1
    expected_B = oracle(kind, tiny, method, examples)
    assert expected_B.shape == (5,)
    assert batch.weight == int(lengths.sum())
    assert nats(method, batch) == pytest.approx(float(expected_B.sum()), rel=1e-5)
    for number, example in enumerate(examples):
        assert nats(method, method.collate([example])) == pytest.approx(float(expected_B[number]), rel=1e-4)


def test_one_passage_or_one_token_makes_no_difference(tiny: Tiny) -> None:
    examples = tiny.examples[:4]
    one = [method.collate(examples) for method in (token(tiny, 1), sequence(tiny, 1))]
    assert nats(token(tiny, 1), one[0]) == pytest.approx(nats(sequence(tiny, 1), one[1]), rel=1e-5)
    end_only = [dataclasses.replace(example, answers=("",)) for example in examples]
    batch = token(tiny).collate(end_only)
    assert batch.tensors["target_BT"].tolist() == [[1]] * 4
    assert nats(token(tiny), batch) == pytest.approx(nats(sequence(tiny), batch), rel=1e-5)
    batch = token(tiny).collate(examples)
    assert abs(nats(token(tiny), batch) - nats(sequence(tiny), batch)) > 1e-2


@pytest.mark.parametrize("make", [token, sequence])
def test_one_token_targets_keep_the_prior(tiny: Tiny, make: Any) -> None:
    """Where transformers' RAG-Sequence goes wrong: by hand, passage by passage."""
    method = make(tiny)
    example = dataclasses.replace(tiny.examples[0], answers=("",))
    hits = method.retriever.retrieve([example.question], K, [example.positives])
    prior_K = torch.tensor([hit.score for hit in hits[0]]).softmax(0)
    assert float(prior_K.max() - prior_K.min()) > 0.05
    total = 0.0
    with torch.no_grad():
        for prior, hit in zip(prior_K.tolist(), hits[0], strict=True):
            ids, mask = tiny.sentencepiece.pairs([example.question], [hit.passage.text], SOURCE_TOKENS)
            logits = transformers_t5(method.generator)(
                input_ids=ids, attention_mask=mask.long(), decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)
            ).logits
            total += prior * float(logits[0, 0].softmax(0)[1])
    assert nats(method, method.collate([example])) == pytest.approx(-math.log(total), abs=1e-4)


@pytest.mark.parametrize("make", [token, sequence])
def test_the_own_passage_is_left_out(tiny: Tiny, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to be learned is not among what is read in training, and is where that is asked for; answering reads everything."""
    seen: list[reader.Reading] = []
    read = reader.read

    def watch(*inputs: Any) -> reader.Reading:
        seen.append(read(*inputs))
        return seen[-1]

    monkeypatch.setattr(reader, "read", watch)
    finder = tiny.retriever()
    questions = [example.question for example in tiny.examples]
    best = [hits[0].passage for hits in finder.retrieve(questions, 1)]
    examples = [dataclasses.replace(e, positives=(passage.id,), answers=(passage.text,)) for e, passage in zip(tiny.examples, best, strict=True)][:6]
    for leave_out_own in (True, False):
        method = make(tiny, leave_out_own=leave_out_own)
        method(method.collate(examples))
        for example, hits in zip(examples, seen[-1].hits, strict=True):
            assert len(hits) == K
            assert (example.positives[0] in {hit.passage.id for hit in hits}) is not leave_out_own
    make(tiny).answer(questions[:6])
    assert [hits[0].passage for hits in seen[-1].hits] == best[:6]


def test_what_is_nearly_equal_to_the_own_passage_is_left_out_too(tiny: Tiny) -> None:
    """A near duplicate of the answer gives it away as well; only while learning."""
    finder = tiny.retriever(remember=False)
    question = tiny.questions[0]
    twin = dataclasses.replace(tiny.passages[4], id="twin", group="g")
    finder.remember([*tiny.passages[:4], dataclasses.replace(tiny.passages[4], group="g"), *tiny.passages[5:], twin])
    example = dataclasses.replace(tiny.examples[0], positives=("p4",))
    config = rag_token.Config(30, SOURCE_TOKENS, 16, True)
    learned = reader.study(finder, tiny.generator(), [example], config)
    assert {hit.passage.id for hit in learned.hits[0]} == {passage.id for passage in tiny.passages} - {"p4"}
    config = dataclasses.replace(config, passages=31)
    assert {"p4", "twin"} <= {hit.passage.id for hit in reader.read(finder, tiny.generator(), [question], config).hits[0]}


@pytest.mark.parametrize("make", [token, sequence])
def test_gradients_reach_both_and_the_index_stays(tiny: Tiny, make: Any) -> None:
    method = make(tiny).train()
    before = method.retriever.encode_questions(tiny.questions[:4]).detach()
    index = method.retriever.index
    vectors = index.vectors(range(len(tiny.passages))).copy()
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    assert method.retriever.context_encoder is None
    method(method.collate(tiny.examples[:4])).backward()
    for part in (method.retriever.question_encoder, method.generator):
        gradients = [parameter.grad for parameter in part.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert sum(float(gradient.abs().sum()) for gradient in gradients) > 1e-3
    optimizer.step()
    assert not torch.allclose(method.retriever.encode_questions(tiny.questions[:4]), before, atol=1e-5)
    assert method.retriever.index is index
    assert (index.vectors(range(len(tiny.passages))) == vectors).all()


@pytest.mark.parametrize("make", [token, sequence])
def test_training_prefers_the_passage_that_helps(tiny: Tiny, make: Any) -> None:
    """The gradient of the scores pushes up the passage under which the target is likelier than under the mixture, down the others."""
    method = make(tiny)
    example = tiny.examples[0]
    reading = reader.read(method.retriever, method.generator, [example.question], method.config, [example.positives])
    logp_BKT = reader.target_logp(method.generator, reading, method.collate([example]).tensors["target_BT"]).detach()
    score_BK = reading.prior_BK.detach().requires_grad_()
    loss = losses.rag_sequence(score_BK.log_softmax(1), logp_BKT).sum()
    (gradient_BK,) = torch.autograd.grad(loss, score_BK)
    posterior_BK = (reading.prior_BK.detach() + logp_BKT.sum(-1)).softmax(1)
    assert torch.allclose(gradient_BK, reading.prior_BK.detach().exp() - posterior_BK, atol=1e-5)


@pytest.mark.parametrize("make", [token, sequence])
def test_checkpointed_activations_give_equal_gradients(tiny: Tiny, make: Any) -> None:
    plain, checkpointed = make(tiny).train(), make(tiny).train()
    checkpointed.generator.checkpoint_activations()
    checkpointed.retriever.question_encoder.checkpoint_activations()
    for method in (plain, checkpointed):
        method(method.collate(tiny.examples[:3])).backward()
    for (name, one), two in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, atol=1e-5), name


@pytest.mark.parametrize("make", [token, sequence])
def test_nothing_left_to_read_is_said(tiny: Tiny, make: Any) -> None:
    method = make(tiny)
    example = dataclasses.replace(tiny.examples[0], positives=tuple(tiny.library))
    with pytest.raises(ValueError, match="left with no passage"):
        method(method.collate([example]))
    method.retriever.hidden = frozenset(tiny.library)
    assert method.answer(["糖尿病", "咳嗽"]) == [reader.NOTHING] * 2
    assert list(method.stream("糖尿病")) == [reader.NOTHING]


# -- answering ------------------------------------------------------------------------------------------------------------------


class Looked:
    """A past that keeps every step's total probability."""

    def __init__(self, past: Past, sums: list[Tensor]) -> None:
        self.past = past
        self.sums = sums
        self.reorder, self.keep = past.reorder, past.keep

    def step(self, token_RB: Tensor) -> Tensor:
        logp_RBV = self.past.step(token_RB)
        self.sums.append(logp_RBV.exp().sum(-1))
        return logp_RBV


@dataclasses.dataclass
class Watched:
    sums: list[Tensor] = dataclasses.field(default_factory=list)
    found: dict[str, list[Hypothesis]] = dataclasses.field(default_factory=dict)


def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Keeps every step's total probability, and what each question's search finds; all hypotheses are asked for."""
    search, seen = writing.search, Watched()

    def watching(past: Past, questions: Sequence[str], sentencepiece: Sentencepiece, decoding: Decoding, device: Any, hypotheses: int = 1) -> Any:
        found = search(Looked(past, seen.sums), questions, sentencepiece, decoding, device, decoding.beams)
        seen.found |= dict(zip(questions, found, strict=True))
        return found

    monkeypatch.setattr(writing, "search", watching)
    return seen


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("make", [token, sequence])
def test_the_next_tokens_distribution_sums_to_1(tiny: Tiny, make: Any, sample: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    make(tiny, decoding=dataclasses.replace(DECODING, sample=sample)).answer(tiny.questions[:4])
    assert len(seen.sums) == 5
    for total in seen.sums:
        assert torch.allclose(total, torch.ones_like(total), atol=1e-4)


@pytest.mark.parametrize("beams", [1, 4])
def test_rag_token_decodes_with_the_probability_it_learns_with(tiny: Tiny, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-probability of every hypothesis is minus the training loss of its tokens, also after the beams have changed places."""
    seen = watched(monkeypatch)
    generator = tiny.generator()
    with torch.no_grad():
        generator.network.lm_head.weight[1] *= 3
    method = token(tiny, leave_out_own=False, decoding=Decoding(beams=beams, answer_tokens=6), generator=generator)
    questions = tiny.questions[:5]
    answers = method.answer(questions)
    kinds = set()
    assert sorted(seen.found) == sorted(questions)
    for question, answer in zip(questions, answers, strict=True):
        hypotheses = seen.found[question]
        assert answer.tokens == hypotheses[0].written
        assert answer.logprob == hypotheses[0].logprob
        assert answer.text == tiny.sentencepiece.decode(hypotheses[0].tokens)
        for hypothesis in hypotheses:
            target = torch.tensor([[*hypothesis.tokens, *([1] if hypothesis.finished else [])]])
            batch = Batch((Example("x", question, (), ()),), {"target_BT": target}, target.shape[1])
            assert -nats(method, batch) == pytest.approx(hypothesis.logprob, abs=1e-4)
            kinds.add(hypothesis.finished)
    assert beams == 1 or kinds == {True, False}


def by_text(hypotheses: Sequence[Hypothesis]) -> dict[tuple[int, ...], float]:
    return {hypothesis.tokens: hypothesis.logprob for hypothesis in hypotheses}


def every_text(sentencepiece: Sentencepiece, length: int) -> list[tuple[tuple[int, ...], bool]]:
    """All texts over the allowed tokens that end within ``length`` tokens, or are cut there, unfinished."""
    letters = [number for number in range(3, sentencepiece.size) if number not in set(sentencepiece.sentinels)]
    return [(text, size < length) for size in range(length + 1) for text in itertools.product(letters, repeat=size)]


def test_rag_token_with_enough_beams_finds_the_likeliest_answer(tiny: Tiny) -> None:
    """Every answer over three tokens is scored with the training loss."""
    decoding = Decoding(beams=40, answer_tokens=3, length_power=0.0, early=False, no_repeat_tokens=0)
    method = token(tiny, leave_out_own=False, decoding=decoding, generator=short_generator(tiny))
    texts = every_text(method.generator.sentencepiece, 3)
    assert len(texts) == 40
    for question in tiny.questions[:3]:
        (answer,) = method.answer([question])
        scored = {}
        for text, finished in texts:
            target = torch.tensor([[*text, *([1] if finished else [])]])
            scored[text] = -nats(method, Batch((Example("x", question, (), ()),), {"target_BT": target}, target.shape[1]))
        best = max(scored, key=lambda text: scored[text])
        assert answer.text == tiny.sentencepiece.decode(best)
        assert answer.logprob == pytest.approx(scored[best], abs=1e-4)


def test_fast_equals_thorough_when_every_beam_holds_every_hypothesis(tiny: Tiny) -> None:
    """And both equal the training loss of each of the 40 answers there are."""
    decoding = Decoding(beams=40, answer_tokens=3, length_power=1.0, early=False, no_repeat_tokens=0)
    method = sequence(tiny, leave_out_own=False, decoding=decoding, generator=short_generator(tiny))
    question = tiny.questions[0]
    with torch.no_grad():
        reading = reader.read(method.retriever, method.generator, tiny.questions[:2], method.config)
        beams_BK = method.search(reading, tiny.questions[:2])
        assert [[len(row) for row in rows] for rows in beams_BK] == [[40] * K] * 2
        for b, rows in enumerate(beams_BK):
            fast, thorough = by_text(method.fast(reading, b, rows)), by_text(method.thorough(reading, b, rows))
            assert set(fast) == set(thorough) and len(fast) == 40
            for text, score in thorough.items():
                assert fast[text] == pytest.approx(score, abs=1e-4)
                if b == 0:
                    target = torch.tensor([[*text, *([1] if len(text) < 3 else [])]])
                    batch = Batch((Example("x", question, (), ()),), {"target_BT": target}, target.shape[1])
                    assert -nats(method, batch) == pytest.approx(score, abs=1e-4)
        few = by_text(method.fast(reading, 0, [row[:2] for row in beams_BK[0]]))
        for text, score in few.items():
            (whole,) = method.thorough(reading, 0, [[Hypothesis(text, 0.0, 0.0, len(text) < 3)]])
            assert score <= whole.logprob + 1e-4
        assert len(few) < 2 * K, "no text was found under two passages: the sum is not tested"
    found = {}
    for scoring in RAG_SEQUENCE:
        method.decoding = dataclasses.replace(method.decoding, rag_sequence=scoring)
        (found[scoring],) = method.answer([question])
    assert found["fast"].text == found["thorough"].text
    assert found["fast"].logprob == pytest.approx(found["thorough"].logprob, abs=1e-4)


@pytest.mark.parametrize("change", [{}, {"beams": 1}, {"sample": True}])
def test_with_one_passage_all_are_a_plain_search(tiny: Tiny, change: dict[str, Any]) -> None:
    """Ranked by probability, RAG-Sequence and RAG-Token are the same method when K = 1: mT5 on the question with that passage."""
    decoding = dataclasses.replace(Decoding(beams=4, answer_tokens=5, length_power=0.0), **change)
    questions = tiny.questions[:6]
    method = token(tiny, 1, decoding=decoding)
    ours, theirs = method.answer(questions), sequence(tiny, 1, decoding=decoding).answer(questions)
    assert len({answer.text for answer in ours}) > 1
    for question, one, two in zip(questions, ours, theirs, strict=True):
        (hit,) = method.retriever.retrieve([question], 1)[0]
        ids, mask = tiny.sentencepiece.pairs([question], [hit.passage.text], SOURCE_TOKENS)
        with torch.no_grad():
            past = method.generator.stepper(method.generator.encode(ids, mask), mask, decoding.width)
            ((plain, *_),) = writing.search(past, [question], tiny.sentencepiece, decoding, torch.device("cpu"))
        assert one.text == tiny.sentencepiece.decode(plain.tokens) and one.tokens == plain.written
        assert one.logprob == pytest.approx(plain.logprob, abs=1e-4)
        assert (one.text, one.tokens, one.hits, one.confidence) == (two.text, two.tokens, two.hits, two.confidence)
        assert one.logprob == pytest.approx(two.logprob, abs=1e-4)


def test_rag_sequence_draws_a_passage_then_a_text_from_it(tiny: Tiny) -> None:
    """Passages as often as the prior says; the answer's log-probability is over all passages, or, fast, with the one drawn."""
    method = sequence(tiny, decoding=Decoding(sample=True, answer_tokens=2), leave_out_own=False)
    with torch.no_grad():
        reading = reader.read(method.retriever, method.generator, ["咳嗽"], method.config)
        counts, draws = [0] * K, 200
        for seed in range(draws):
            method.decoding = dataclasses.replace(method.decoding, seed=seed)
            (found,) = method.draw(reading, ["咳嗽"])
            assert sorted(map(len, found)) == [0] * (K - 1) + [1]
            counts[[len(row) for row in found].index(1)] += 1
        for count, share in zip(counts, reading.prior_BK[0].exp().tolist(), strict=True):
            assert count / draws == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / draws))
        assert min(counts) > 0
        drawn = next(k for k, row in enumerate(found) if row)
        own = float(reading.prior_BK[0, drawn]) + found[drawn][0].logprob
        assert method.fast(reading, 0, found)[0].logprob == pytest.approx(own, abs=1e-4)
        (whole,) = method.thorough(reading, 0, found)
        assert whole.tokens == found[drawn][0].tokens and whole.logprob > own + 1e-4


@pytest.mark.parametrize("make", [token, sequence])
def test_questions_with_fewer_passages_or_none_stand_beside_others(tiny: Tiny, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An approximate index may find fewer for one question; the others' answers stay what they are, in batches of whatever size."""
    method = make(tiny)
    questions = [*tiny.questions[:7], "？"]
    retrieve = method.retriever.retrieve

    def fewer(asked: Sequence[str], k: int, exclude: Any = None) -> Any:
        most = {questions[1]: 0, questions[2]: 1, questions[5]: 2}
        return [hits[: most.get(question, k)] for question, hits in zip(asked, retrieve(asked, k, exclude), strict=True)]

    monkeypatch.setattr(method.retriever, "retrieve", fewer)
    alone = [method.answer([question])[0] for question in questions]
    assert [len(answer.hits) for answer in alone] == [3, 0, 1, 3, 3, 2, 3, 3]
    assert alone[1] == reader.NOTHING
    for together_tokens, together_questions in ((16_384, 256), (200, 3), (1, 2)):
        monkeypatch.setattr(reader, "TOGETHER_TOKENS", together_tokens)
        monkeypatch.setattr(reader, "TOGETHER_QUESTIONS", together_questions)
        together = method.answer(questions)
        assert [(one.text, one.tokens) for one in together] == [(one.text, one.tokens) for one in alone]
        assert [[hit.passage.id for hit in one.hits] for one in together] == [[hit.passage.id for hit in one.hits] for one in alone]
        assert [one.logprob for one in together] == pytest.approx([one.logprob for one in alone], abs=1e-4)
        assert [one.confidence for one in together] == pytest.approx([one.confidence for one in alone], abs=1e-5)


def test_thorough_decoding_takes_the_best_of_all_beams(tiny: Tiny) -> None:
    """Under few beams the answer is the union's argmax, and its log-probability minus its training loss."""
    method = sequence(tiny, leave_out_own=False)
    questions = tiny.questions[:4]
    answers = method.answer(questions)
    with torch.no_grad():
        reading = reader.read(method.retriever, method.generator, questions, method.config)
        beams_BK = method.search(reading, questions)
    for b, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        scored = {}
        for hypothesis in itertools.chain(*beams_BK[b]):
            target = torch.tensor([[*hypothesis.tokens, *([1] if hypothesis.finished else [])]])
            batch = Batch((Example("x", question, (), ()),), {"target_BT": target}, target.shape[1])
            scored[hypothesis.tokens] = -nats(method, batch)
        best = max(scored, key=lambda tokens: scored[tokens])
        assert len(scored) >= 3
        assert answer.text == tiny.sentencepiece.decode(best)
        assert answer.logprob == pytest.approx(scored[best], abs=1e-4)


def test_bad_options_are_refused(tiny: Tiny) -> None:
    parts = Parts(tiny.retriever(), tiny.generator())
    with pytest.raises(ValueError, match="passages=0; it must be 1 or more"):
        rag_sequence.build(rag_sequence.Config(passages=0), parts)
    with pytest.raises(ValueError, match="passages=0; it must be 1 or more"):
        rag_token.build(rag_token.Config(passages=0), parts)
