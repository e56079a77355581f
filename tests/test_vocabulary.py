"""Both tokenizers, built small: what is cut keeps its end, what is rare keeps its bytes, what is trimmed encodes as before."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path

import pytest
import sentencepiece as sentencepiece_library
import torch
from hypothesis import given, settings
from hypothesis.strategies import DataObject, data, integers, lists, sampled_from
from sentencepiece import sentencepiece_model_pb2 as model

from medrag import vocabulary
from medrag.text import Segmenter
from medrag.vocabulary import EXTRA_IDS, Sentencepiece, Wordpiece

TEXTS = [
    "孕期可以喝咖啡吗？可以少喝，每天不超过一小杯。",
    "孕期血糖高怎么办？少吃甜食，饭后走路，按时测血糖。",
    "糖尿病怎么办？按时吃药，少吃甜食，每周测血糖。",
    "血压高能停药吗？不能自己停药，停药血压会回升。",
    "宝宝发烧怎么办？多喝水，超过三十八度五吃退烧药。",
    "体温38.5度，吃布洛芬 ibuprofen 退烧，ibuprofen每天不超过四次。",
    "HPV疫苗可以打吗？HPV疫苗分三针。",
] * 3
RARE = "孕期𠮷龘🙂可以喝齉咖啡"


@pytest.fixture(scope="module")
def wordpiece() -> Wordpiece:
    return Wordpiece.build(TEXTS, 200)


@pytest.fixture(scope="module")
def sentencepiece() -> Sentencepiece:
    return Sentencepiece.build(TEXTS, 600)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter()


@pytest.fixture(scope="module")
def words(segmenter: Segmenter) -> Wordpiece:
    return Wordpiece.build_words(TEXTS, 300, segmenter)


def _tokens(wordpiece: Wordpiece, text: str, limit: int = 64) -> list[str]:
    ids_NL, _ = wordpiece.batch([text], limit)
    return [wordpiece.tokenizer.id_to_token(number) or "" for number in ids_NL[0].tolist()]


# WordPiece


def test_wordpiece_takes_chinese_apart_and_keeps_words(wordpiece: Wordpiece) -> None:
    assert _tokens(wordpiece, "孕期喝咖啡") == ["[CLS]", *"孕期喝咖啡", "[SEP]"]
    assert _tokens(wordpiece, "IBUPROFEN ") == ["[CLS]", "ibuprofen", "[SEP]"]
    assert "[UNK]" in _tokens(wordpiece, "齉")
    assert _tokens(wordpiece, "") == ["[CLS]", "[SEP]"]
    assert (wordpiece.pad, wordpiece.size) == (0, wordpiece.tokenizer.get_vocab_size())


def test_wordpiece_pads_on_the_right(wordpiece: Wordpiece) -> None:
    ids_NL, mask_NL = wordpiece.batch(["孕期", "孕期可以", ""], 64)
    assert mask_NL.tolist() == [[True] * 4 + [False] * 2, [True] * 6, [True] * 2 + [False] * 4]
    assert (ids_NL[~mask_NL] == wordpiece.pad).all() and (ids_NL[mask_NL] != wordpiece.pad).all()
    assert ids_NL.dtype == torch.long and mask_NL.dtype == torch.bool
    assert wordpiece.batch([], 64)[0].shape == (0, 0)


@pytest.mark.parametrize("limit", [2, 3, 10, 11, 12, 13])
def test_a_cut_text_keeps_its_end(wordpiece: Wordpiece, limit: int) -> None:
    text = "孕期可以喝咖啡吗可以"
    assert _tokens(wordpiece, text, limit) == ["[CLS]", *text[: limit - 2], "[SEP]"]


@pytest.mark.parametrize("size", [20, 60, 200])
def test_wordpiece_keeps_to_its_size(size: int) -> None:
    made = Wordpiece.build(TEXTS, size)
    assert made.size <= size
    vocabulary_ = made.tokenizer.get_vocab()
    assert sorted(vocabulary_.values()) == list(range(made.size))
    assert [made.tokenizer.id_to_token(number) for number in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert "血" in vocabulary_ and "。" in vocabulary_, "the most frequent characters come first"


def test_the_same_corpus_gives_the_same_wordpiece(wordpiece: Wordpiece) -> None:
    assert Wordpiece.build(iter(TEXTS), 200).tokenizer.to_str() == wordpiece.tokenizer.to_str()
    assert Wordpiece.build(TEXTS[::-1], 200).tokenizer.get_vocab() == wordpiece.tokenizer.get_vocab()


def test_a_saved_wordpiece_is_the_loaded_one(wordpiece: Wordpiece, tmp_path: Path) -> None:
    wordpiece.save(tmp_path)
    again = Wordpiece.load(tmp_path)
    assert again.size == wordpiece.size
    assert torch.equal(again.batch([*TEXTS, RARE], 12)[0], wordpiece.batch([*TEXTS, RARE], 12)[0])


def test_a_tokenizer_file_that_pads_and_cuts_is_told_not_to(wordpiece: Wordpiece, tmp_path: Path) -> None:
    wordpiece.save(tmp_path)
    set_up = Wordpiece.load(tmp_path).tokenizer
    set_up.enable_truncation(4)
    set_up.enable_padding(length=50)
    (tmp_path / Wordpiece.FILE).unlink()
    set_up.save(str(tmp_path / "tokenizer.json"))
    assert torch.equal(Wordpiece.load(tmp_path).batch(TEXTS, 64)[0], wordpiece.batch(TEXTS, 64)[0])


@pytest.mark.parametrize("end", ["\n", ""])
def test_vocab_txt(wordpiece: Wordpiece, tmp_path: Path, end: str) -> None:
    words = [wordpiece.tokenizer.id_to_token(number) or "" for number in range(wordpiece.size)]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + end, "utf-8")
    again = Wordpiece.load(tmp_path)
    assert again.size == wordpiece.size
    assert torch.equal(again.batch([*TEXTS, RARE], 64)[0], wordpiece.batch([*TEXTS, RARE], 64)[0])


def test_line_separators_in_vocab_txt_are_tokens_and_not_line_ends(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n\u2028\n\x85\n孕\n", "utf-8")
    assert Wordpiece.load(tmp_path).batch(["孕"], 8)[0].tolist() == [[2, 6, 3]]


def test_no_wordpiece(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no WordPiece vocabulary there; one of wordpiece\.json, tokenizer\.json and vocab\.txt"):
        Wordpiece.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n孕\n", "utf-8")
    with pytest.raises(ValueError, match=r"lacks \['\[CLS\]', '\[SEP\]'\]"):
        Wordpiece.load(tmp_path)


# WordPiece over words


def test_frequent_words_are_tokens_and_shorten_texts(wordpiece: Wordpiece, words: Wordpiece) -> None:
    assert _tokens(words, "孕期可以喝咖啡吗？") == ["[CLS]", "孕期", "可以", "喝咖啡", "吗", "？", "[SEP]"]
    assert _tokens(words, "IBUPROFEN38.5") == ["[CLS]", "ibuprofen", "38", ".", "5", "[SEP]"]
    assert _tokens(words, "HPV疫苗") == ["[CLS]", "hpv", "疫苗", "[SEP]"]
    assert _tokens(words, "") == ["[CLS]", "[SEP]"]
    count = [int(made.batch(TEXTS, 512)[1].sum()) for made in (words, wordpiece)]
    assert count[0] < 0.75 * count[1]


def test_every_run_is_cut_into_its_most_probable_pieces(words: Wordpiece) -> None:
    """Against the definition: of all ways to cut a run, the one whose pieces' shares have the largest product."""
    share = {piece: score for piece, score in _scores(words).items() if not piece.startswith("[")}
    letters = sorted({letter for text in TEXTS for letter in text if letter in share and "\u4e00" <= letter <= "\u9fff"})
    draw = random.Random(5)
    runs = [*(text[:at] for text in TEXTS[:5] for at in (4, 7)), *("".join(draw.choices(letters, k=9)) for _ in range(40))]
    longer = 0
    for run in runs:
        best = max(_cuts(run, share), key=lambda pieces: math.fsum(share[piece] for piece in pieces))
        assert _tokens(words, run)[1:-1] == best
        longer += sum(len(piece) > 1 for piece in best)
    assert longer > 10


def _scores(words: Wordpiece) -> dict[str, float]:
    return dict(json.loads(words.tokenizer.to_str())["model"]["vocab"])


def _cuts(run: str, share: dict[str, float]) -> list[list[str]]:
    if not run:
        return [[]]
    return [[run[:size], *rest] for size in range(1, len(run) + 1) if run[:size] in share for rest in _cuts(run[size:], share)]


def test_an_unknown_character_hides_nothing_beside_it(words: Wordpiece) -> None:
    assert _tokens(words, "孕期齉可以喝咖啡") == ["[CLS]", "孕期", "[UNK]", "可以", "喝咖啡", "[SEP]"]
    known = _tokens(words, "血糖高怎么办" * 300, 10_000)
    assert "[UNK]" not in known and "".join(known[1:-1]) == "血糖高怎么办" * 300, "however long a run is"
    assert words.mask == 4 and _tokens(words, "血糖[MASK]怎么办")[2:3] == ["[MASK]"]


@pytest.mark.parametrize("size", [20, 60, 130, 1000])
def test_words_keep_to_their_size_and_characters_come_first(size: int, segmenter: Segmenter) -> None:
    made = Wordpiece.build_words(TEXTS, size, segmenter)
    pieces = [made.tokenizer.id_to_token(number) or "" for number in range(made.size)]
    assert made.size <= size and pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lengths = [len(piece) for piece in pieces[5:]]
    assert lengths == [1] * lengths.count(1) + [length for length in lengths if length > 1]
    if size == 1000:
        assert set("".join("".join(TEXTS).lower().split())) <= set(pieces)


def test_the_same_corpus_gives_the_same_words_and_a_loaded_one_cuts_alike(words: Wordpiece, segmenter: Segmenter, tmp_path: Path) -> None:
    assert Wordpiece.build_words(iter(TEXTS[::-1]), 300, segmenter).tokenizer.to_str() == words.tokenizer.to_str()
    words.save(tmp_path)
    again = Wordpiece.load(tmp_path)
    assert (again.size, again.pad, again.mask) == (words.size, words.pad, words.mask)
    assert torch.equal(again.batch([*TEXTS, RARE], 12)[0], words.batch([*TEXTS, RARE], 12)[0])
    assert again.tokenizer.to_str() == words.tokenizer.to_str()


def test_the_dictionary_decides_what_is_a_word(words: Wordpiece, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("测血糖\n", "utf-8")
    assert "测血糖" in Wordpiece.build_words(TEXTS, 300, Segmenter(tmp_path / "words.txt")).tokenizer.get_vocab()
    assert "测血糖" not in words.tokenizer.get_vocab()


# SentencePiece


def test_sentencepiece_special_pieces(sentencepiece: Sentencepiece) -> None:
    assert (sentencepiece.pad, sentencepiece.end, sentencepiece.unknown) == (0, 1, 2)
    assert len(sentencepiece.sentinels) == len(EXTRA_IDS) == 100
    assert sentencepiece.size <= 600
    assert sentencepiece.encode("", 8) == [1]
    assert sentencepiece.encode("孕期", 64)[-1] == 1


@pytest.mark.parametrize("text", [*TEXTS[:7], RARE, "Ａ①　①", "ⅷ½㎎", "\u0301", "<pad></s>", "a" * 100])
def test_sentencepiece_round_trip(sentencepiece: Sentencepiece, text: str) -> None:
    ids = sentencepiece.encode(text, 500)
    assert sentencepiece.unknown not in ids
    assert sentencepiece.decode(ids).replace(" ", "") == text.replace(" ", "")
    if "<" not in text:
        assert sentencepiece.decode([0, *ids, 0, sentencepiece.sentinels[0], 2]) == sentencepiece.decode(ids)


def test_sentencepiece_cuts_and_pads(sentencepiece: Sentencepiece) -> None:
    full = sentencepiece.encode(TEXTS[0], 500)
    assert sentencepiece.encode(TEXTS[0], 5) == [*full[:4], 1]
    assert sentencepiece.encode(TEXTS[0], len(full)) == full
    ids_NL, mask_NL = sentencepiece.batch([TEXTS[0], "孕期", ""], 10)
    assert ids_NL.shape == (3, 10)
    for ids_L, mask_L, text in zip(ids_NL, mask_NL, [TEXTS[0], "孕期", ""], strict=True):
        assert ids_L[mask_L].tolist() == sentencepiece.encode(text, 10)
        assert (ids_L[~mask_L] == 0).all()


@pytest.mark.parametrize("limit", [8, 9, 20, 200])
def test_pairs_keep_the_head_first(sentencepiece: Sentencepiece, limit: int) -> None:
    heads, tails = ["孕期", TEXTS[0], ""], [TEXTS[1], TEXTS[1], TEXTS[2]]
    ids_NL, mask_NL = sentencepiece.pairs(heads, tails, limit)
    assert ids_NL.shape[1] <= limit
    for ids_L, mask_L, head, tail in zip(ids_NL, mask_NL, heads, tails, strict=True):
        row = ids_L[mask_L].tolist()
        first = sentencepiece.encode(head, 500)[:-1][: limit // 2]
        second = sentencepiece.encode(tail, 500)
        assert row[: len(first) + 1] == [*first, 1]
        assert row[len(first) + 1 : -1] == second[:-1][: limit - len(first) - 2]
        assert row[-1] == 1 and len(row) == min(limit, len(first) + 1 + len(second))
    with pytest.raises(ValueError, match="zip"):
        sentencepiece.pairs(["孕期"], [], 8)


def test_a_saved_sentencepiece_is_the_loaded_one(sentencepiece: Sentencepiece, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no SentencePiece model there; sentencepiece\.model or spiece\.model"):
        Sentencepiece.load(tmp_path)
    (tmp_path / "spiece.model").write_bytes(sentencepiece.proto)
    assert Sentencepiece.load(tmp_path).encode(RARE, 99) == sentencepiece.encode(RARE, 99)
    Sentencepiece.build(TEXTS, 500).save(tmp_path)
    assert Sentencepiece.load(tmp_path).size <= 500, "medrag's own file goes first"


def test_a_vocabulary_that_cannot_hold_the_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="no SentencePiece vocabulary of 300 pieces"):
        Sentencepiece.build(TEXTS, 300)


def test_a_model_with_its_special_pieces_elsewhere_is_refused(sentencepiece: Sentencepiece) -> None:
    proto = model.ModelProto()
    proto.ParseFromString(sentencepiece.proto)
    swapped = [model.ModelProto.SentencePiece.FromString(proto.pieces[number].SerializeToString()) for number in (1, 0)]
    for number, piece in enumerate(swapped):
        proto.pieces[number].CopyFrom(piece)
    with pytest.raises(ValueError, match=r"at \(1, 0, 2\); mT5 has them at \(0, 1, 2\)"):
        Sentencepiece(proto.SerializeToString())


def _alone(sentencepiece: Sentencepiece) -> list[int]:
    return [number for number in range(sentencepiece.size) if len(sentencepiece.processor.id_to_piece(number)) == 1]


def test_a_cut_model_encodes_its_corpus_as_before(sentencepiece: Sentencepiece) -> None:
    corpus = TEXTS[:3]
    cut, order = sentencepiece.cut(iter(corpus), sentencepiece.size - 1)
    assert order == sorted(set(order)) and len(order) == cut.size < sentencepiece.size - 1, "no larger than the corpus needs"
    assert order[:3] == [0, 1, 2] and (cut.pad, cut.end, cut.unknown) == (0, 1, 2)
    assert [cut.processor.id_to_piece(number) for number in range(cut.size)] == [sentencepiece.processor.id_to_piece(number) for number in order]
    assert [order[number] for number in cut.sentinels] == sentencepiece.sentinels
    for text in corpus:
        assert [order[number] for number in cut.encode(text, 500)] == sentencepiece.encode(text, 500)
    assert set(_alone(sentencepiece)) <= set(order), "single characters stay where there is room"
    for text in [*TEXTS, RARE]:
        ids = cut.encode(text, 500)
        assert cut.unknown not in ids and cut.decode(ids) == sentencepiece.decode(sentencepiece.encode(text, 500))


def _special(sentencepiece: Sentencepiece) -> set[int]:
    """What is never cut: control, unknown, byte and sentinel pieces, and the one with the lowest score."""
    processor = sentencepiece.processor
    plain = [number for number in range(3, sentencepiece.size) if not processor.is_byte(number) and number not in sentencepiece.sentinels]
    return set(range(sentencepiece.size)) - set(plain) | {min(plain, key=processor.get_score)}


def test_a_tight_cut_drops_unused_characters_before_used_pieces(sentencepiece: Sentencepiece) -> None:
    corpus = TEXTS[:2]
    used = {number for text in corpus for number in sentencepiece.encode(text, 500)}
    wide, _ = sentencepiece.cut(corpus, sentencepiece.size - 1)
    special = _special(sentencepiece)
    size = len(used | special)
    cut, order = sentencepiece.cut(corpus, size)
    assert cut.size == size < wide.size and set(order) == used | special
    for text in corpus:
        assert [order[number] for number in cut.encode(text, 500)] == sentencepiece.encode(text, 500)
    smallest, order = sentencepiece.cut(corpus, len(special) + 5)
    assert smallest.size == len(special) + 5 and special <= set(order)
    assert smallest.decode(smallest.encode(TEXTS[0], 500)) == TEXTS[0], "bytes carry what was cut"
    with pytest.raises(ValueError, match=r"model\.generator\.vocabulary_tokens=100 is less than the 360 pieces that are always kept"):
        sentencepiece.cut(corpus, 100)


def test_a_model_that_fits_stays_as_it_is(sentencepiece: Sentencepiece) -> None:
    for size in (sentencepiece.size, 10_000):
        kept, order = sentencepiece.cut(TEXTS[:1], size)
        assert kept is sentencepiece and order == list(range(sentencepiece.size))


@pytest.fixture(scope="module")
def models(sentencepiece: Sentencepiece) -> dict[str, Sentencepiece]:
    """One with byte pieces, and, as the real mT5's, one without, whose sentinels run down at the end and carry the sign of a space."""
    return {"bytes": sentencepiece, "mt5": mt5_like([text + "。" + RARE[:6] for text in TEXTS], 700)}


def mt5_like(texts: list[str], size: int) -> Sentencepiece:
    """A unigram model in the form of the real mT5's: NFKC, no byte pieces, ``▁<extra_id_99>`` to ``▁<extra_id_0>`` at its end."""
    written = io.BytesIO()
    sentencepiece_library.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        vocab_size=size,
        hard_vocab_limit=False,
        model_type="unigram",
        character_coverage=0.98,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    proto = model.ModelProto()
    proto.ParseFromString(written.getvalue())
    for number in reversed(range(100)):
        proto.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=model.ModelProto.SentencePiece.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return Sentencepiece(proto.SerializeToString())


def test_sentinels_go_by_their_names(models: dict[str, Sentencepiece]) -> None:
    real = models["mt5"]
    assert real.sentinels == list(range(real.size - 1, real.size - 101, -1))
    for made in models.values():
        names = [made.processor.id_to_piece(number).lstrip("▁") for number in made.sentinels]
        assert names == list(EXTRA_IDS)
        cut, order = made.cut(TEXTS[:1], made.size - 1)
        assert [order[number] for number in cut.sentinels] == made.sentinels


@pytest.mark.parametrize("kind", ["bytes", "mt5"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data())
def test_whatever_the_corpus_its_texts_are_read_as_before(kind: str, models: dict[str, Sentencepiece], draw: DataObject) -> None:
    """Encode and decode are the same on every text of the corpus, also with unknown characters and sentinels, down to the least size that fits."""
    whole = models[kind]
    units = sampled_from([*"".join(TEXTS), *RARE, " ", "  ", "①", "<extra_id_3>", *(TEXTS[:7])])
    corpus = draw.draw(lists(lists(units, max_size=12).map("".join), min_size=1, max_size=6))
    used = {number for text in corpus for number in whole.processor.encode(text)}
    least = len(used | _special(whole))
    size = draw.draw(integers(least, whole.size))
    cut, order = whole.cut(iter(corpus), size)
    assert cut.size <= size
    for text in corpus:
        ids = cut.encode(text, 500)
        assert [order[number] for number in ids] == whole.encode(text, 500)
        assert cut.decode(ids) == whole.decode(whole.encode(text, 500))


def test_the_lowest_score_stays(sentencepiece: Sentencepiece) -> None:
    """An unknown character costs 10 more than it: without 低低, which nobody uses, 坏ab would be 坏 and ab, for 34 instead of 35."""
    proto = model.ModelProto()
    proto.ParseFromString(sentencepiece.proto)
    del proto.pieces[3:]
    for piece, score in {"坏a": -20.0, "b": -15.0, "ab": -4.0, "高": -3.0, "低低": -30.0}.items():
        proto.pieces.add(piece=piece, score=score)
    proto.normalizer_spec.add_dummy_prefix = False
    proto.trainer_spec.byte_fallback = False
    whole = Sentencepiece(proto.SerializeToString())
    assert [whole.processor.encode(text, out_type=str) for text in ("坏ab", "ab")] == [["坏a", "b"], ["ab"]]
    cut, order = whole.cut(["坏ab", "ab"], 7)
    assert order == [0, 1, 2, 3, 4, 5, 7]
    assert [order[number] for number in cut.processor.encode("坏ab")] == whole.processor.encode("坏ab")


@pytest.mark.parametrize("kind", ["bytes", "mt5"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(lists(sampled_from([*"".join(TEXTS), *RARE, " ", "①", "㍿", "<extra_id_3>", TEXTS[0]]), max_size=80).map("".join), integers(6, 40))
def test_long_texts_are_cut_between_tokens_into_pieces_that_fit(kind: str, models: dict[str, Sentencepiece], text: str, limit: int) -> None:
    made = models[kind]
    pieces = made.pieces(text, limit)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    lengths = [len(made.processor.encode(piece)) for piece in pieces]
    assert max(lengths, default=0) < limit
    tokens = len(made.processor.encode(text))
    assert len(pieces) >= math.ceil(tokens / (limit - 1))
    if tokens < limit:
        assert pieces == ([text] if text.strip() else [])


def test_long_texts_are_cut_for_the_trainer() -> None:
    assert list(vocabulary._pieces(["一" * 2500, "二", ""])) == ["一" * 1000, "一" * 1000, "一" * 500, "二"]
    assert max(len(piece.encode()) for piece in vocabulary._pieces(["🙂" * 3000])) <= 4192
    built = Sentencepiece.build(["孕期可以喝咖啡吗" * 1000], 500)
    assert len(built.processor.encode("孕期可以喝咖啡吗")) <= 6


def test_where_pretrained_files_come_from(tmp_path: Path) -> None:
    assert vocabulary.pretrained_folder(str(tmp_path)) == tmp_path
    for name in ("nowhere", "../a/b", "a/b/c", "https://example.org/a"):
        with pytest.raises(ValueError, match="neither a folder here nor a hub name"):
            vocabulary.pretrained_folder(name)
