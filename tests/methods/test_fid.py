"""Fusion-in-Decoder: against plain mT5, transformers and loops; the retriever that learns from it: against loops, and on a task with one answer."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny
from oracle import transformers_t5
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from medrag import generator, reader, weights
from medrag.generator import Generator, writing
from medrag.generator.decoding import Decoding
from medrag.methods import Batch, Parts, fid, rag_sequence, rag_token
from medrag.methods.fid import RETRIEVER_LOSSES, Fid, join
from medrag.retriever import Retriever
from medrag.types import Example, Passage

K, SOURCE_TOKENS = 3, 40
TEACHING = [name for name in RETRIEVER_LOSSES if name != "none"]
teaching = pytest.mark.parametrize("kind", TEACHING)


def make(
    tiny: Tiny,
    kind: str = "none",
    passages: int = K,
    leave_out_own: bool = True,
    dropout: float = 0.0,
    finder: Retriever | None = None,
    **options: Any,
) -> Fid:
    config = fid.Config(passages, SOURCE_TOKENS, 16, leave_out_own, kind, **options)
    writer = tiny.generator()
    if dropout:
        torch.manual_seed(0)
        shape = generator.Config(width=32, head_width=8, heads=4, layers=2, feed_forward=48, dropout=dropout)
        writer = generator.build(shape, tiny.sentencepiece)
    method = fid.build(config, Parts(finder or tiny.retriever(fixed=True), writer))
    method.decoding = Decoding(beams=3, answer_tokens=6)
    return method.eval()


def sums(method: Fid, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return method._nats(batch)


def read(method: Fid, examples: Sequence[Example]) -> reader.Reading:
    with torch.no_grad():
        return reader.study(method.retriever, method.generator, examples, method.config)


# -- reading --------------------------------------------------------------------------------------------------------------------


def test_one_passage_is_plain_mt5(tiny: Tiny) -> None:
    """Loss and answer are those of transformers' mT5 on the question and that passage."""
    method = make(tiny, passages=1)
    oracle = transformers_t5(method.generator)
    for example in tiny.examples[:3]:
        (hit,) = method.retriever.retrieve([example.question], 1, [example.positives])[0]
        ids, mask = tiny.sentencepiece.pairs([example.question], [hit.passage.text], SOURCE_TOKENS)
        batch = method.collate([example])
        with torch.no_grad():
            expected = oracle(input_ids=ids, attention_mask=mask.long(), labels=batch.tensors["target_BT"]).loss
            assert float(method(batch)) == pytest.approx(float(expected), abs=1e-4)
            (hit,) = method.retriever.retrieve([example.question], 1)[0]
            ids, mask = tiny.sentencepiece.pairs([example.question], [hit.passage.text], SOURCE_TOKENS)
            past = method.generator.stepper(method.generator.encode(ids, mask), mask, method.decoding.beams)
            best = writing.search(past, [example.question], tiny.sentencepiece, method.decoding, torch.device("cpu"))[0][0]
        (answer,) = method.answer([example.question])
        assert answer.text == tiny.sentencepiece.decode(best.tokens) and answer.hits == (hit,)
        assert answer.logprob == pytest.approx(best.logprob, abs=1e-4)
        *pieces, last = method.stream(example.question)
        assert "".join(map(str, pieces)) == answer.text and last == answer


def test_many_passages_are_their_states_in_one_row(tiny: Tiny) -> None:
    """As the authors' code does it: states and masks reshaped, padding and all, and handed to transformers' decoder."""
    method = make(tiny)
    examples = tiny.examples[:4]
    batch = method.collate(examples)
    reading = read(method, examples)
    assert len(set(reading.mask_NL.sum(1).tolist())) > 1 and not reading.mask_NL.all()
    labels_BT = batch.tensors["target_BT"].masked_fill(batch.tensors["target_BT"] == 0, -100)
    with torch.no_grad():
        logits = transformers_t5(method.generator)(
            encoder_outputs=BaseModelOutput(reading.state_NLD.reshape(4, -1, 32)), attention_mask=reading.mask_NL.view(4, -1).long(), labels=labels_BT
        ).logits
    nats_B = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels_BT, reduction="none").sum(1)
    assert torch.allclose(sums(method, batch)[0], nats_B, atol=1e-4)
    assert float(method(batch).detach()) == pytest.approx(float(nats_B.sum()) / batch.weight, abs=1e-5)


def test_all_passages_are_read_in_any_order(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same passages in another order give the same loss and the same answer; another passage does not."""
    method = make(tiny, leave_out_own=False)
    batch = method.collate(tiny.examples[:3])
    plain, answers = sums(method, batch)[0], method.answer(tiny.questions[:3])
    found = method.retriever.retrieve(tiny.questions[:3], K + 1)
    for changed in (False, True):
        rows = [[row[2], row[0], row[3 if changed else 1]] for row in found]
        monkeypatch.setattr(method.retriever, "retrieve", lambda *_, rows=rows: rows)
        assert torch.allclose(sums(method, batch)[0], plain, atol=1e-4) is not changed
        again = method.answer(tiny.questions[:3])
        assert changed or [answer.text for answer in again] == [answer.text for answer in answers]
        same = [a.logprob == pytest.approx(b.logprob, abs=1e-4) for a, b in zip(again, answers, strict=True)]
        assert not any(same) if changed else all(same)


def test_padding_makes_no_difference_and_is_dropped(tiny: Tiny) -> None:
    """A question alone reads what it reads beside longer ones; what stands in the padding is never seen."""
    method = make(tiny)
    together = sums(method, method.collate(tiny.examples[:6]))[0]
    alone = torch.cat([sums(method, method.collate([example]))[0] for example in tiny.examples[:6]])
    assert torch.allclose(together, alone, atol=1e-4)
    reading = read(method, tiny.examples[:6])
    joined = join(reading.state_NLD, reading.mask_NL, K)
    spoilt = join(reading.state_NLD.masked_fill(~reading.mask_NL.unsqueeze(-1), 1e6), reading.mask_NL, K)
    lengths_B = reading.mask_NL.view(6, -1).sum(1)
    assert joined.state_BPD.shape[1] == int(lengths_B.max()) < K * reading.mask_NL.shape[1]
    assert joined.mask_BP.sum(1).tolist() == lengths_B.tolist()
    assert torch.equal(spoilt.state_BPD[spoilt.mask_BP], joined.state_BPD[joined.mask_BP])


def test_every_place_belongs_to_its_passage() -> None:
    state_NLD = torch.arange(4.0).view(4, 1, 1).expand(4, 3, 2)
    mask_NL = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0]]).bool()
    joined = join(state_NLD, mask_NL, 2)
    assert joined.state_BPD[..., 0].tolist() == [[0, 1, 1, 1], [2, 2, 3, 3]]
    assert joined.mask_BP.all()
    assert joined.own_BKP.int().tolist() == [[[1, 0, 0, 0], [0, 1, 1, 1]], [[1, 1, 0, 0], [0, 0, 1, 1]]]
    joined = join(state_NLD, mask_NL & (torch.arange(4) != 3).unsqueeze(1) | torch.tensor([[0, 0, 0]] * 3 + [[1, 0, 0]]).bool(), 2)
    assert joined.mask_BP.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert joined.own_BKP[1].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]


def test_it_learns_a_tiny_corpus(tiny: Tiny) -> None:
    """Reading the very answers, it comes to write them; the question encoder stays where it was, decay or not."""
    method = make(tiny, leave_out_own=False)
    examples = [dataclasses.replace(example, answers=(example.answers[0][:3],)) for example in tiny.examples[:4]]
    before = copy.deepcopy(method.retriever.state_dict())
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in method.generator.parameters()}
    optimizer = torch.optim.AdamW(method.parameters(), 1e-2, weight_decay=0.1)
    method.train()
    assert not method.retriever.training and method.generator.training
    for _ in range(30):
        optimizer.zero_grad()
        loss = method(method.collate(examples))
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    assert all(torch.equal(value, before[name]) for name, value in method.retriever.state_dict().items())
    method.eval()
    assert [answer.text for answer in method.answer(tiny.questions[:4])] == [example.answers[0] for example in examples]


@pytest.mark.parametrize("kind", ["none", "pdist"])
def test_saved_is_loaded(tiny: Tiny, kind: str, tmp_path: Path) -> None:
    method = make(tiny, kind)
    weights.save(method, tmp_path / "weights.safetensors")
    finder = tiny.retriever(fixed=True)
    finder.question_encoder = tiny.encoder(seed=7)
    other = fid.build(method.config, Parts(finder, tiny.generator(seed=7))).eval()
    other.decoding = method.decoding
    assert other.answer(tiny.questions[:3]) != method.answer(tiny.questions[:3])
    weights.load(other, tmp_path / "weights.safetensors")
    assert other.answer(tiny.questions[:3]) == method.answer(tiny.questions[:3])


def test_the_own_passage_and_its_near_duplicates_are_read_only_when_answering(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default: options that say nothing leave them out."""
    assert fid.Config().leave_out_own
    finder = tiny.retriever(remember=False)
    twin = dataclasses.replace(tiny.passages[4], id="twin", text=tiny.passages[4].text + "！", group="g")
    finder.remember([*tiny.passages[:4], dataclasses.replace(tiny.passages[4], group="g"), *tiny.passages[5:], twin])
    method = make(tiny, passages=31, finder=finder)
    method.decoding = Decoding(beams=1, answer_tokens=2)
    example = dataclasses.replace(tiny.examples[4], positives=("p4",))
    seen: list[reader.Reading] = []
    plain = reader.read

    def watch(*given: Any) -> reader.Reading:
        seen.append(plain(*given))
        return seen[-1]

    monkeypatch.setattr(reader, "read", watch)
    method(method.collate([example]))
    assert {hit.passage.id for hit in seen[-1].hits[0]} == set(tiny.library) - {"p4"}
    (answer,) = method.answer([example.question])
    assert {hit.passage.id for hit in answer.hits} == {*tiny.library, "twin"}
    method.config.leave_out_own = False
    method(method.collate([example]))
    assert {hit.passage.id for hit in seen[-1].hits[0]} == {*tiny.library, "twin"}


# -- teaching the retriever -----------------------------------------------------------------------------------------------------


def by_loops(method: Fid, examples: Sequence[Example], kind: str, student_temperature: float, target_temperature: float) -> list[float]:
    """Passage by passage and token by token, each alone in its batch, from the scores that retrieval gave: one value a question."""
    writer, pieces = method.generator, method.generator.sentencepiece
    out = []
    for example in examples:
        (hits,) = method.retriever.retrieve([example.question], K, [example.positives])
        student = _softmax([hit.score / student_temperature for hit in hits])
        target, _ = pieces.batch([example.answers[0]], 16)
        states = []
        for hit in hits:
            ids, mask = pieces.pairs([example.question], [hit.passage.text], SOURCE_TOKENS)
            states.append(writer.encode(ids, mask))
        alone = [_tokens(writer, [state], target) for state in states]
        if kind == "emdr2":
            out.append(-sum(math.log(sum(s * math.exp(row[t]) for s, row in zip(student, alone, strict=True))) for t in range(target.shape[1])))
            continue
        if kind == "pdist":
            gains = [sum(row) / len(row) for row in alone]
        elif kind == "loop":
            without = [_tokens(writer, states[:k] + states[k + 1 :], target) for k in range(K)]
            gains = [-sum(row) / len(row) for row in without]
        else:
            joined = torch.cat(states, dim=1)
            score_L = writer.first_attention(joined, torch.ones(joined.shape[:2], dtype=torch.bool))[0].tolist()
            gains, at = [], 0
            for state in states:
                gains.append(sum(score_L[at : at + state.shape[1]]) / state.shape[1])
                at += state.shape[1]
        teacher = _softmax([gain / target_temperature for gain in gains])
        divergence = sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))
        out.append(divergence / K * target.shape[1])
    return out


def _softmax(scores: Sequence[float]) -> list[float]:
    mass = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(mass) for value in mass]


def _tokens(writer: Generator, states: list[Tensor], target: Tensor) -> list[float]:
    joined = torch.cat(states, dim=1)
    found: list[float] = writer.decode(joined, torch.ones(joined.shape[:2], dtype=torch.bool), target)[0].tolist()
    return found


@teaching
@pytest.mark.parametrize("student_temperature", [1.0, 2.0])
def test_the_retrievers_loss_equals_loops(tiny: Tiny, kind: str, student_temperature: float) -> None:
    """And it is added to the reader's, with its weight, per target token."""
    asked = 0.0 if kind == "emdr2" or student_temperature == 1 else 0.5
    method = make(tiny, kind, student_temperature=student_temperature, target_temperature=asked, retriever_weight=0.25)
    examples = tiny.examples[:4]
    batch = method.collate(examples)
    read_B, taught_B = sums(method, batch)
    with torch.no_grad():
        expected = by_loops(method, examples, kind, student_temperature, asked or fid.TARGET_TEMPERATURES.get(kind, 1.0))
    assert taught_B.tolist() == pytest.approx(expected, abs=2e-3, rel=1e-3)
    assert min(expected) > 1e-3
    assert torch.allclose(read_B, sums(make(tiny), batch)[0], atol=1e-5)
    assert float(method(batch).detach()) == pytest.approx(float(read_B.sum() + 0.25 * taught_B.sum()) / batch.weight, rel=1e-5)
    measured = method.validate(examples, 3)
    assert list(measured) == ["minus_nats", "retriever_loss", "distinct_first_hits", "prior_nats"]
    assert measured["minus_nats"] == pytest.approx(-float(read_B.sum()) / batch.weight, abs=1e-4)
    assert measured["retriever_loss"] == pytest.approx(float(taught_B.sum()) / batch.weight, abs=1e-3)


@teaching
def test_each_part_gets_its_own_gradient(tiny: Tiny, kind: str) -> None:
    """The reader's is that of its own loss alone, the question encoder's that of the retriever's loss alone, and the index stays."""
    plain, method = make(tiny).train(), make(tiny, kind).train()
    vectors = method.retriever.index.vectors(range(30)).copy()
    for one in (plain, method):
        one(one.collate(tiny.examples[:4])).backward()
    for (name, ours), theirs in zip(method.generator.named_parameters(), plain.generator.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5), name
    assert all(parameter.grad is None for parameter in plain.retriever.parameters())
    found = [parameter.grad for parameter in method.retriever.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in found)
    method.zero_grad()
    _, taught_B = method._nats(method.collate(tiny.examples[:4]))
    (taught_B.sum() / method.collate(tiny.examples[:4]).weight).backward()  # type: ignore[no-untyped-call]
    again = [parameter.grad for parameter in method.retriever.parameters()]
    assert sum(float(gradient.abs().sum()) for gradient in again if gradient is not None) > 1e-4
    for whole, part in zip(found, again, strict=True):
        assert whole is not None and part is not None and torch.allclose(whole, part, atol=1e-5)
    assert all(parameter.grad is None for parameter in method.generator.parameters())
    assert (method.retriever.index.vectors(range(30)) == vectors).all()


@teaching
def test_asking_the_reader_draws_nothing(tiny: Tiny, kind: str) -> None:
    """Under dropout the reader's own loss and the state of torch's generator are those of a run whose retriever is not taught."""
    found = []
    for one in ("none", kind):
        method = make(tiny, one, dropout=0.3).train()
        batch = method.collate(tiny.examples[:4])
        torch.manual_seed(5)
        read_B, _ = sums(method, batch)
        assert method.generator.training
        found.append((read_B, torch.get_rng_state()))
        torch.manual_seed(6)
        assert not torch.allclose(sums(method, batch)[0], read_B)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@teaching
def test_accumulation_and_ranks_change_nothing(tiny: Tiny, kind: str) -> None:
    """Parts of a batch, weighed by their target tokens as the training loop weighs them, give the batch's loss and gradient."""
    method = make(tiny, kind)
    examples = [*tiny.examples[:4], dataclasses.replace(tiny.examples[4], answers=("水",))]
    whole = method.collate(examples)
    loss = method(whole)
    loss.backward()
    gradients = [copy.deepcopy(parameter.grad) for parameter in method.parameters()]
    method.zero_grad()
    total = 0.0
    for part in (examples[:1], examples[1:3], examples[3:]):
        batch = method.collate(part)
        share = method(batch) * (batch.weight / whole.weight)
        share.backward()
        total += float(share.detach())
    assert total == pytest.approx(float(loss.detach()), abs=1e-4)
    for parameter, gradient in zip(method.parameters(), gradients, strict=True):
        assert parameter.grad is not None and gradient is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-4 * max(1.0, float(gradient.abs().max())))


SYMBOLS = "水药糖盐奶菜茶酒"


@pytest.fixture(scope="module")
def copyist(tiny: Tiny) -> Generator:
    """A reader that writes the sign that one of its passages names: the signs are drawn anew each time, so there is nothing else to learn.

    A reader this small may copy from a passage whose mean score before the softmax is low, so its attention is taught to point there as well.
    """
    writer, pieces = tiny.generator(seed=3), tiny.sentencepiece
    optimizer = torch.optim.Adam(writer.parameters(), 1e-2)
    for _ in range(60):
        drawn, asked = torch.randint(len(SYMBOLS), (16,)).tolist(), torch.randint(len(tiny.questions), (16,)).tolist()
        slot_B = torch.randint(K, (16,))
        tails = [_names(SYMBOLS[drawn[b]]) if k == int(slot_B[b]) else _says_nothing(b + k) for b in range(16) for k in range(K)]
        ids_NL, mask_NL = pieces.pairs([tiny.questions[asked[b]] for b in range(16) for _ in range(K)], tails, SOURCE_TOKENS)
        joined = join(writer.encode(ids_NL, mask_NL), mask_NL, K)
        target_BT, _ = pieces.batch([SYMBOLS[number] for number in drawn], 16)
        score_BP, own_BKP = writer.first_attention(joined.state_BPD, joined.mask_BP), joined.own_BKP.float()
        gain_BK = torch.einsum("bp,bkp->bk", score_BP, own_BKP) / own_BKP.sum(-1)
        optimizer.zero_grad()
        loss = -writer.decode(joined.state_BPD, joined.mask_BP, target_BT).sum() / 16
        (loss + torch.nn.functional.cross_entropy(gain_BK, slot_B)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss.detach()) < 0.3 and bool((gain_BK.argmax(1) == slot_B).all()), "it has not learned to read"
    return writer.eval()


def _names(symbol: str) -> str:
    return f"吃{symbol}"


def _says_nothing(number: int) -> str:
    return ("休息", "医院", "检查", "走路")[number % 4]


@teaching
def test_a_retriever_taught_by_its_reader_prefers_the_passage_with_the_answer(tiny: Tiny, copyist: Generator, kind: str) -> None:
    """One passage of three names what all questions ask for; whichever it is, its share of the prior rises for every question."""
    for place in range(K):
        passages = [Passage(f"n{k}", _names("糖") if k == place else _says_nothing(k), "test") for k in range(K)]
        finder = tiny.retriever(seed=place, remember=False)
        finder.remember(passages, lexical=False)
        finder.context_encoder = None
        finder.weights = {"dense": 0.1}
        method = Fid(fid.Config(K, SOURCE_TOKENS, 16, False, kind), finder, copyist).eval()
        examples = [Example(f"x{number}", question, ("糖",), ()) for number, question in enumerate(tiny.questions[:6])]

        def share(method: Fid = method, place: int = place) -> list[float]:
            found = method.retriever.retrieve(tiny.questions[:6], K)
            return [_softmax([hit.score for hit in row])[[hit.passage.id for hit in row].index(f"n{place}")] for row in found]

        before = share()
        optimizer = torch.optim.Adam(finder.question_encoder.parameters(), 3e-2)
        for _ in range(6):
            optimizer.zero_grad()
            method(method.collate(examples)).backward()
            optimizer.step()
        copyist.zero_grad()
        after = share()
        assert all(one > two for one, two in zip(after, before, strict=True)), (before, after)
        assert min(after) > 0.5


def test_what_is_read_moves_with_the_question_encoder(tiny: Tiny) -> None:
    """Every step retrieves anew: after the encoder has moved, other passages are read."""
    method = make(tiny, "pdist")
    before = read(method, tiny.examples[:8]).hits
    assert read(method, tiny.examples[:8]).hits == before
    optimizer = torch.optim.SGD(method.retriever.parameters(), 0.5)
    method(method.collate(tiny.examples[:8])).backward()
    optimizer.step()
    after = read(method, tiny.examples[:8]).hits
    assert [[hit.passage.id for hit in row] for row in after] != [[hit.passage.id for hit in row] for row in before]


def test_a_single_passage_teaches_nothing(tiny: Tiny) -> None:
    """Where the index holds but one passage for some question, all read one: the reader still learns."""
    finder = tiny.retriever(remember=False)
    finder.remember(tiny.passages[:2], lexical=False)
    method = make(tiny, "loop", finder=finder)
    read_B, taught_B = sums(method, method.collate(tiny.examples[:2]))
    assert (read_B > 0).all() and (taught_B == 0).all()


@pytest.mark.parametrize("module", [fid, rag_sequence, rag_token])
def test_collapse_would_be_seen_while_training(tiny: Tiny, module: Any) -> None:
    """The criterion comes first; beside it stands how varied the passages are that are found for the development questions."""
    method = module.build(module.Config(K, SOURCE_TOKENS, 16), Parts(tiny.retriever(fixed=True), tiny.generator())).eval()
    measured = method.validate(tiny.examples[:5], 2)
    assert list(measured) == ["minus_nats", "distinct_first_hits", "prior_nats"]
    first = {hits[0].passage.id for hits in method.retriever.retrieve(tiny.questions[:5], 1)}
    assert measured["distinct_first_hits"] == len(first) / 5
    assert measured["minus_nats"] < 0 < measured["prior_nats"] < math.log(K)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"passages": 0}, "passages=0; it must be 1 or more"),
        ({"retriever_loss": "attention"}, "retriever_loss='attention'; allowed: none, fid_kd, emdr2, pdist, loop"),
        ({"retriever_weight": 0.0}, "retriever_weight=0.0; it must be above 0"),
        ({"student_temperature": -1.0}, "student_temperature=-1.0; it must be above 0"),
        ({"target_temperature": -1.0, "retriever_loss": "pdist"}, "target_temperature=-1.0; it must be above 0"),
        ({"target_temperature": 0.1, "retriever_loss": "emdr2"}, "target_temperature=0.1.*counts with retriever_loss=fid_kd, pdist, loop only"),
        ({"passages": 1, "retriever_loss": "loop"}, "passages=1; retriever_loss=loop compares passages: 2 or more"),
    ],
)
def test_bad_options_are_refused(tiny: Tiny, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fid.build(fid.Config(**options), Parts(tiny.retriever(), tiny.generator()))
