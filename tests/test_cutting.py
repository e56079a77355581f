"""``medrag cut``: what is kept reads, computes and counts as before; what training makes of the folder; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import ROOT
from test_vocabulary import mt5_like
from torch import nn
from transformers import MT5Config, MT5ForConditionalGeneration

from medrag import assemble, config, files, generator
from medrag.__main__ import main
from medrag.assemble import cutting
from medrag.files import Artifact
from medrag.generator import Generator
from medrag.prepare import Corpus
from medrag.vocabulary import Sentencepiece

ROWS = 12
"""more rows of embedding and head than there are pieces, as in the real mT5"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds a prepared corpus of 64 records."""
    folder = tmp_path_factory.mktemp("cutting")
    lines = (ROOT / "corpora" / "maternal.jsonl").read_text("utf-8").splitlines()[:64]
    (folder / "some.jsonl").write_text("\n".join(lines), "utf-8")
    assert main(["prepare", str(folder / "some.jsonl"), f"store={folder / 'store'}", "prepare.dev_share=0.1", "prepare.test_share=0.05"]) == 0
    return folder / "store"


@pytest.fixture(scope="module")
def data(store: Path) -> Corpus:
    return assemble.corpus(config.compose([f"store={store}"]))


@pytest.fixture(scope="module")
def whole(data: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mT5 as transformers keeps it, of another corpus too, with a head of its own."""
    folder = tmp_path_factory.mktemp("mt5")
    other = (ROOT / "corpora" / "consultation.jsonl").read_text("utf-8").splitlines()[:150]
    vocabulary = mt5_like([*data.texts(), *other], 2000)
    torch.manual_seed(3)
    shape = MT5Config(vocab_size=vocabulary.size + ROWS, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=2, num_decoder_layers=2)
    mt5 = MT5ForConditionalGeneration(shape)
    mt5.lm_head.weight = nn.Parameter(torch.randn(vocabulary.size + ROWS, 32) * 0.2)
    mt5.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text("utf-8")) | {"tie_word_embeddings": False}), "utf-8")
    (folder / "spiece.model").write_bytes(vocabulary.proto)
    return folder


def cut(store: Path, folder: Path, limit: int = 0) -> Artifact:
    """As the command does it; without a limit, at one piece fewer than there are."""
    limit = limit or Sentencepiece.load(folder).size - 1
    return cutting.cut(config.compose(["model=reference", f"store={store}", f"model.generator.vocabulary_tokens={limit}"]), str(folder))


@pytest.fixture(scope="module")
def made(store: Path, whole: Path) -> Artifact:
    return cut(store, whole)


def order_of(old: Sentencepiece, new: Sentencepiece) -> list[int]:
    numbers = {old.processor.id_to_piece(number): number for number in range(old.size)}
    return [numbers[new.processor.id_to_piece(number)] for number in range(new.size)]


def test_every_text_of_the_corpus_reads_as_before(data: Corpus, whole: Path, made: Artifact) -> None:
    old, new = Sentencepiece.load(whole), Sentencepiece.load(made.path)
    order = order_of(old, new)
    assert new.size < old.size - 100 and order == sorted(order) and order[:3] == [0, 1, 2]
    assert [order[number] for number in new.sentinels] == old.sentinels
    for text in data.texts():
        assert [order[number] for number in new.encode(text, 10_000)] == old.encode(text, 10_000)
        assert new.decode(new.encode(text, 10_000)) == old.decode(old.encode(text, 10_000))


@torch.no_grad()
def test_logits_of_kept_pieces_are_equal_to_the_last_bit(data: Corpus, whole: Path, made: Artifact) -> None:
    """Transformers reads both folders; the head is not tied on the way."""
    old, new = Sentencepiece.load(whole), Sentencepiece.load(made.path)
    logits = []
    for folder, vocabulary in ((whole, old), (made.path, new)):
        mt5 = MT5ForConditionalGeneration.from_pretrained(folder).eval()
        assert not torch.equal(mt5.lm_head.weight, mt5.shared.weight) and mt5.shared.weight.shape == mt5.lm_head.weight.shape
        ids_NL, mask_NL = vocabulary.batch([example.question for example in data.train[:6]], 40)
        target_NT, _ = vocabulary.batch([example.answers[0] for example in data.train[:6]], 20)
        start_NT = torch.cat([torch.zeros_like(target_NT[:, :1]), target_NT[:, :-1]], dim=1)
        logits.append(mt5(input_ids=ids_NL, attention_mask=mask_NL.long(), decoder_input_ids=start_NT).logits)
    assert logits[1].shape[-1] == new.size
    assert torch.equal(logits[0][..., order_of(old, new)], logits[1])


def test_the_report_counts(data: Corpus, whole: Path, made: Artifact) -> None:
    old, new = Sentencepiece.load(whole), Sentencepiece.load(made.path)
    uncut = MT5ForConditionalGeneration.from_pretrained(whole)
    kept = MT5ForConditionalGeneration.from_pretrained(made.path)
    parameters = [sum(parameter.numel() for parameter in mt5.parameters()) for mt5 in (uncut, kept)]
    tokens = sum(len(old.processor.encode(text)) for text in data.texts())
    texts = len(list(data.texts()))
    assert made.manifest["config"] == {
        "pieces": [old.size, new.size],
        "parameters": parameters,
        "texts": texts,
        "texts_differ": 0,
        "tokens": tokens,
        "tokens_kept": tokens,
        "tokens_after": tokens,
    }
    lines = cutting.told(made)
    assert lines[0] == f"{old.size:,} -> {new.size:,} pieces; {parameters[0]:,} -> {parameters[1]:,} parameters"
    assert "100.00%" in lines[1] and f"0 of {texts} texts are encoded differently (+0 tokens)" in lines[1]
    assert list(made.manifest["parents"]) == ["corpus"]
    assert {path.name for path in made.path.iterdir()} == {"config.json", "model.safetensors", "spiece.model", files.MANIFEST}


def test_a_limit_that_bites_is_told(data: Corpus, store: Path, whole: Path) -> None:
    tight = cut(store, whole, 400)
    old, new = Sentencepiece.load(whole), Sentencepiece.load(tight.path)
    assert new.size == 400
    order = order_of(old, new)
    rows = [(old.processor.encode(text), [order[token] for token in new.processor.encode(text)]) for text in data.texts()]
    report = tight.manifest["config"]
    assert report["texts_differ"] == sum(before != after for before, after in rows) > 0
    assert report["tokens_after"] == sum(len(after) for _, after in rows)
    assert report["tokens_kept"] == sum(token in order for before, _ in rows for token in before) < report["tokens"]


def test_what_was_cut_is_found_again_and_another_limit_is_another_artifact(store: Path, whole: Path, made: Artifact) -> None:
    other = cut(store, whole, 700)
    assert other.path != made.path
    again = cut(store, whole)
    assert again.path == made.path == files.current(store, "mt5").path


def of(run: config.Run) -> Generator:
    built = assemble.fresh(run, assemble.corpus(run))
    found = getattr(built.method, "generator", None)
    assert isinstance(found, Generator)
    return found


def test_training_starts_from_the_cut_folder_as_from_the_whole_one(store: Path, whole: Path, made: Artifact) -> None:
    """Uncut, it is cut on the fly to the same; cut, it stays as it is, as long as it is within the limit."""
    limit = made.manifest["config"]["pieces"][1]
    start = [f"store={store}", "task=closed_book", "model=reference", "model.generator.dropout=0"]
    settings = {
        "cut": [f"model.generator.pretrained={made.path}", f"model.generator.vocabulary_tokens={limit}"],
        "wide": [f"model.generator.pretrained={made.path}"],
        "whole": [f"model.generator.pretrained={whole}", f"model.generator.vocabulary_tokens={made.manifest['config']['pieces'][0] - 1}"],
    }
    generators = {name: of(config.compose([*start, *more])) for name, more in settings.items()}
    assert {each.sentencepiece.proto for each in generators.values()} == {(made.path / "spiece.model").read_bytes()}
    first = generators["cut"].state_dict()
    assert all(torch.equal(tensor, first[name]) for each in generators.values() for name, tensor in each.state_dict().items())


def test_the_command(store: Path, whole: Path, made: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """Its limit is the reference's, and a model below it stays whole."""
    assert main(["cut", str(whole), f"store={store}"]) == 0
    said = capsys.readouterr().out
    size = Sentencepiece.load(whole).size
    found = files.current(store, "mt5")
    assert f"{size:,} -> {size:,} pieces" in said and f"model.generator.pretrained={found.path} model.generator.vocabulary_tokens={size}" in said
    assert main(["cut", str(whole), f"store={store}", f"model.generator.vocabulary_tokens={size - 1}"]) == 0
    assert f"artifact: {made.path}" in capsys.readouterr().out


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def described(**changes: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text("utf-8")) | changes), "utf-8")

    return write


@pytest.mark.parametrize(
    ("spoil", "limit", "words"),
    [
        (without("config.json"), 900, "no config.json there"),
        (without("model.safetensors"), 900, "no model.safetensors there"),
        (without("spiece.model"), 900, "no SentencePiece model there"),
        (pickled, 900, "no model.safetensors there (it holds pytorch_model.bin; one file of safetensors is read, and never a pickle)"),
        (described(model_type="bart"), 900, "model_type='bart'; allowed: mt5"),
        (described(d_model=None), 900, "d_model must be there"),
        (described(d_model=64), 900, "not the weights of the mT5 that config.json describes"),
        (holding("config.json", b"{"), 900, "not a model's configuration"),
        (holding("config.json", b"[]"), 900, "not a model's configuration"),
        (holding("model.safetensors", b"PK\x03\x04" * 9), 900, "not whole safetensors"),
        (holding("spiece.model", b"nothing"), 900, "not a SentencePiece model"),
        (lambda folder: None, 50, "model.generator.vocabulary_tokens=50 is less than the 104 pieces that are always kept"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_a_line(
    spoil: Callable[[Path], None], limit: int, words: str, data: Corpus, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = tmp_path / "model", tmp_path / "store"
    shutil.copytree(whole, folder)
    shutil.copytree(data.artifact.path.parent, store / "corpus")
    spoil(folder)
    assert main(["cut", str(folder), f"store={store}", f"model.generator.vocabulary_tokens={limit}"]) == 2
    said = capsys.readouterr().err.strip().split("\n")
    assert words in said[-1] and said[-1].startswith("medrag: ") and "Traceback" not in "".join(said)
    assert [path.name for path in store.iterdir()] == ["corpus"], "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs one folder"),
        (["a", "b"], "needs one folder"),
        (["nowhere"], "neither a folder here nor a hub name"),
        (["WHOLE"], "holds no corpus"),
    ],
)
def test_what_else_is_missing(arguments: list[str], words: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cut", *(str(whole) if word == "WHOLE" else word for word in arguments), f"store={tmp_path / 'store'}"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_model_whose_head_is_tied_gets_a_head_of_its_own(store: Path, whole: Path, tmp_path: Path) -> None:
    """Older files say so and hold one matrix: both are cut from it."""
    folder = tmp_path / "tied"
    MT5ForConditionalGeneration(MT5Config.from_pretrained(whole, tie_word_embeddings=True)).save_pretrained(folder)
    shutil.copyfile(whole / "spiece.model", folder / "spiece.model")
    found = cut(store, folder)
    settings = generator.Config(pretrained=str(found.path), dropout=0.0)
    made = generator.build(settings, Sentencepiece.load(found.path))
    assert torch.equal(made.network.lm_head.weight, made.network.shared.weight)
