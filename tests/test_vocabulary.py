"""Both tokenizers, built small: what is cut keeps its end, what is rare keeps its bytes, what is trimmed encodes as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medrag import vocabulary
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
    from sentencepiece import sentencepiece_model_pb2 as model

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
    cut, order = sentencepiece.cut(iter(corpus), 10_000)
    assert order == sorted(set(order)) and len(order) == cut.size < sentencepiece.size
    assert order[:3] == [0, 1, 2] and (cut.pad, cut.end, cut.unknown) == (0, 1, 2)
    assert [cut.processor.id_to_piece(number) for number in range(cut.size)] == [sentencepiece.processor.id_to_piece(number) for number in order]
    assert [order[number] for number in cut.sentinels] == sentencepiece.sentinels
    for text in corpus:
        assert [order[number] for number in cut.encode(text, 500)] == sentencepiece.encode(text, 500)
    assert set(_alone(sentencepiece)) <= set(order), "single characters stay where there is room"
    for text in [*TEXTS, RARE]:
        ids = cut.encode(text, 500)
        assert cut.unknown not in ids and cut.decode(ids) == sentencepiece.decode(sentencepiece.encode(text, 500))


def test_a_tight_cut_drops_unused_characters_before_used_pieces(sentencepiece: Sentencepiece) -> None:
    corpus = TEXTS[:2]
    used = {number for text in corpus for number in sentencepiece.encode(text, 500)}
    wide, _ = sentencepiece.cut(corpus, 10_000)
    special = [number for number in range(sentencepiece.size) if number < 3 or sentencepiece.processor.is_byte(number)] + sentencepiece.sentinels
    size = len(used | set(special))
    cut, order = sentencepiece.cut(corpus, size)
    assert cut.size == size < wide.size and set(order) == used | set(special)
    for text in corpus:
        assert [order[number] for number in cut.encode(text, 500)] == sentencepiece.encode(text, 500)
    smallest, order = sentencepiece.cut(corpus, len(special) + 5)
    assert smallest.size == len(special) + 5 and set(special) <= set(order)
    assert smallest.decode(smallest.encode(TEXTS[0], 500)) == TEXTS[0], "bytes carry what was cut"
    with pytest.raises(ValueError, match=r"generator\.vocabulary_tokens=100 is less than the 359 special pieces"):
        sentencepiece.cut(corpus, 100)


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
