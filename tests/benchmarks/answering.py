"""Answers a second of medrag's methods and of transformers' ``generate``: same weights, sources, settings and threads, in one run.

    python tests/benchmarks/answering.py STORE [--methods rag_token closed_book fid] [--questions 200] [--shape small] [--tokens 64]
        [--peer-batches 8 32] [--precisions fp32 bf16 int8] [--ctranslate2 FOLDER] [--whole] [--json FILE.json]

STORE is what ``medrag prepare``, ``train task=dense`` and ``index build`` made. Questions of its test split, longest first, with the passages that
the index finds for them, which are looked up once, before the clock starts, and given to all. Weights are those of the trained method in STORE,
else of its closed_book, else random ones of ``--shape`` whose end token is made likely (``trained`` in the report says which).

- ``transformers``: RagTokenForGeneration.generate, MT5's, or (fid) MT5's over joined encoder outputs, which are part of the time. Questions of like
  length go together, in each size of batch that ``--peer-batches`` names, and the fastest counts. Both sides end a search by one rule: ``early``
  is the default of both (``decoding.early=true``), ``sure`` is ``early_stopping="never"``. RagSequenceForGeneration.generate
  fails without a retriever, so that there is nothing to stand beside rag_sequence.
- *same* is the share of questions whose text is the same as medrag's in fp32; of the others, *better* and *worse* count whose hypothesis ranks higher
  under the exact model in fp32 (log-probability / tokens), beyond rounding; *lost* is what the rank is lower in the mean over all questions.
- ``--ctranslate2``: a folder that holds CTranslate2 (it is no dependency); closed_book and fid only.
- ``--whole``: ``medrag infer`` as a user calls it, retrieval and all.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, RagConfig, RagTokenForGeneration
from transformers.modeling_outputs import BaseModelOutput

from medrag import files, generator, infer, losses, reader
from medrag.assemble import trained
from medrag.config import compose
from medrag.generator import Generator, quantized, writing
from medrag.generator.decoding import Decoding
from medrag.methods import Method, Parts, closed_book, fid, rag_token
from medrag.methods.fid import join
from medrag.metrics import texts
from medrag.reader import Reading
from medrag.types import Hit
from medrag.vocabulary import Sentencepiece, pad_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from oracle import config_of, fill, transformers_t5, untie, untied

METHODS = {"rag_token": rag_token, "closed_book": closed_book, "fid": fid}
PASSAGES, SOURCE_TOKENS, END_LOGIT = 5, 256, 4.0
Texts = list[str]


class Given(nn.Module):
    """In the retriever's place: passages that were found before."""

    def __init__(self, found: dict[str, tuple[list[Hit], Tensor]]) -> None:
        super().__init__()
        self.found = found
        self.device = torch.device("cpu")

    def retrieve(self, questions: Sequence[str], _: int, exclude: None = None) -> list[list[Hit]]:
        return [self.found[question][0] for question in questions]

    def logp(self, questions: Sequence[str], _: Sequence[Sequence[Hit]]) -> Tensor:
        return torch.stack([self.found[question][1] for question in questions])

    def confidence(self, *_: Any) -> float:
        return 0.0


@dataclass
class Bench:
    """One method, its questions, and what both sides read."""

    name: str
    made: Generator
    method: Method
    questions: list[str]
    given: Given
    decoding: Decoding
    source_tokens: int

    def sources(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (N, L) of questions, or of questions with each of their passages."""
        pieces = self.made.sentencepiece
        if self.name == "closed_book":
            return pad_rows([pieces.encode(question, self.source_tokens) for question in questions], pieces.pad)
        heads = [question for question in questions for _ in self.given.found[question][0]]
        tails = [hit.passage.text for question in questions for hit in self.given.found[question][0]]
        return pieces.pairs(heads, tails, self.source_tokens)

    @torch.no_grad()
    def ranks(self, texts_B: Sequence[Sequence[int]], questions: Sequence[str]) -> list[float]:
        """What each token sequence, its end token included, ranks under the exact model: log-probability / tokens ** length_power."""
        out = []
        for start in range(0, len(questions), 8):
            asked, texts = questions[start : start + 8], texts_B[start : start + 8]
            target_BT, _ = pad_rows(texts, self.made.pad)
            ids_NL, mask_NL = self.sources(asked)
            state_NLD = self.made.encode(ids_NL, mask_NL)
            if self.name == "rag_token":
                prior_BK = self.given.logp(asked, [])
                logp_BKT = reader.target_logp(self.made, Reading([], prior_BK, state_NLD, mask_NL), target_BT)
                sums_B = -losses.rag_token(prior_BK, logp_BKT, target_BT != self.made.pad)
            elif self.name == "fid":
                joined = join(state_NLD, mask_NL, PASSAGES)
                sums_B = self.made.decode(joined.state_BPD, joined.mask_BP, target_BT).sum(1)
            else:
                sums_B = self.made.decode(state_NLD, mask_NL, target_BT).sum(1)
            out += [total / len(text) ** self.decoding.length_power for total, text in zip(sums_B.tolist(), texts, strict=True)]
        return out


# -- what is asked --------------------------------------------------------------------------------------------------------------


def asked_questions(store: Path, count: int) -> tuple[list[str], dict[str, tuple[list[Hit], Tensor]]]:
    """Test questions spread over the split, longest first, and their passages with the log-prior."""
    run = compose([f"store={store}", "model=small", "hardware=cpu", "hardware.devices=1", f"hardware.threads={torch.get_num_threads()}"])
    retriever: Any = trained.load(run, "dense").retriever
    rows = list(files.read_jsonl(files.current(store, "corpus").path / "test.jsonl"))
    questions = list(dict.fromkeys(row["question"] for row in rows))
    questions = sorted(questions[:: max(1, len(questions) // count)][:count], key=len, reverse=True)
    hits = retriever.retrieve(questions, PASSAGES)
    with torch.no_grad():
        prior_BK = retriever.logp(questions, hits)
    return questions, dict(zip(questions, zip(hits, prior_BK, strict=True), strict=True))


def prepared(store: Path, name: str, shape: str, random: bool, decoding: Decoding, given: Given, questions: list[str]) -> tuple[Bench, str]:
    """The method with its trained weights, else with those of closed_book, from which it would start, else with random ones; and whose they are."""
    held = next((kind for kind in (name, "closed_book") if not random and (store / kind / "CURRENT").is_file()), "")
    if held == name:
        method: Any = trained.restore(files.current(store, name), None)
        made = method.generator
    else:
        started: Any = trained.restore(files.current(store, held), None) if held else None
        made = started.generator if held else untrained(store, shape)
        options = {} if name == "closed_book" else {"passages": PASSAGES}
        config = METHODS[name].Config(**options)
        method = METHODS[name].build(config, Parts(given, made))  # type: ignore[arg-type]
    if name != "closed_book":
        method.retriever = given
        method.config.passages = PASSAGES
    method.decoding = decoding
    return Bench(name, made, method.eval(), questions, given, decoding, method.config.source_tokens), held


def untrained(store: Path, shape: str) -> Generator:
    """Random weights and a vocabulary of the corpus; answers end, since the end token is made likely."""
    texts = [row["text"] for row in files.read_jsonl(files.current(store, "corpus").path / "passages.jsonl")]
    config = compose([f"model={shape}"]).model.generator
    torch.manual_seed(0)
    made = generator.build(config, generator.build_vocabulary(config, texts))
    with torch.no_grad():
        made.network.lm_head.weight[made.sentencepiece.end] *= END_LOGIT
    return made


def lowered(method: Method, precision: str) -> Method:
    """A copy in another precision."""
    made: Any = copy.deepcopy(method)
    quantized.lower(made.generator, precision)
    return made  # type: ignore[no-any-return]


# -- who answers ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """Texts in the order of the questions, their ranks where they are known, and the seconds that they took."""

    texts: list[str]
    tokens: list[list[int]]
    seconds: float
    processor_seconds: float


def clocked(work: Callable[[], list[list[int]]], pieces: Sentencepiece) -> Written:
    began, began_processor = time.perf_counter(), time.process_time()
    tokens = work()
    seconds, processor = time.perf_counter() - began, time.process_time() - began_processor
    return Written([pieces.decode(row) for row in tokens], tokens, seconds, processor)


def ours(bench: Bench, method: Method) -> Written:
    """``method.answer`` of all questions at once; the hypotheses are caught on their way to becoming answers."""
    caught: dict[str, list[int]] = {}
    search = writing.search

    def watched(past: Any, questions: Sequence[str], pieces: Sentencepiece, *rest: Any) -> Any:
        found = search(past, questions, pieces, *rest)
        for question, row in zip(questions, found, strict=True):
            caught[question] = [*row[0].tokens, *([pieces.end] if row[0].finished else [])]
        return found

    def work() -> list[list[int]]:
        method.answer(bench.questions)
        return [caught[question] for question in bench.questions]

    writing.search = watched  # type: ignore[assignment]
    try:
        return clocked(work, bench.made.sentencepiece)
    finally:
        writing.search = search


def transformers(bench: Bench, peer: Any, batch: int) -> Written:
    pieces, decoding = bench.made.sentencepiece, bench.decoding
    settings: dict[str, Any] = {
        "num_beams": decoding.beams,
        "max_length": decoding.answer_tokens + 1,  # RAG's generate leaves max_new_tokens unread, and writes 19
        "length_penalty": decoding.length_power,
        "no_repeat_ngram_size": decoding.no_repeat_tokens,
        "suppress_tokens": [pieces.pad, pieces.unknown, *pieces.sentinels],
        "early_stopping": False if decoding.early else "never",
        "do_sample": False,
        "pad_token_id": pieces.pad,
        "eos_token_id": pieces.end,
        "decoder_start_token_id": pieces.pad,
    }

    @torch.no_grad()
    def some(questions: Sequence[str]) -> Tensor:
        ids_NL, mask_NL = bench.sources(questions)
        mask_NL = mask_NL.long()
        if bench.name == "rag_token":
            prior_BK = bench.given.logp(questions, [])
            return peer.generate(context_input_ids=ids_NL, context_attention_mask=mask_NL, doc_scores=prior_BK, n_docs=PASSAGES, **settings)  # type: ignore[no-any-return]
        if bench.name == "fid":
            state_NLD = peer.get_encoder()(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
            joined = BaseModelOutput(last_hidden_state=state_NLD.reshape(len(questions), -1, state_NLD.shape[-1]))
            return peer.generate(encoder_outputs=joined, attention_mask=mask_NL.reshape(len(questions), -1), **settings)  # type: ignore[no-any-return]
        return peer.generate(input_ids=ids_NL, attention_mask=mask_NL, **settings)  # type: ignore[no-any-return]

    def work() -> list[list[int]]:
        out = []
        for start in range(0, len(bench.questions), batch):
            for row in some(bench.questions[start : start + batch])[:, 1:].tolist():
                out.append(row[: row.index(pieces.end) + 1] if pieces.end in row else [token for token in row if token != pieces.pad])
        return out

    return clocked(work, pieces)


def peer_of(bench: Bench) -> Any:
    """transformers' model with the same weights."""
    if bench.name != "rag_token":
        return transformers_t5(bench.made)
    own = bench.made.network
    asker = AlbertConfig(vocab_size=8, embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config = RagConfig.from_question_encoder_generator_configs(asker, config_of(own), n_docs=PASSAGES)
    rag = RagTokenForGeneration(config=config, question_encoder=AlbertModel(asker), generator=fill(untied(config_of(own)), own)).eval()
    fill(untie(rag.generator), own)
    return rag


def ctranslate2(bench: Bench, library: Any, folder: Path, compute: str) -> Callable[[], Written]:
    """CTranslate2's Translator with the same weights: its converter takes the head for tied, which scales it, and is told otherwise."""
    pieces, decoding = bench.made.sentencepiece, bench.decoding
    from ctranslate2.converters.transformers import MT5Loader  # type: ignore[import-not-found, unused-ignore]

    whole = transformers_t5(bench.made)
    whole.config.tie_word_embeddings = False
    names = [f"t{number}" for number in range(pieces.size)]
    names[pieces.pad], names[pieces.end], names[pieces.unknown] = "<pad>", "</s>", "<unk>"
    specification = MT5Loader().get_model_spec(whole)
    specification.register_source_vocabulary(names)
    specification.register_target_vocabulary(names)
    for key, value in (("bos_token", "<pad>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("decoder_start_token", "<pad>")):
        setattr(specification.config, key, value)
    specification.config.add_source_bos = specification.config.add_source_eos = False
    specification.validate()
    specification.optimize(quantization=compute)
    folder.mkdir()
    specification.save(str(folder))
    translator = library.Translator(str(folder), compute_type=compute, inter_threads=1, intra_threads=torch.get_num_threads())
    banned = [[names[number]] for number in (pieces.pad, pieces.unknown, *pieces.sentinels)]
    number_of = {name: number for number, name in enumerate(names)}

    def work() -> list[list[int]]:
        sources = [[names[token] for token in pieces.encode(question, bench.source_tokens)] for question in bench.questions]
        found = translator.translate_batch(
            sources,
            beam_size=decoding.beams,
            max_batch_size=32,
            max_decoding_length=decoding.answer_tokens,
            length_penalty=decoding.length_power,
            no_repeat_ngram_size=decoding.no_repeat_tokens,
            suppress_sequences=banned,
            max_input_length=0,
            return_end_token=True,
        )
        return [[number_of[name] for name in row.hypotheses[0]] for row in found]

    return lambda: clocked(work, pieces)


# -- the report -----------------------------------------------------------------------------------------------------------------


def beside(bench: Bench, exact: Written, exact_ranks: Sequence[float], other: Written) -> dict[str, Any]:
    """What is different from medrag's own fp32 answers."""
    ranks = bench.ranks(other.tokens, bench.questions)
    gaps = [mine - yours for mine, yours in zip(exact_ranks, ranks, strict=True)]
    same = [mine == yours for mine, yours in zip(exact.tokens, other.tokens, strict=True)]
    differing = [gap for gap, equal in zip(gaps, same, strict=True) if not equal]
    f1 = [texts.character_f1(yours, [mine]) if mine or yours else 1.0 for mine, yours in zip(exact.texts, other.texts, strict=True)]
    return {
        "same": sum(same) / len(same),
        "better": sum(gap < -1e-4 for gap in differing),
        "worse": sum(gap > 1e-4 for gap in differing),
        "equal_rank": sum(abs(gap) <= 1e-4 for gap in differing),
        "lost": sum(gaps) / len(gaps),
        "character_f1": sum(f1) / len(f1),
        "unfinished": sum(not row or row[-1] != bench.made.sentencepiece.end for row in other.tokens) / len(same),
        "tokens": sum(map(len, other.tokens)) / len(same),
    }


def race(bench: Bench, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All systems by turns, the best of ``--rounds`` for each; ratios are of the peer's time through a system's in the same round."""
    peer = peer_of(bench)
    runs: dict[str, Callable[[], Written]] = {}
    for precision in asked.precisions:
        made = lowered(bench.method, precision)
        runs[precision] = lambda made=made: ours(bench, made)  # type: ignore[misc]
    for batch in asked.peer_batches:
        runs[f"transformers, batch {batch}"] = lambda batch=batch: transformers(bench, peer, batch)  # type: ignore[misc]
    if asked.ctranslate2 and bench.name == "closed_book":
        import ctranslate2 as library  # type: ignore[import-not-found, unused-ignore]

        for compute in ("float32", "int8"):
            runs[f"CTranslate2 {compute}"] = ctranslate2(bench, library, folder / compute, compute)
    written: dict[str, list[Written]] = {name: [] for name in runs}
    for turn in range(asked.rounds):
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            written[name].append(runs[name]())
            print(f"    {turn} {bench.name} {name}: {written[name][-1].seconds:.1f} s", file=sys.stderr, flush=True)
    best = min((name for name in runs if name.startswith("transformers, batch")), key=lambda name: min(row.seconds for row in written[name]))
    ranks = bench.ranks(written["fp32"][0].tokens, bench.questions)
    report: dict[str, Any] = {"fastest_peer": best, "mean_rank": sum(ranks) / len(ranks)}
    for name, rows in written.items():
        pairs = list(zip(written[best], rows, strict=True))
        report[name] = {
            "answers_per_second": len(bench.questions) / min(row.seconds for row in rows),
            "ratio": statistics.median(theirs.seconds / mine.seconds for theirs, mine in pairs),
            "processor_ratio": statistics.median(theirs.processor_seconds / mine.processor_seconds for theirs, mine in pairs),
        } | beside(bench, written["fp32"][0], ranks, rows[0])
    report["examples"] = [(question, text) for question, text in zip(bench.questions, written["fp32"][0].texts, strict=True)][:3]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--shape", default="small", choices=("tiny", "small", "reference"))
    parser.add_argument("--random", action="store_true", help="random weights even where trained ones are")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--peer-batches", nargs="*", type=int, default=[8])
    parser.add_argument("--precisions", nargs="*", default=["fp32"], choices=quantized.PRECISIONS)
    parser.add_argument("--endings", nargs="*", default=["early", "sure"], choices=("early", "sure"))
    parser.add_argument("--ctranslate2", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.ctranslate2:
        sys.path.append(str(asked.ctranslate2))
    print(json.dumps({name: str(value) for name, value in vars(asked).items()} | {"torch": torch.__version__}), flush=True)
    questions, found = asked_questions(asked.store, asked.questions)
    for name, ending in itertools.product(asked.methods, asked.endings):
        decoding = Decoding(beams=asked.beams, answer_tokens=asked.tokens, early=ending == "early")
        bench, held = prepared(asked.store, name, asked.shape, asked.random, decoding, Given(found), questions)
        with tempfile.TemporaryDirectory() as folder:
            report = {"questions": len(questions), "trained": held, "parameters": bench.made.parameters_count} | race(bench, asked, Path(folder))
            if asked.whole and held == name:
                report["whole"] = whole(asked, name, questions, Path(folder))
        print(json.dumps({"method": name, "ending": ending} | report, ensure_ascii=False), flush=True)


def whole(asked: argparse.Namespace, name: str, questions: Sequence[str], folder: Path) -> float:
    """Rows a second of ``medrag infer``, the method loaded before."""
    overrides = [f"answer.method={name}", f"answer.decoding.beams={asked.beams}", f"answer.decoding.answer_tokens={asked.tokens}"]
    run = compose([f"store={asked.store}", "model=small", "hardware=cpu", "hardware.devices=1", f"hardware.threads={asked.threads}", *overrides])
    method = trained.load(run, name)
    files.write_jsonl(folder / "questions.jsonl", ({"question": question} for question in questions))
    began = time.perf_counter()
    infer.infer(method, run.answer, folder / "questions.jsonl", folder / "answers.jsonl", name, progress=False)
    return len(questions) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
