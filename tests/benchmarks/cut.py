"""``medrag cut`` on an mT5-small of full size, beside transformers.

    python tests/benchmarks/cut.py STORE TEXT... [--folder FOLDER] [--pieces 60000]

The real mT5-small cannot always be downloaded, so one is made: its shape with random weights, 250,112 rows of embedding and of head, and a
SentencePiece model of 250,100 pieces in the form of its own (NFKC, unknown characters spelled in bytes, ``▁<extra_id_99>`` to ``▁<extra_id_0>``
at the end). Of its pieces, PIECES are trained on the lines of the TEXT files, the others are made up of letters that Chinese texts never
hold. It is cut to the newest corpus of STORE by the command itself, in a process of its own, whose seconds and peak memory are measured.

Then transformers loads the uncut folder and the cut one, and the logits of both on texts of the corpus are compared: at the kept pieces
they must be equal. Random weights do not change what is compared; they say nothing about answers.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2 as model
from transformers import MT5Config, MT5ForConditionalGeneration

from medrag import files, prepare
from medrag.vocabulary import Sentencepiece

PIECES, ROWS = 250_100, 250_112


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, help="keep the uncut model there; a folder that holds one is not made anew")
    parser.add_argument("--pieces", type=int, default=60_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "mt5-small"
        if not (folder / "model.safetensors").is_file():
            started = time.monotonic()
            make(folder, arguments.texts, arguments.pieces)
            print(f"made {folder} in {time.monotonic() - started:.0f} s", flush=True)
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "medrag", "cut", str(folder), f"store={arguments.store}"], capture_output=True, text=True)
        seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(done.stdout + done.stderr)
        size = (folder / "model.safetensors").stat().st_size / 2**30
        print(f"{seconds:.1f} s, peak memory {peak:.2f} GiB, for weights of {size:.2f} GiB", flush=True)
        if done.returncode == 0:
            compare(folder, files.current(arguments.store, "mt5").path, arguments.store)


def make(folder: Path, texts: list[Path], pieces: int) -> None:
    """A folder in the transformers layout with the shape of mT5-small."""
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(texts),
        model_writer=written,
        vocab_size=pieces,
        hard_vocab_limit=False,
        model_type="unigram",
        character_coverage=0.9999,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        input_sentence_size=60_000,
        shuffle_input_sentence=False,
        num_threads=1,
        minloglevel=2,
    )
    proto = model.ModelProto()
    proto.ParseFromString(written.getvalue())
    real = {piece.piece for piece in proto.pieces}
    lowest = min(piece.score for piece in proto.pieces)
    draw, letters = random.Random(0), [chr(code) for code in (*range(0x0E01, 0x0E2F), *range(0x0905, 0x0939), *range(0x10D0, 0x10F1))]
    while len(proto.pieces) < PIECES - 100:
        word = "".join(draw.choices(letters, k=draw.randint(3, 6)))
        if word not in real:
            real.add(word)
            proto.pieces.add(piece=word, score=lowest - draw.random())
    for number in reversed(range(100)):
        proto.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=model.ModelProto.SentencePiece.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    torch.manual_seed(0)
    mt5 = MT5ForConditionalGeneration(MT5Config(vocab_size=ROWS, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_decoder_layers=8, num_heads=6))
    mt5.lm_head.weight = torch.nn.Parameter(torch.randn(ROWS, 512) * 512**-0.5)
    mt5.save_pretrained(folder)
    # transformers writes that the head is tied, whatever it is: as the real mT5-small has it
    described = json.loads((folder / "config.json").read_text("utf-8")) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(described), "utf-8")
    (folder / "spiece.model").write_bytes(proto.SerializeToString())


@torch.no_grad()
def compare(folder: Path, cut_folder: Path, store: Path) -> None:
    """Logits of transformers' MT5 from the uncut folder and from the cut one, at the kept pieces."""
    data = prepare.read(files.current(store, "corpus"))
    examples = data.test[:16]
    old, new = Sentencepiece.load(folder), Sentencepiece.load(cut_folder)
    numbers = {old.processor.id_to_piece(number): number for number in range(old.size)}
    order = torch.tensor([numbers[new.processor.id_to_piece(number)] for number in range(new.size)])
    fit = [
        example for example in examples if example.answers and all(_same(old, new, order, text) for text in (example.question, example.answers[0]))
    ]
    logits = []
    for path, vocabulary in ((folder, old), (cut_folder, new)):
        mt5 = MT5ForConditionalGeneration.from_pretrained(path).eval()
        if torch.equal(mt5.lm_head.weight, mt5.shared.weight):
            raise SystemExit(f"{path}: transformers has tied the head, so that its logits are not this model's")
        ids, mask = vocabulary.batch([example.question for example in fit], 64)
        target, _ = vocabulary.batch([example.answers[0] for example in fit], 32)
        found = mt5(
            input_ids=ids, attention_mask=mask.long(), decoder_input_ids=torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)
        ).logits
        logits.append(found if vocabulary is new else found[..., order])
        del mt5
    print(f"{len(fit)} questions and answers of the test split that are read alike, {logits[0].numel():,} logits at kept pieces: ", end="")
    print("equal to the last bit" if torch.equal(*logits) else f"largest difference {float((logits[0] - logits[1]).abs().max()):.3g}")


def _same(old: Sentencepiece, new: Sentencepiece, order: torch.Tensor, text: str) -> bool:
    return [int(order[token]) for token in new.encode(text, 512)] == old.encode(text, 512)


def _lines(texts: list[Path]) -> Iterator[str]:
    for path in texts:
        with open(path, encoding="utf-8", errors="ignore") as stream:
            for line in stream:
                for start in range(0, len(line), 1000):
                    yield line[start : start + 1000]


if __name__ == "__main__":
    main()
