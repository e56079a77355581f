"""Span corruption: which tokens are noise (T5's formula), what source and target hold, what is read and learned, how blanks are filled."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import combinations, groupby, pairwise
from pathlib import Path

import pytest
import torch
from commands import ROOT, TINY
from conftest import Tiny
from hypothesis import given, settings
from hypothesis.strategies import floats, integers
from test_mlm import publish
from test_vocabulary import TEXTS, mt5_like

from medrag import assemble, config, files, generator
from medrag.__main__ import main
from medrag.assemble import trained
from medrag.generator import Generator, writing
from medrag.generator.decoding import Decoding, Hypothesis
from medrag.methods import Parts, span_corruption
from medrag.methods.span_corruption import Config, SpanCorruption, corrupt, noise_mask
from medrag.types import Example, Passage
from medrag.vocabulary import Sentencepiece


def make(tiny: Tiny, config: Config | None = None, sentencepiece: Sentencepiece | None = None) -> SpanCorruption:
    made = tiny.generator()
    if sentencepiece is not None:
        torch.manual_seed(0)
        shape = generator.Config(width=32, head_width=8, heads=4, layers=2, feed_forward=48, dropout=0.0)
        made = generator.build(shape, sentencepiece).eval()
    method = span_corruption.build(config or Config(tokens=48), Parts(generator=made)).eval()
    method.decoding = Decoding(beams=2, answer_tokens=8)
    return method


def example(text: str, name: str = "t") -> Example:
    return Example(name, "", (text,), ())


# what is noise


@pytest.mark.parametrize(("share", "span"), [(0.15, 3.0), (0.5, 3.0), (0.5, 1.0), (0.02, 10.0), (0.9, 2.5)])
@pytest.mark.parametrize("length", [2, 3, 7, 20, 100, 253])
def test_noise_and_spans_are_as_many_as_t5_has(length: int, share: float, span: float) -> None:
    """Exactly so in every draw; a span more where the roll has carried one over the end."""
    noise = min(max(round(length * share), 1), length - 1)
    spans = min(max(round(noise / span), 1), length - noise)
    for _ in range(40):
        mask = noise_mask(length, Config(noise_share=share, span_tokens=span), None)
        runs = sum(noisy for noisy, _ in groupby(mask))
        assert len(mask) == length and sum(mask) == noise
        assert runs == spans or (runs == spans + 1 and mask[0] and mask[-1])


def test_masks_are_as_likely_as_in_t5() -> None:
    """Against T5's ``random_spans_noise_mask`` written out: both sums of lengths, each equally likely, in turn, kept first, then rolled."""
    length, noise, spans = 9, 4, 2

    def sums(count: int) -> list[list[int]]:
        return [[b - a for a, b in pairwise((0, *cuts, count))] for cuts in combinations(range(1, count), spans - 1)]

    expected: Counter[tuple[bool, ...]] = Counter()
    for kept in sums(length - noise):
        for noisy in sums(noise):
            plain = [mark for pair in zip(kept, noisy, strict=True) for mark, size in zip((False, True), pair, strict=True) for _ in range(size)]
            for shift in range(length):
                expected[tuple(plain[-shift:] + plain[:-shift])] += 1
    draws = 20_000
    found = Counter(tuple(noise_mask(length, Config(noise_share=0.45, span_tokens=2.0), None)) for _ in range(draws))
    assert found.keys() == expected.keys()
    chances = {mask: draws * count / expected.total() for mask, count in expected.items()}
    square = math.fsum((found[mask] - chance) ** 2 / chance for mask, chance in chances.items())
    free = len(chances) - 1
    assert square < free + 4 * math.sqrt(2 * free), "four standard deviations of chi squared"


def test_every_place_is_as_often_noise_as_any_other() -> None:
    """A question of 12 tokens has one span: without the roll it would always be its end."""
    places = Counter(place for _ in range(3000) for place, noisy in enumerate(noise_mask(12, Config(), None)) if noisy)
    assert sorted(places) == list(range(12))
    assert all(count == pytest.approx(500, abs=100) for count in places.values())


# what source and target hold


def rebuilt(source: list[int], target: list[int], sentinels: list[int]) -> list[int]:
    """The text again: every sentinel of the source gives way to what stands behind it in the target."""
    behind: dict[int, list[int]] = {}
    for token in target:
        if token in sentinels:
            assert token not in behind
            behind[token] = []
        else:
            behind[list(behind)[-1]].append(token)
    return [kept for token in source for kept in behind.get(token, [token])]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(integers(1, 60), floats(0.01, 0.99), floats(1.0, 8.0), integers(0, 10**6))
def test_source_and_target_give_the_text_back(length: int, share: float, span: float, seed: int) -> None:
    sentinels, tokens = list(range(1000, 900, -1)), list(range(10, 10 + length))
    mask = noise_mask(length, Config(noise_share=share, span_tokens=span), torch.Generator().manual_seed(seed))
    source, target = corrupt(tokens, mask, sentinels)
    assert rebuilt(source, target, sentinels) == tokens
    used = [token for token in source if token in sentinels]
    assert used == sentinels[: len(used)], "sentinels stand in order"
    assert [token for token in target if token in sentinels] == sentinels[: len(used) + 1] and target[-1] == sentinels[len(used)]
    assert [token for token in target if token not in sentinels] == [token for token, noisy in zip(tokens, mask, strict=True) if noisy]
    assert all(b in sentinels for a, b in pairwise(target) if a in sentinels and b in sentinels) and len(used) <= sum(mask)


def test_a_known_text(tiny: Tiny) -> None:
    """Figure 2 of Raffel et al.: Thank you for inviting me to your party last week."""
    words, sentinels = list(range(10)), [100, 101, 102, 103]
    mask = [False, False, True, True, False, False, False, False, True, False]
    assert corrupt(words, mask, sentinels) == ([0, 1, 100, 4, 5, 6, 7, 101, 9], [100, 2, 3, 101, 8, 102])


@pytest.mark.parametrize("kind", ["bytes", "mt5"])
@pytest.mark.parametrize(("share", "span"), [(0.15, 3.0), (0.5, 1.0), (0.98, 1.0)])
def test_batches_hold_the_texts_and_stay_within_their_limit(tiny: Tiny, kind: str, share: float, span: float) -> None:
    """Whatever is noise, no source and no target is longer than ``tokens``; the text is cut, and nothing but its end is lost."""
    sentencepiece = tiny.sentencepiece if kind == "bytes" else mt5_like(TEXTS, 700)
    method = make(tiny, Config(tokens=24, noise_share=share, span_tokens=span), sentencepiece)
    texts = [*TEXTS, "".join(TEXTS), "吃", "<extra_id_7>多喝水<extra_id_0>"]
    batch = method.collate([example(text) for text in texts])
    source_BL, mask_BL, target_BT = (batch.tensors[name] for name in ("source_BL", "mask_BL", "target_BT"))
    assert source_BL.shape[1] <= 24 and target_BT.shape[1] <= 24
    assert batch.weight == int((target_BT != 0).sum())
    ends = [row[row != 0].tolist() for row in source_BL], [row[row != 0].tolist() for row in target_BT]
    for text, source, target, mask_L in zip(texts, *ends, mask_BL, strict=True):
        assert source[-1] == target[-1] == sentencepiece.end and int(mask_L.sum()) == len(source)
        plain = [token for token in sentencepiece.processor.encode(text) if token not in sentencepiece.sentinels]
        assert rebuilt(source[:-1], target[:-1], sentencepiece.sentinels) == plain[:21]
        assert target[0] == sentencepiece.sentinels[0], "by name: the real mT5's ids run down"


# what is read


def test_every_text_is_read_to_its_end_in_pieces_that_fit(tiny: Tiny) -> None:
    method = make(tiny, Config(tokens=20))
    long = "。".join(tiny.texts()) + " HPV疫苗 ibuprofen38.5𠮷"
    passages = [Passage("long", long, "test", title="题目"), Passage("short", "多喝水", "test"), Passage("empty", " ", "test")]
    asked = [dataclasses.replace(tiny.examples[0], question=tiny.examples[0].question * 5), tiny.examples[1]]
    read = method.learns_from(asked, passages)
    assert len({piece.id for piece in read}) == len(read)
    assert "".join(piece.answers[0] for piece in read) == asked[0].question + asked[1].question + long + "多喝水"
    assert not any(piece.question or piece.positives for piece in read)
    assert max(len(tiny.sentencepiece.processor.encode(piece.answers[0])) for piece in read) <= 17, "so that collate cuts nothing"
    assert method.collate(read).weight >= 3 * len(read)


@pytest.mark.parametrize(
    ("lost", "words"), [(Example("lost", "", (), ()), "without a text"), (example(" ", "void"), "without a token in their text")]
)
def test_a_text_without_a_token_is_refused_by_name(tiny: Tiny, lost: Example, words: str) -> None:
    with pytest.raises(ValueError, match=rf"{words} .*\['{lost.id}'\]"):
        make(tiny).collate([example("多喝水"), lost])


# what is learned


def test_the_loss_of_a_batch_is_the_mean_over_all_its_tokens(tiny: Tiny) -> None:
    """Each text alone, without padding, by its weight."""
    method = make(tiny)
    texts = [example(text, f"t{number}") for number, text in enumerate(tiny.texts()[:7])]
    batch = method.collate(texts)
    total = 0.0
    with torch.no_grad():
        for source_L, mask_L, target_T in zip(*(batch.tensors[name] for name in ("source_BL", "mask_BL", "target_BT")), strict=True):
            source_1L, target_1T = source_L[mask_L].unsqueeze(0), target_T[target_T != 0].unsqueeze(0)
            seen_1L = torch.ones_like(source_1L, dtype=torch.bool)
            logp_1T = method.generator.decode(method.generator.encode(source_1L, seen_1L), seen_1L, target_1T)
            assert (logp_1T < 0).all()
            total -= float(logp_1T.sum())
        assert float(method(batch)) == pytest.approx(total / batch.weight, rel=1e-5)


def test_it_learns_what_the_text_around_a_blank_says(tiny: Tiny) -> None:
    """From fresh weights to below the entropy of the tokens' frequencies, the best that is possible blindly; then blanks are filled right."""
    method = make(tiny, Config(tokens=48, noise_share=0.3))
    texts = [example(text, f"t{number}") for number, text in enumerate(tiny.texts()[:8])]
    targets = method.collate(texts * 40).tensors["target_BT"]
    share_V = torch.bincount(targets[targets > 0]).double()
    share_V = share_V[share_V > 0] / share_V.sum()
    before = method.validate(texts, 16)
    optimizer = torch.optim.Adam(method.train().parameters(), 5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        method(method.collate(texts)).backward()
        optimizer.step()
    after = method.eval().validate(texts, 16)
    assert list(after) == ["minus_nats"]
    assert before["minus_nats"] < float((share_V * share_V.log()).sum()) < after["minus_nats"] < 0
    offsets = [tiny.sentencepiece.processor.encode(text, return_type="offset_mapping")["offsets"] for text in tiny.texts()[:8]]
    sizes = [round(0.3 * len(row)) for row in offsets]  # in a text this short, the one length of span that is ever learned from
    gaps = [(row[len(row) // 2][0], row[len(row) // 2 + size - 1][1]) for row, size in zip(offsets, sizes, strict=True)]
    answers = method.answer([f"{text[:start]}【】{text[end:]}" for text, (start, end) in zip(tiny.texts(), gaps, strict=False)])
    right = [answer.text == text for answer, text in zip(answers, tiny.texts(), strict=False)]
    assert sum(right) >= 6, [answer.text for answer in answers]


def test_validation_hides_the_same_spans_each_time_and_leaves_training_its_draws(tiny: Tiny) -> None:
    method = make(tiny)
    texts = [example(text, f"t{number}") for number, text in enumerate(tiny.texts()[:13])]
    torch.manual_seed(1)
    first = method.validate(texts, 4)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    assert method.validate(texts, 5)["minus_nats"] == pytest.approx(first["minus_nats"], abs=1e-4)


# what is answered


@pytest.mark.parametrize("kind", ["bytes", "mt5"])
def test_blanks_take_what_stands_behind_their_sentinels(tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read holds the sentinels by name; what is written goes into the blanks, each sentinel's first time; the rest stays."""
    sentencepiece = tiny.sentencepiece if kind == "bytes" else mt5_like([*TEXTS, *tiny.texts()], 700)
    method = make(tiny, sentencepiece=sentencepiece)
    read: list[list[int]] = []
    encode = Generator.encode
    first, second, third = sentencepiece.sentinels[:3]

    def reading(self: Generator, ids_NL: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
        read.extend(ids_L[mask_L].tolist() for ids_L, mask_L in zip(ids_NL, mask_NL, strict=True))
        return encode(self, ids_NL, mask_NL)

    def written(*_: object, sentinels: bool) -> list[list[Hypothesis]]:
        assert sentinels
        coffee, sweet, water = (sentencepiece.processor.encode(word) for word in ("咖啡", "血糖", "喝水"))
        rows = [[first, *coffee, second, sentencepiece.end], [second, *sweet, first, *coffee, third, first, *water], [], coffee, [first, *water]]
        return [[Hypothesis(tuple(tokens), -2.0, -2.0)] for tokens in rows]

    monkeypatch.setattr(Generator, "encode", reading)
    monkeypatch.setattr(writing, "search", written)
    questions = ["孕期可以喝【】吗？", "吃<extra_id_5>和【 】怎么办", "多【】", "多【】", "宝宝要多"]
    answers = method.answer(questions)
    texts = ["孕期可以喝咖啡吗？", "吃咖啡和血糖怎么办", "多【】", "多【】", "宝宝要多喝水"]
    assert [answer.text for answer in answers] == texts
    assert [answer.confidence > 0 for answer in answers] == [True, True, False, False, True]
    assert [[token for token in row if token in sentencepiece.sentinels] for row in read] == [[first], [first, second], [first], [first], [first]]
    whole = sentencepiece.processor.encode("孕期可以喝咖啡吗？")
    tail = read[0][read[0].index(first) + 1 : -1]
    assert sentencepiece.decode(tail).replace("?", "？") == "吗？" and whole[-len(tail) :] == tail, (
        "what follows a blank is read as in the middle of a text"
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_the_logprob_of_an_answer_is_minus_its_loss(tiny: Tiny, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentinels may be written, and count like any other token."""
    found: list[list[list[Hypothesis]]] = []
    search = writing.search

    def watching(*arguments: object, sentinels: bool) -> list[list[Hypothesis]]:
        found.append(search(*arguments, sentinels=sentinels))  # type: ignore[arg-type,misc]
        return found[-1]

    monkeypatch.setattr(writing, "search", watching)
    method = make(tiny)
    with torch.no_grad():
        method.generator.network.lm_head.weight[tiny.sentencepiece.sentinels[:3]] *= 4
    method.decoding = Decoding(beams=beams, answer_tokens=6)
    questions = [f"{question[:3]}【】{question[4:]}" for question in tiny.questions[:8]]
    seen = 0
    for question, answer, hypotheses in zip(questions, method.answer(questions), found[0], strict=True):
        best = hypotheses[0]
        source_1L, mask_1L = tiny.sentencepiece.batch([question.replace("【】", "<extra_id_0>")], 48)
        target_1T = torch.tensor([[*best.tokens, *([tiny.sentencepiece.end] if best.finished else [])]])
        with torch.no_grad():
            logp = float(method.generator.decode(method.generator.encode(source_1L, mask_1L), mask_1L, target_1T).sum())
        assert answer.logprob == best.logprob == pytest.approx(logp, abs=1e-4) and answer.tokens == target_1T.shape[1]
        seen += len(set(best.tokens) & set(tiny.sentencepiece.sentinels))
    assert seen > 0


def test_a_blank_out_of_reach_stays(tiny: Tiny) -> None:
    (answer,) = make(tiny).answer(["多喝水" * 30 + "【】"])
    assert answer.text == "多喝水" * 30 + "【】" and answer.confidence == 0
    (many,) = make(tiny, Config(tokens=240)).answer(["【】" * 120])
    assert many.text.endswith("【】" * 21), "there are 100 sentinels, and the last one ends what is written"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Config(tokens=7), r"task\.options\.tokens=7; it must be 8 or more"),
        (Config(noise_share=1.0), r"task\.options\.noise_share=1\.0"),
        (Config(noise_share=0.0), r"task\.options\.noise_share=0\.0"),
        (Config(span_tokens=0.5), r"task\.options\.span_tokens=0\.5; it must be 1 or more"),
        (Config(span_tokens=math.nan), r"task\.options\.span_tokens=nan"),
        (Config(tokens=512, noise_share=0.3, span_tokens=1.5), r"needs 104 sentinels; the generator's vocabulary has 100"),
    ],
)
def test_options_out_of_range_are_named(tiny: Tiny, options: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny, options)


def test_a_batch_of_the_most_spans_has_sentinels_enough(tiny: Tiny) -> None:
    """As many spans as ``build`` allows, one of them halved by the roll, and the sentinel at the end."""
    method = make(tiny, Config(tokens=199, noise_share=0.5, span_tokens=1.0))
    with pytest.raises(ValueError, match="needs 101 sentinels"):
        make(tiny, Config(tokens=201, noise_share=0.5, span_tokens=1.0))
    long = "喝水" * 400
    used = max(
        int(torch.isin(row, torch.tensor(tiny.sentencepiece.sentinels)).sum()) for row in method.collate([example(long)] * 20).tensors["target_BT"]
    )
    assert used in (99, 100)


# what starts from it

READS = ["model.generator.copying=false", *TINY, "task=span_corruption", "task.options.tokens=32", "task.global_batch=32", "hardware.devices=1"]
WRITES = [
    "model.generator.copying=false",
    *TINY,
    "task=closed_book",
    "task.options.source_tokens=32",
    "task.options.answer_tokens=32",
    "task.global_batch=32",
    "hardware.devices=1",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a span_corruption artifact of weights that nobody trained."""
    folder = tmp_path_factory.mktemp("spans")
    lines = (ROOT / "corpora" / "maternal.jsonl").read_text("utf-8").splitlines()[:64]
    (folder / "some.jsonl").write_text("\n".join(lines), "utf-8")
    assert main(["prepare", str(folder / "some.jsonl"), f"store={folder / 'store'}", "prepare.dev_share=0.1", "prepare.test_share=0.05"]) == 0
    publish(folder / "store", [*READS, "seed=7"])
    return folder / "store"


def of(built: trained.Built) -> Generator:
    found = getattr(built.method, "generator", None)
    assert isinstance(found, Generator)
    return found


def test_a_saved_model_is_the_loaded_one(store: Path) -> None:
    run = config.compose([f"store={store}", *READS, "seed=7", "answer.decoding.answer_tokens=8"])
    made = assemble.fresh(run, assemble.corpus(run)).method.eval()
    made.decoding = run.answer.decoding
    assert trained.load(run, "span_corruption").answer(["孕期可以喝【】啡吗", "多喝水"]) == made.answer(["孕期可以喝【】啡吗", "多喝水"])


def test_closed_book_starts_from_exactly_its_weights(store: Path) -> None:
    run = config.compose([f"store={store}", *WRITES, "task.start=span_corruption"])
    built = assemble.fresh(run, assemble.corpus(run))
    parent = files.current(store, "span_corruption")
    kept = getattr(trained.restore(parent, None), "generator", None)
    assert isinstance(kept, Generator)
    own = of(built).state_dict()
    assert own.keys() == kept.state_dict().keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in kept.state_dict().items())
    assert of(built).sentencepiece.proto == kept.sentencepiece.proto
    assert {one.kind: one.hash for one in built.parents}["span_corruption"] == parent.hash
    plain = config.compose([f"store={store}", *WRITES])
    other = assemble.fresh(plain, assemble.corpus(plain))
    assert any(not torch.equal(tensor, own[name]) for name, tensor in of(other).state_dict().items())
    assert assemble.key(run, built) != assemble.key(plain, other)


def test_what_was_learned_from_bare_texts_helps_to_learn_answers(store: Path) -> None:
    """The loss falls, and closed_book begins at a lower one than from nothing."""
    run = config.compose([f"store={store}", *READS, "seed=8"])
    data = assemble.corpus(run)
    built = assemble.fresh(run, data)
    texts = list(built.method.learns_from(data.train, data.passages))
    optimizer = torch.optim.Adam(built.method.train().parameters(), 1e-2)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = built.method(built.method.collate([texts[(32 * step + number) % len(texts)] for number in range(32)]))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < losses[0] - 1
    with files.publish(store, "span_corruption", key=assemble.key(run, built), parents=built.parents) as folder:
        trained.save(built, folder)
    first = []
    for start in ("", "span_corruption"):
        writes = config.compose([f"store={store}", *WRITES, *([f"task.start={start}"] if start else [])])
        method = assemble.fresh(writes, data).method.eval()
        first.append(method.validate(data.dev, 8)["minus_nats"])
    assert first[1] > first[0] + 0.5
