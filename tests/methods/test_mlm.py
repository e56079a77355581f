"""Masked language modelling: which tokens are hidden, what the loss is, which texts are read, how blanks are filled."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import ROOT, TINY, medrag
from conftest import Tiny
from torch.nn import functional as F

from medrag import assemble, config, encoder, files
from medrag.__main__ import main
from medrag.assemble import trained
from medrag.encoder import Encoder
from medrag.files import Artifact
from medrag.methods import Parts, mlm
from medrag.methods.mlm import Config, MaskedLanguageModel
from medrag.retriever import Retriever
from medrag.text import Segmenter
from medrag.types import Example, Passage
from medrag.vocabulary import Wordpiece

TEXT = "孕期血糖高怎么办少吃甜食饭后走路按时测血糖头痛很重要马上去医院"


def make(tiny: Tiny, config: Config | None = None, wordpiece: Wordpiece | None = None) -> MaskedLanguageModel:
    return mlm.build(config or Config(tokens=48), Parts(encoder=tiny.encoder(), wordpiece=wordpiece or tiny.wordpiece)).eval()


def example(text: str, name: str = "t") -> Example:
    return Example(name, "", (text,), ())


# what is hidden


@pytest.mark.parametrize("span", [1, 3])
def test_what_is_hidden_and_what_stands_in_its_place(tiny: Tiny, span: int) -> None:
    """15% of the tokens, never [CLS], [SEP] or padding; 80% of them [MASK], 10% any token, 10% as they were; the rest untouched."""
    method = make(tiny, Config(tokens=48, span=span))
    texts = [TEXT, TEXT[:20], TEXT[:7], TEXT[0]] * 50
    plain_BL, mask_BL = tiny.wordpiece.batch(texts, 48)
    batch = method.collate([example(text) for text in texts])
    ids_BL, place_M, token_M = (batch.tensors[name] for name in ("ids_BL", "place_M", "token_M"))
    assert torch.equal(batch.tensors["mask_BL"], mask_BL)
    assert torch.equal(plain_BL.flatten()[place_M], token_M)
    chosen_BL = torch.zeros_like(mask_BL).flatten().index_fill(0, place_M, True).view_as(mask_BL)
    assert torch.equal(ids_BL[~chosen_BL], plain_BL[~chosen_BL])
    assert len(set(place_M.tolist())) == len(place_M) == batch.weight
    lengths = mask_BL.sum(1)
    assert chosen_BL.sum(1).tolist() == [max(1, round(0.15 * (int(length) - 2))) for length in lengths]
    inner_BL = mask_BL.clone()
    inner_BL[:, 0] = False
    inner_BL[torch.arange(len(texts)), lengths - 1] = False
    assert not (chosen_BL & ~inner_BL).any()
    shown_M = ids_BL.flatten()[place_M]
    assert tiny.wordpiece.mask is not None
    shares = [float(fact.float().mean()) for fact in (shown_M == tiny.wordpiece.mask, shown_M == token_M)]
    assert shares == pytest.approx([0.8, 0.1], abs=0.05)


def test_every_place_is_as_likely_as_any_other_when_tokens_are_hidden_alone() -> None:
    counts = Counter(place for _ in range(4000) for place in mlm._choose(10, Config(span=1, masked_share=0.3), None).tolist())
    assert sorted(counts) == list(range(10))
    assert all(count == pytest.approx(1200, abs=150) for count in counts.values())


def test_spans_are_as_long_as_albert_says() -> None:
    """With room for them, runs of n neighbours stand in the ratio 1 : 1/2 : 1/3."""
    runs: Counter[int] = Counter()
    for _ in range(300):
        places = mlm._choose(2000, Config(span=3, masked_share=0.02), None).tolist()
        cuts = [0, *(number for number, (a, b) in enumerate(pairwise(places), 1) if b != a + 1), len(places)]
        runs.update(end - start for start, end in pairwise(cuts))
    assert runs[2] / runs[1] == pytest.approx(1 / 2, rel=0.15)
    assert runs[3] / runs[1] == pytest.approx(1 / 3, rel=0.15)
    assert sum(runs[size] for size in (1, 2, 3)) > 0.9 * runs.total()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_as_many_are_hidden_as_asked_however_short_the_text(length: int, share: float) -> None:
    for span in (1, 2, 5):
        places = mlm._choose(length, Config(span=span, masked_share=share), None).tolist()
        assert len(places) == max(1, round(share * length)) and places == sorted(set(places)) and set(places) <= set(range(length))


# what is learned


def test_the_loss_is_that_of_the_whole_table_at_the_hidden_places(tiny: Tiny) -> None:
    method = make(tiny)
    batch = method.collate([example(TEXT), example(TEXT[:9])])
    ids_BL, mask_BL, place_M, token_M = (batch.tensors[name] for name in ("ids_BL", "mask_BL", "place_M", "token_M"))
    albert = method.encoder.albert
    assert albert is not None
    state_BLD = albert(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
    x_BLE = method.norm(F.gelu(method.dense(state_BLD), approximate="tanh"))
    logp_BLV = F.log_softmax(x_BLE @ albert.embeddings.word_embeddings.weight.T + method.bias_V, dim=-1)
    expected = -logp_BLV.flatten(0, 1)[place_M, token_M].mean()
    assert float(method(batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_it_learns_more_than_how_frequent_tokens_are(tiny: Tiny) -> None:
    """From fresh weights to below the entropy of the tokens' frequencies, which is the best that can be done without the text around a blank."""
    torch.manual_seed(0)
    small = encoder.Config(embedding=16, width=32, layers=2, heads=4, feed_forward=48, dropout=0.0, positions_tokens=64)
    method = mlm.build(Config(tokens=48), Parts(encoder=encoder.build(small, tiny.wordpiece), wordpiece=tiny.wordpiece))
    texts = [example(text, f"t{number}") for number, text in enumerate(tiny.texts())]
    ids_BL, mask_BL = tiny.wordpiece.batch(tiny.texts(), 48)
    share_V = torch.bincount(ids_BL[mask_BL & (ids_BL > 4)]).double()
    share_V = share_V[share_V > 0] / share_V.sum()
    before = method.eval().validate(texts, 16)
    optimizer = torch.optim.Adam(method.train().parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        method(method.collate(texts)).backward()
        optimizer.step()
    after = method.eval().validate(texts, 16)
    assert list(after) == ["minus_nats", "masked_accuracy"]
    assert before["minus_nats"] < float((share_V * share_V.log()).sum()) < after["minus_nats"] < 0
    assert before["masked_accuracy"] < 0.1 < after["masked_accuracy"]


def test_validation_hides_the_same_tokens_each_time_and_leaves_training_its_draws(tiny: Tiny) -> None:
    method = make(tiny)
    texts = [example(text, f"t{number}") for number, text in enumerate(tiny.texts()[:13])]
    torch.manual_seed(1)
    first = method.validate(texts, 4)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    again = method.validate(texts, 5)
    assert again["minus_nats"] == pytest.approx(first["minus_nats"], abs=1e-4)
    assert again["masked_accuracy"] == first["masked_accuracy"]


# what is read


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_every_text_is_read_to_its_end_in_pieces_that_fit(tiny: Tiny, unit: str) -> None:
    wordpiece = tiny.wordpiece if unit == "characters" else Wordpiece.build_words(tiny.texts() * 2, 400, Segmenter())
    method = make(tiny, Config(tokens=20), wordpiece)
    long = "。".join(tiny.texts()) + " HPV疫苗 ibuprofen38.5"
    passages = [Passage("long", long, "test"), Passage("short", "多喝水", "test"), Passage("empty", "", "test")]
    asked = [dataclasses.replace(tiny.examples[0], question=tiny.examples[0].question * 5), tiny.examples[1]]
    read = method.learns_from(asked, passages)
    assert len({piece.id for piece in read}) == len(read)
    assert "".join(piece.answers[0] for piece in read) == asked[0].question + asked[1].question + long + "多喝水"
    assert not any(piece.question or piece.positives for piece in read)
    lengths = wordpiece.batch([piece.answers[0] for piece in read], 512)[1].sum(1)
    assert int(lengths.max()) <= 20
    whole = int(wordpiece.batch([long], 4096)[1].sum()) - 2
    pieces = [int(length) - 2 for piece, length in zip(read, lengths, strict=True) if piece.id.startswith("passage long")]
    assert len(pieces) == math.ceil(whole / 18) and max(pieces) - min(pieces) <= 2, "as few as fit, of like length"
    assert method.collate(read).weight >= len(read)


# what is answered


def test_blanks_are_filled_in_by_the_most_probable_tokens(tiny: Tiny) -> None:
    method = make(tiny)
    one, two, none = method.answer(["孕期可以喝【】啡吗？", "糖[MASK]病【】么办？", "宝宝发烧怎么办"])
    logp_V = _logp(method, tiny, "孕期可以喝[MASK]啡吗？")[0]
    assert one.text == f"孕期可以喝{tiny.wordpiece.tokenizer.id_to_token(int(logp_V.argmax()))}啡吗？".replace("##", "")
    assert one.logprob == pytest.approx(float(logp_V.max()), abs=1e-4)
    assert one.confidence == pytest.approx(math.exp(one.logprob), abs=1e-5)
    best_M = _logp(method, tiny, "糖[MASK]病[MASK]么办？").max(-1).values
    assert two.text.startswith("糖") and two.text.endswith("么办？") and "MASK" not in two.text and "【" not in two.text
    assert two.logprob == pytest.approx(float(best_M.sum()), abs=1e-4)
    assert two.confidence == pytest.approx(math.exp(float(best_M.mean())), abs=1e-5)
    assert none.text.startswith("宝宝发烧怎么办") and len(none.text) > len("宝宝发烧怎么办")


def _logp(method: MaskedLanguageModel, tiny: Tiny, text: str) -> torch.Tensor:
    """(M, V) of the blanks, the special tokens left out."""
    ids_BL, mask_BL = tiny.wordpiece.batch([text], 64)
    assert tiny.wordpiece.mask is not None
    logits_MV = method._logits(ids_BL, mask_BL, (ids_BL == tiny.wordpiece.mask).flatten().nonzero().squeeze(1)).detach()
    logits_MV[:, :5] = -math.inf
    return F.log_softmax(logits_MV, dim=-1)


def test_a_blank_out_of_reach_stays_and_is_no_reason_for_confidence(tiny: Tiny) -> None:
    method = make(tiny)
    far = "多喝水" * 30 + "【】"
    (answer,) = method.answer([far])
    assert answer.text == far and (answer.logprob, answer.confidence) == (0.0, 0.0)
    (some,) = method.answer(["多[MASK]水" + far])
    assert some.text.endswith("【】") and "[MASK]" not in some.text and some.confidence > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(tokens=2), r"task\.options\.tokens=2; allowed: 3 to model\.encoder\.positions_tokens=64"),
        (Config(tokens=65), r"task\.options\.tokens=65"),
        (Config(masked_share=0.0, tokens=48), r"task\.options\.masked_share=0\.0"),
        (Config(span=0, tokens=48), r"task\.options\.span=0"),
    ],
)
def test_options_out_of_range_are_named(tiny: Tiny, config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny, config)


def test_a_text_without_a_token_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"without a token in their text cannot be learned from: \['void'\]"):
        make(tiny).collate([example("多喝水"), example(" ", "void")])


# what starts from it

READS = [*TINY, "task=mlm", "task.options.tokens=32", "task.global_batch=32", "hardware.devices=1"]
FINDS = [*TINY, "task=dense", "task.options.retriever.question_tokens=16", "task.options.retriever.passage_tokens=24", "task.global_batch=16"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and an mlm artifact of weights that nobody trained."""
    folder = tmp_path_factory.mktemp("mlm")
    lines = (ROOT / "corpora" / "maternal.jsonl").read_text("utf-8").splitlines()[:96]
    (folder / "some.jsonl").write_text("\n".join(lines), "utf-8")
    assert main(["prepare", str(folder / "some.jsonl"), f"store={folder / 'store'}", "prepare.dev_share=0.1", "prepare.test_share=0.05"]) == 0
    publish(folder / "store", [*READS, "seed=7"])
    return folder / "store"


def publish(store: Path, settings: list[str]) -> Artifact:
    """The artifact of a method before any training."""
    run = config.compose([f"store={store}", *settings])
    built = assemble.fresh(run, assemble.corpus(run))
    key = assemble.key(run, built)
    with files.publish(store, run.task.method, key=key, parents=built.parents, config={"model": asdict(run.model)}) as folder:
        trained.save(built, folder)
    return files.current(store, run.task.method)


def encoders(run: config.Run) -> tuple[trained.Built, Encoder, Encoder]:
    built = assemble.fresh(run, assemble.corpus(run))
    found = getattr(built.method, "retriever", None)
    assert isinstance(found, Retriever) and found.context_encoder is not None
    return built, found.question_encoder, found.context_encoder


def same(one: Encoder, two: Encoder) -> bool:
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_saved_model_is_the_loaded_one(store: Path) -> None:
    run = config.compose([f"store={store}", *READS, "seed=7"])
    made, loaded = assemble.fresh(run, assemble.corpus(run)).method.eval(), trained.load(run, "mlm")
    assert loaded.answer(["孕期可以喝【】啡吗", "多喝水"]) == made.answer(["孕期可以喝【】啡吗", "多喝水"])


@pytest.mark.parametrize("shared", ["true", "false"])
def test_dense_starts_with_exactly_its_encoder_and_its_vocabulary(store: Path, shared: str) -> None:
    settings = [f"store={store}", *FINDS, f"model.encoder.shared={shared}"]
    run = config.compose([*settings, "task.start=mlm", "model.encoder.pooling=cls", "model.encoder.dropout=0.3"])
    built, question, context = encoders(run)
    parent = files.current(store, "mlm")
    kept = getattr(trained.restore(parent, None), "encoder", None)
    assert isinstance(kept, Encoder)
    assert same(question, kept) and same(context, kept)
    assert (question is context) == (shared == "true")
    assert question.pooling == "cls" and question.albert is not None and question.albert.config.hidden_dropout_prob == 0.3
    finder = getattr(built.method, "retriever", None)
    assert isinstance(finder, Retriever)
    assert finder.wordpiece.tokenizer.to_str() == Wordpiece.load(parent.path).tokenizer.to_str()
    unstarted, plain, _ = encoders(config.compose([*settings, "model.encoder.pooling=cls"]))
    assert not same(plain, kept)
    assert {one.kind: one.hash for one in built.parents}["mlm"] == parent.hash
    assert "mlm" not in {one.kind for one in unstarted.parents}


def test_another_start_is_another_key(store: Path) -> None:
    run = config.compose([f"store={store}", *FINDS, "task.start=mlm"])
    one = assemble.fresh(run, assemble.corpus(run))
    other = dataclasses.replace(
        one, parents=[dataclasses.replace(a, manifest=a.manifest | {"hash": "0" * 64}) if a.kind == "mlm" else a for a in one.parents]
    )
    assert assemble.key(run, one) == assemble.key(run, assemble.fresh(run, assemble.corpus(run))) != assemble.key(run, other)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["model.encoder.width=32"], r"has width=16, so its encoder does not fit model\.encoder\.width=32"),
        (
            ["model.encoder.layers=2", "model.encoder.vocabulary_unit=words"],
            r"vocabulary_unit=characters, layers=1, so .*unit=words, model\.encoder\.layers=2",
        ),
        (["task.start=dense"], r"holds no dense yet"),
        (["task.start=closed_book"], r"task.start='closed_book'; allowed for dense: nothing, dense, mlm"),
    ],
)
def test_what_does_not_fit_is_refused(store: Path, changed: list[str], words: str) -> None:
    run = config.compose([f"store={store}", *FINDS, "task.start=mlm", *changed])
    with pytest.raises(ValueError, match=words):
        assemble.fresh(run, assemble.corpus(run))


def test_dense_starts_from_dense_and_a_stale_start_is_refused(store: Path, tmp_path: Path) -> None:
    copied = tmp_path / "store"
    for path in store.rglob("*"):
        if path.is_file():
            (copied / path.relative_to(store)).parent.mkdir(parents=True, exist_ok=True)
            (copied / path.relative_to(store)).write_bytes(path.read_bytes())
    first = publish(copied, [*FINDS, "model.encoder.shared=false", "seed=5"])
    built, question, context = encoders(config.compose([f"store={copied}", *FINDS, "model.encoder.shared=false", "task.start=dense"]))
    kept = getattr(trained.restore(first, None), "retriever", None)
    assert isinstance(kept, Retriever) and kept.context_encoder is not None
    assert same(question, kept.question_encoder) and same(context, kept.context_encoder)
    assert {one.kind: one.hash for one in built.parents}["dense"] == first.hash
    lines = (ROOT / "corpora" / "consultation.jsonl").read_text("utf-8").splitlines()[:60]
    (tmp_path / "other.jsonl").write_text("\n".join(lines), "utf-8")
    assert main(["prepare", str(tmp_path / "other.jsonl"), f"store={copied}"]) == 0
    with pytest.raises(ValueError, match=r"is stale: it was made from another corpus .*run `medrag train task=mlm`"):
        encoders(config.compose([f"store={copied}", *FINDS, "task.start=mlm"]))


def test_from_bare_texts_to_a_retriever_through_the_commands(store: Path) -> None:
    """Pretraining lowers the loss, contrastive training starts from it, and both leave a log and a picture beside their weights."""
    fast = [f"store={store}", "task.learning_rate=5e-3"]
    for settings in ([*READS, *fast, "task.epochs=1", "task.validate_every_steps=10"], [*FINDS, *fast, "task.epochs=0.6", "task.start=mlm"]):
        done = medrag("train", *settings)
        assert done.returncode == 0, done.stderr
        assert "training.png" in done.stdout
    kept, found = files.current(store, "mlm"), files.current(store, "dense")
    assert found.parent("mlm").hash == kept.hash and found.path.joinpath("training.png").read_bytes()[:4] == b"\x89PNG"
    rows = [json.loads(line) for line in (kept.path / "log.jsonl").read_text("utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.3
    measured = [row["validation/minus_nats"] for row in rows if "validation/minus_nats" in row]
    assert measured[-1] > measured[0] and all(0 <= row["validation/masked_accuracy"] <= 1 for row in rows if "validation/masked_accuracy" in row)
