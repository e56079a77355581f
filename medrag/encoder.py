"""ALBERT (Lan et al. 2020), as DPR's encoder (Karpukhin et al. 2020): token ids -> vectors; a bag of units beside it or in its place.

Shapes: B texts, L tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AlbertConfig, AlbertModel

from medrag.bag import Bag
from medrag.text import Segmenter
from medrag.vocabulary import Wordpiece, pretrained_folder

POOLINGS = ("cls", "mean")
TEMPERATURES = {"dot": 1.0, "cosine": 0.05}
SIMILARITIES = tuple(TEMPERATURES)
ENDLESS = 1_000_000
"""tokens: what a bag alone takes"""
VOCABULARY_UNITS = ("characters", "words")


@dataclass
class Config:
    """The shape of the encoder; the defaults are ALBERT-small."""

    pretrained: str = ""
    """folder in the transformers layout (or, to be downloaded, a hub name); empty: random weights and a vocabulary from the corpus"""
    vocabulary_tokens: int = 21_128
    """size of the WordPiece vocabulary, at most"""
    vocabulary_unit: str = "characters"
    """characters: one token a Chinese character; words: frequent Chinese words are tokens too, so that a text has about 0.6 of the tokens"""
    embedding: int = 128
    """width of the factorised token embedding"""
    width: int = 384
    layers: int = 6
    """0: no transformer, the bag alone"""
    heads: int = 12
    feed_forward: int = 1536
    dropout: float = 0.1
    positions_tokens: int = 512
    """longest text the position embedding allows"""
    pooling: str = "cls"
    """cls: the first token's state; mean: the mean over the text's tokens"""
    similarity: str = "dot"
    """dot: q . d; cosine: of vectors of length 1"""
    temperature: float = 0.0
    """what q . d is divided by (each vector by its square root); 0: 1 for dot, 0.05 for cosine"""
    shared: bool = False
    """one encoder for questions and passages instead of two"""
    bag: int = 0
    """components of a learned bag of words, characters and pairs, put behind the transformer's; 0: none"""
    bag_buckets: int = 65_536
    """rows of the bag's hash table"""
    bag_dropout: float = 0.3
    """share of the bag's units left out in training"""
    bag_share: float = 0.8
    """of a vector's squared length that is the bag's to begin with, if similarity is cosine"""


class Encoder(nn.Module):
    """An ALBERT with a pooled output, a bag, or both side by side; inner products of what comes out are the scores."""

    def __init__(
        self, albert: AlbertConfig | None, pooling: str, similarity: str, temperature: float, bag: Bag | None = None, share: float = 0.8
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"model.encoder.pooling={pooling!r}; allowed: {', '.join(POOLINGS)}")
        if similarity not in SIMILARITIES:
            raise ValueError(f"model.encoder.similarity={similarity!r}; allowed: {', '.join(SIMILARITIES)}")
        if temperature < 0:
            raise ValueError(f"model.encoder.temperature={temperature}; it must be above 0, or 0 for the usual one")
        if bag is not None and similarity != "cosine":
            raise ValueError(f"model.encoder.similarity={similarity!r}: a bag (model.encoder.bag={bag.width}) needs cosine")
        if bag is None and albert is None:
            raise ValueError("model.encoder.layers=0 needs a bag: model.encoder.bag above 0")
        if not 0 < share < 1:
            raise ValueError(f"model.encoder.bag_share={share}; it must be above 0 and below 1")
        self.albert = None if albert is None else AlbertModel(albert, add_pooling_layer=False)
        self.bag = bag
        self.share = nn.Parameter(torch.tensor([math.log(share / (1 - share))])) if bag is not None and albert is not None else None
        self.pooling = pooling
        self.similarity = similarity
        self.temperature = temperature or TEMPERATURES[similarity]

    @property
    def width(self) -> int:
        """D, the number of components of a vector."""
        transformer = 0 if self.albert is None else int(self.albert.config.hidden_size)
        return transformer + (0 if self.bag is None else self.bag.width)

    @property
    def positions_tokens(self) -> int:
        """The longest text that the encoder takes."""
        return ENDLESS if self.albert is None else int(self.albert.config.max_position_embeddings)

    @property
    def light(self) -> bool:
        """Whether it holds next to nothing for the backward pass."""
        return self.albert is None

    @property
    def transformer(self) -> AlbertModel:
        """The ALBERT. Raises ValueError where the encoder is a bag alone."""
        if self.albert is None:
            raise ValueError("model.encoder.layers=0 is a bag alone; this needs a transformer, of 1 layer or more")
        return self.albert

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Vectors (B, D) of the texts, pooled in fp32 whatever the precision of the weights."""
        if self.albert is None:
            assert self.bag is not None
            x_BD: Tensor = self.bag(ids_BL)
        elif self.bag is None:
            x_BD = self._pooled(self.albert, ids_BL, mask_BL)
            if self.similarity == "cosine":
                x_BD = F.normalize(x_BD, dim=-1)
        else:
            assert self.share is not None
            share = torch.sigmoid(self.share.float())
            context_BD = F.normalize(self._pooled(self.albert, ids_BL, mask_BL), dim=-1)
            x_BD = torch.cat([share.sqrt() * self.bag(ids_BL), (1 - share).sqrt() * context_BD], dim=1)
        return x_BD if self.temperature == 1 else x_BD * self.temperature**-0.5

    def _pooled(self, albert: AlbertModel, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        state_BLD: Tensor = albert(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        if self.pooling == "cls":
            return state_BLD[:, 0].float()
        weight_BL1 = mask_BL.unsqueeze(-1).float()
        return (state_BLD.float() * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)

    def checkpoint_activations(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        if self.albert is None:
            return
        group = self.albert.encoder.albert_layer_groups[0]
        plain = group.forward

        def forward(*inputs: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled():
                return plain(*inputs, **named)
            return checkpoint(plain, *inputs, use_reentrant=False, **named)

        group.forward = forward

    def describe(self) -> dict[str, Any]:
        """What ``restore`` needs to make an encoder of this shape."""
        return {
            "albert": None if self.albert is None else self.albert.config.to_dict(),
            "pooling": self.pooling,
            "similarity": self.similarity,
            "divisor": self.temperature,
            "bag": None if self.bag is None else self.bag.describe(),
        }


def restore(description: dict[str, Any]) -> Encoder:
    """An encoder of the described shape with random weights, to load saved ones into."""
    albert = None if description["albert"] is None else AlbertConfig(**description["albert"])
    bag = None if description["bag"] is None else Bag(**description["bag"])
    return Encoder(albert, description["pooling"], description["similarity"], description["divisor"], bag)


def outline(config: Config) -> Config:
    """The same shape without weights to start from: that of the pretrained folder, where there is one."""
    if not config.pretrained:
        return config
    known = AlbertConfig.from_pretrained(pretrained_folder(config.pretrained))
    return replace(
        config,
        pretrained="",
        vocabulary_tokens=known.vocab_size,
        embedding=known.embedding_size,
        width=known.hidden_size,
        layers=known.num_hidden_layers,
        heads=known.num_attention_heads,
        feed_forward=known.intermediate_size,
        positions_tokens=known.max_position_embeddings,
    )


def build_vocabulary(config: Config, texts: Iterable[str], segmenter: Segmenter) -> Wordpiece:
    """The pretrained folder's vocabulary, or one built from the corpus.

    Raises ValueError for an unknown unit, and for words where the pretrained folder has its own vocabulary.
    """
    if config.vocabulary_unit not in VOCABULARY_UNITS:
        raise ValueError(f"model.encoder.vocabulary_unit={config.vocabulary_unit!r}; allowed: {', '.join(VOCABULARY_UNITS)}")
    if config.pretrained:
        if config.vocabulary_unit != "characters":
            raise ValueError(f"model.encoder.vocabulary_unit={config.vocabulary_unit}: model.encoder.pretrained={config.pretrained} brings its own")
        return Wordpiece.load(pretrained_folder(config.pretrained))
    if config.vocabulary_unit == "words":
        return Wordpiece.build_words(texts, config.vocabulary_tokens, segmenter)
    return Wordpiece.build(texts, config.vocabulary_tokens)


def build(config: Config, wordpiece: Wordpiece) -> Encoder:
    """An encoder with the pretrained folder's weights, or with random ones.

    Raises ValueError where a width is not divisible or the folder holds no safetensors.
    """
    bag = None
    if config.bag:
        bag = Bag(wordpiece.size, config.bag, config.bag_buckets, config.bag_dropout)
        bag.read(wordpiece.texts())
    if config.pretrained:
        folder = pretrained_folder(config.pretrained)
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"model.encoder.pretrained={config.pretrained}: no model.safetensors there (other weight formats are refused)")
        albert = _fused(AlbertConfig.from_pretrained(folder, hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=0.0))
        encoder = Encoder(albert, config.pooling, config.similarity, config.temperature, bag, config.bag_share)
        encoder.albert = AlbertModel.from_pretrained(folder, config=albert, use_safetensors=True, add_pooling_layer=False, dtype=torch.float32)
        return encoder
    if config.layers == 0:
        return Encoder(None, config.pooling, config.similarity, config.temperature, bag)
    if config.width % config.heads:
        raise ValueError(f"model.encoder.width={config.width} is not divisible by model.encoder.heads={config.heads}")
    albert = AlbertConfig(
        vocab_size=wordpiece.size,
        embedding_size=config.embedding,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.feed_forward,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=config.positions_tokens,
        pad_token_id=wordpiece.pad,
    )
    return Encoder(_fused(albert), config.pooling, config.similarity, config.temperature, bag, config.bag_share)


def _fused(albert: AlbertConfig) -> AlbertConfig:
    """gelu_new and gelu_pytorch_tanh are the same function; the latter is one pass over memory instead of several."""
    if albert.hidden_act == "gelu_new":
        albert.hidden_act = "gelu_pytorch_tanh"
    return albert
