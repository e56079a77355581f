"""Tokenizers without a hub: characters or words for ALBERT, SentencePiece for mT5, built from a corpus or cut down to it.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from medrag.text import HAN, Segmenter

EXTRA_IDS = tuple(f"<extra_id_{number}>" for number in range(100))
"""mT5's sentinels (Raffel et al. 2020, section 3.1.4)"""
_EXTRA_ID = re.compile(r"▁?<extra_id_(\d+)>")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def pretrained_folder(name: str) -> Path:
    """A local folder as it is, or the downloaded files of a hub name (``owner/model``): safetensors and vocabularies only.

    Raises ValueError where there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"pretrained={name}: neither a folder here nor a hub name of the form owner/model")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "vocab.txt"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(f"pretrained={name}: no such folder here, and the hub gave nothing ({type(error).__name__})") from error


class Wordpiece:
    """ALBERT's tokenizer, ``[CLS] text [SEP]``: as BERT's (one token a Chinese character, word pieces for the rest), or over words."""

    FILE = "wordpiece.json"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pad: int = tokenizer.token_to_id("[PAD]") or 0
        self.mask: int | None = tokenizer.token_to_id("[MASK]")
        """what a masked language model sees in place of a token; None where the vocabulary has no such token"""
        self.size: int = tokenizer.get_vocab_size()

    def batch(self, texts: Sequence[str], limit_tokens: int) -> tuple[Tensor, Tensor]:
        """``(ids_NL, mask_NL)``, padded to the longest, each cut at ``limit_tokens`` with its ``[SEP]`` kept."""
        rows = [_cut(encoding.ids, limit_tokens) for encoding in self.tokenizer.encode_batch(list(texts))]
        return pad_rows(rows, self.pad)

    def pieces(self, text: str, limit_tokens: int) -> list[str]:
        """A text of at most ``limit_tokens`` ([CLS] and [SEP] among them) whole, a longer one cut between tokens into the fewest pieces that fit,
        all of like length; none of a text without a token."""
        room = limit_tokens - 2
        if len(text) <= room:
            return _even(text, [], 1)
        starts = [start for start, _ in self.tokenizer.encode(text, add_special_tokens=False).offsets]
        return _even(text, starts, math.ceil(len(starts) / room))

    def texts(self) -> list[str]:
        """What each token stands for in a text; empty for the special ones."""
        tokens = (str(self.tokenizer.id_to_token(number)) for number in range(self.size))
        return ["" if token in _SPECIAL else token.removeprefix("##") for token in tokens]

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / self.FILE))

    @classmethod
    def load(cls, folder: Path) -> Wordpiece:
        """From ``wordpiece.json`` (medrag's), ``tokenizer.json`` or ``vocab.txt`` (the transformers layout)."""
        for name in (cls.FILE, "tokenizer.json"):
            if (folder / name).is_file():
                tokenizer = tokenizers.Tokenizer.from_file(str(folder / name))
                tokenizer.no_padding()
                tokenizer.no_truncation()
                return cls(tokenizer)
        if (folder / "vocab.txt").is_file():
            words = (folder / "vocab.txt").read_text("utf-8").removesuffix("\n").split("\n")
            return cls(_bert({word: number for number, word in enumerate(words)}))
        raise ValueError(f"{folder}: no WordPiece vocabulary there; one of {cls.FILE}, tokenizer.json and vocab.txt is needed")

    @classmethod
    def build(cls, texts: Iterable[str], size: int) -> Wordpiece:
        """The special tokens, every character, and the most frequent words in other scripts, at most ``size`` in all.

        Counted rather than trained, since the same corpus must always give the same vocabulary (tokenizers' own trainer does not).
        Characters seen only once, and words beyond the limit, are left out; words without a token of their own are spelled.
        """
        blank = _bert({})
        words: Counter[str] = Counter()
        for text in texts:
            words.update(word for word, _ in blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(text)))
        characters: Counter[str] = Counter()
        for word, count in words.items():
            characters.update({word[0]: count})
            characters.update(Counter({"##" + character: count * times for character, times in Counter(word[1:]).items()}))
        ranked = [_by_count(characters), _by_count(Counter({word: count for word, count in words.items() if len(word) > 1}))]
        pieces = dict.fromkeys([*_SPECIAL, *(piece for counted in ranked for piece in counted)])
        return cls(_bert({piece: number for number, piece in enumerate(list(pieces)[:size])}))

    @classmethod
    def build_words(cls, texts: Iterable[str], size: int, segmenter: Segmenter) -> Wordpiece:
        """The special tokens, every character, and the most frequent words of all scripts, at most ``size`` in all: about 0.6 of the tokens.

        A run of one script becomes the most probable row of pieces (Kudo 2018, equations 1 and 3: the product of the pieces' shares), found
        in time linear in the text. The shares are counts of the segmenter's words, so that they need no training and the same corpus always
        gives the same vocabulary. A character without a piece becomes [UNK] alone; what stands beside it is cut as it would be otherwise.
        """
        blank = _unigram([])
        words: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        for text in texts:
            runs = [run for run, _ in blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(text))]
            words.update(segmenter.join(" ".join(runs)).split())
            characters.update("".join(runs))
        ranked = [_by_count(characters), _by_count(Counter({word: count for word, count in words.items() if len(word) > 1}))]
        pieces = [*_SPECIAL, *(piece for counted in ranked for piece in counted)][:size]
        # six decimals: tokenizers reads more of them back with another last bit, and a saved vocabulary must cut as this one does
        return cls(_unigram([(piece, round(math.log(max(words[piece], 1) / max(words.total(), 1)), 6)) for piece in pieces]))


def _by_count(counted: Counter[str]) -> list[str]:
    """What was seen more than once, the most frequent first, ties in code-point order."""
    return sorted((piece for piece, count in counted.items() if count > 1), key=lambda piece: (-counted[piece], piece))


def _bert(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if vocabulary:
        _add_ends(tokenizer, vocabulary)
    return tokenizer


def _unigram(pieces: Sequence[tuple[str, float]]) -> tokenizers.Tokenizer:
    """Pieces with their log-probabilities; white space, punctuation and a change to or from Chinese always end a piece."""
    tokenizer = tokenizers.Tokenizer(models.Unigram(list(pieces), unk_id=_SPECIAL.index("[UNK]")) if pieces else models.Unigram())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=False)
    chinese = pre_tokenizers.Split(tokenizers.Regex(f"[{HAN}]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), chinese])
    tokenizer.decoder = decoders.Fuse()
    if pieces:
        _add_ends(tokenizer, {piece: number for number, (piece, _) in enumerate(pieces)})
    return tokenizer


def _add_ends(tokenizer: tokenizers.Tokenizer, vocabulary: dict[str, int]) -> None:
    missing = [token for token in _SPECIAL[:4] if token not in vocabulary]
    if missing:
        raise ValueError(f"the WordPiece vocabulary lacks {missing}")
    tokenizer.add_special_tokens([token for token in _SPECIAL if token in vocabulary])
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=None, special_tokens=ends)


class Sentencepiece:
    """mT5's tokenizer, used through the sentencepiece library itself so that its byte pieces stay at work."""

    FILE = "sentencepiece.model"

    def __init__(self, proto: bytes) -> None:
        self.proto = proto
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.size: int = self.processor.get_piece_size()
        self.pad, self.end, self.unknown = 0, 1, 2
        found = (self.processor.pad_id(), self.processor.eos_id(), self.processor.unk_id())
        if found != (self.pad, self.end, self.unknown):
            raise ValueError(f"the SentencePiece model has pad, end and unknown at {found}; mT5 has them at (0, 1, 2)")
        named = ((_EXTRA_ID.fullmatch(self.processor.id_to_piece(number)), number) for number in range(self.size))
        self.sentinels = [number for _, number in sorted((int(match[1]), number) for match, number in named if match)]
        """ids of ``<extra_id_0>``, ``<extra_id_1>``, ...: in the real mT5 they run down, from 250,099"""

    def encode(self, text: str, limit_tokens: int) -> list[int]:
        """Ids with the end token last, cut at ``limit_tokens``."""
        return [*self.processor.encode(text)[: limit_tokens - 1], self.end]

    def batch(self, texts: Sequence[str], limit_tokens: int) -> tuple[Tensor, Tensor]:
        """``(ids_NL, mask_NL)``, padded to the longest, each with its end token."""
        return pad_rows([self.encode(text, limit_tokens) for text in texts], self.pad)

    def pieces(self, text: str, limit_tokens: int) -> list[str]:
        """A text of at most ``limit_tokens`` (the end token among them) whole, a longer one cut between tokens into pieces that fit, all of like
        length, as few as possible; none of a text without a token."""
        mapped = self.processor.encode(text, return_type="offset_mapping")
        starts, room = [start for start, _ in mapped["offsets"]], limit_tokens - 1
        for count in range(max(1, math.ceil(len(starts) / room)), len(starts) + 1):
            found = _even(text, starts, count)
            # a piece that stands alone begins with a space of its own, so that it may have a token more than it had
            if all(len(self.processor.encode(piece)) <= room for piece in found):
                return found
        return _even(text, starts, len(starts)) if starts else []

    def pairs(self, heads: Sequence[str], tails: Sequence[str], limit_tokens: int) -> tuple[Tensor, Tensor]:
        """``(ids_NL, mask_NL)`` of head and tail joined; the head stands first and is kept, the tail is cut (heads take half at most)."""
        rows = []
        for head, tail in zip(heads, tails, strict=True):
            first = self.processor.encode(head)[: limit_tokens // 2]
            rows.append([*first, self.end, *self.encode(tail, limit_tokens - len(first) - 1)])
        return pad_rows(rows, self.pad)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, special pieces left out."""
        hidden = {self.pad, self.end, self.unknown, *self.sentinels}
        text: str = self.processor.decode([number for number in ids if number not in hidden])
        return text.strip()

    def save(self, folder: Path) -> None:
        (folder / self.FILE).write_bytes(self.proto)

    @classmethod
    def load(cls, folder: Path) -> Sentencepiece:
        """From ``sentencepiece.model`` (medrag's) or ``spiece.model`` (the transformers layout)."""
        for name in (cls.FILE, "spiece.model"):
            if (folder / name).is_file():
                try:
                    return cls((folder / name).read_bytes())
                except RuntimeError as error:
                    raise ValueError(f"{folder / name}: not a SentencePiece model") from error
        raise ValueError(f"{folder}: no SentencePiece model there; {cls.FILE} or spiece.model is needed")

    @classmethod
    def build(cls, texts: Iterable[str], size: int) -> Sentencepiece:
        """A unigram model with byte fallback and mT5's special pieces; ``size`` is an upper limit, kept to where the corpus fills it."""
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_pieces(texts),
                model_writer=written,
                vocab_size=size,
                hard_vocab_limit=False,
                model_type="unigram",
                character_coverage=0.9995,
                byte_fallback=True,
                normalization_rule_name="identity",
                user_defined_symbols=list(EXTRA_IDS),
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                num_threads=os.cpu_count() or 1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"no SentencePiece vocabulary of {size} pieces could be built from this corpus ({error})") from error
        return cls(written.getvalue())

    def cut(self, texts: Iterable[str], size: int) -> tuple[Sentencepiece, list[int]]:
        """A smaller model that encodes the corpus the same way, and the old ids of its pieces in their new order.

        Special pieces stay, then the pieces the corpus uses most, then the single characters it does not use, up to ``size``; the order is the
        old one, so pad, end and unknown stay 0, 1, 2. As long as every piece that the corpus uses has room, each of its texts is encoded as
        before. A model of ``size`` pieces or fewer stays as it is. Raises ValueError where ``size`` has no room for the special pieces.
        """
        if self.size <= size:
            return self, list(range(self.size))
        from sentencepiece import sentencepiece_model_pb2 as model

        proto: Any = model.ModelProto()
        proto.ParseFromString(self.proto)
        kinds = model.ModelProto.SentencePiece
        used: Counter[int] = Counter()
        for text in texts:
            used.update(self.processor.encode(text))
        special, characters, plain = [], [], []
        for number, piece in enumerate(proto.pieces):
            if piece.type != kinds.NORMAL or _EXTRA_ID.fullmatch(piece.piece):
                special.append(number)
            else:
                plain.append(number)
                if used[number] == 0 and len(piece.piece.lstrip("▁")) == 1:
                    characters.append(number)
        # an unknown character costs 10 more than the lowest score: with another lowest one, texts that hold such a character could be cut otherwise
        special += [min(plain, key=lambda number: proto.pieces[number].score)] if plain else []
        if len(special) > size:
            raise ValueError(f"model.generator.vocabulary_tokens={size} is less than the {len(special)} pieces that are always kept")
        kept = dict.fromkeys([*special, *(number for number, _ in used.most_common()), *characters])
        order = sorted(list(kept)[:size])
        pieces = [proto.pieces[number] for number in order]
        del proto.pieces[:]
        proto.pieces.extend(pieces)
        proto.trainer_spec.vocab_size = len(order)
        return Sentencepiece(proto.SerializeToString()), order


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """``(ids_NL, mask_NL)`` of rows of different lengths, padded on the right."""
    ids_NL = torch.full((len(rows), max(map(len, rows), default=0)), pad, dtype=torch.long)
    mask_NL = torch.zeros_like(ids_NL, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids_NL[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask_NL[number, : len(row)] = True
    return ids_NL, mask_NL


def _cut(ids: list[int], limit_tokens: int) -> list[int]:
    return ids if len(ids) <= limit_tokens else [*ids[: limit_tokens - 1], ids[-1]]


def _even(text: str, starts: Sequence[int], count: int) -> list[str]:
    """``text`` cut at some of its tokens' ``starts`` into ``count`` parts with as many tokens in each, give or take one; no part is blank."""
    cuts = [0, *(starts[len(starts) * number // count] for number in range(1, count)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts) if text[start:end].strip()]


def _pieces(texts: Iterable[str], limit_characters: int = 1000) -> Iterator[str]:
    """SentencePiece's trainer drops sentences of more than 4,192 bytes: cut the long ones."""
    for text in texts:
        for start in range(0, len(text), limit_characters):
            yield text[start : start + limit_characters]
