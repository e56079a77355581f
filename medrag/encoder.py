"""ALBERT: token ids -> vectors (Lan et al. 2020; as DPR's encoder, Karpukhin et al. 2020).

Shapes: B texts, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AlbertConfig, AlbertModel

from medrag.vocabulary import Wordpiece, pretrained_folder

POOLINGS = ("cls", "mean")
SIMILARITIES = ("dot", "cosine")


@dataclass
class Config:
    """The shape of the encoder; the defaults are ALBERT-small."""

    pretrained: str = ""
    """folder in the transformers layout (or, to be downloaded, a hub name); empty: random weights and a vocabulary from the corpus"""
    vocabulary_tokens: int = 21_128
    """size of the WordPiece vocabulary, at most"""
    embedding: int = 128
    """width of the factorised token embedding"""
    width: int = 384
    layers: int = 6
    heads: int = 12
    feed_forward: int = 1536
    dropout: float = 0.1
    positions_tokens: int = 512
    """longest text the position embedding allows"""
    pooling: str = "cls"
    """cls: the first token's state; mean: the mean over the text's tokens"""
    similarity: str = "dot"
    """dot: q . d as it is; cosine: vectors of length 1/sqrt(temperature), so that q . d is cosine / temperature"""
    temperature: float = 0.05
    """used by cosine only"""
    shared: bool = False
    """one encoder for questions and passages instead of two"""


class Encoder(nn.Module):
    """An ALBERT with a pooled output whose inner products are the scores."""

    def __init__(self, albert: AlbertConfig, pooling: str, similarity: str, temperature: float) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"model.encoder.pooling={pooling!r}; allowed: {', '.join(POOLINGS)}")
        if similarity not in SIMILARITIES:
            raise ValueError(f"model.encoder.similarity={similarity!r}; allowed: {', '.join(SIMILARITIES)}")
        if temperature <= 0:
            raise ValueError(f"model.encoder.temperature={temperature}; it must be above 0")
        self.albert = AlbertModel(albert, add_pooling_layer=False)
        self.pooling = pooling
        self.length = temperature**-0.5 if similarity == "cosine" else None
        self.temperature = temperature

    @property
    def width(self) -> int:
        """D, the number of components of a vector."""
        return int(self.albert.config.hidden_size)

    @property
    def positions_tokens(self) -> int:
        """The longest text that the position embedding allows."""
        return int(self.albert.config.max_position_embeddings)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Vectors (B, D) of the texts."""
        state_BLD: Tensor = self.albert(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        if self.pooling == "cls":
            x_BD = state_BLD[:, 0]
        else:
            weight_BL1 = mask_BL.unsqueeze(-1).to(state_BLD.dtype)
            x_BD = (state_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)
        return x_BD if self.length is None else F.normalize(x_BD.float(), dim=-1) * self.length

    def checkpoint_activations(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        group = self.albert.encoder.albert_layer_groups[0]
        plain = group.forward

        def forward(*inputs: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled():
                return plain(*inputs, **named)
            return checkpoint(plain, *inputs, use_reentrant=False, **named)

        group.forward = forward

    def describe(self) -> dict[str, Any]:
        """What ``restore`` needs to make an encoder of this shape."""
        similarity = "dot" if self.length is None else "cosine"
        return {"albert": self.albert.config.to_dict(), "pooling": self.pooling, "similarity": similarity, "temperature": self.temperature}


def restore(description: dict[str, Any]) -> Encoder:
    """An encoder of the described shape with random weights, to load saved ones into."""
    albert = AlbertConfig(**description["albert"])
    return Encoder(albert, description["pooling"], description["similarity"], description["temperature"])


def build_vocabulary(config: Config, texts: Iterable[str]) -> Wordpiece:
    """The pretrained folder's vocabulary, or one built from the corpus."""
    return Wordpiece.load(pretrained_folder(config.pretrained)) if config.pretrained else Wordpiece.build(texts, config.vocabulary_tokens)


def build(config: Config, wordpiece: Wordpiece) -> Encoder:
    """An encoder with the pretrained folder's weights, or with random ones.

    Raises ValueError where a width is not divisible or the folder holds no safetensors.
    """
    if config.pretrained:
        folder = pretrained_folder(config.pretrained)
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"model.encoder.pretrained={config.pretrained}: no model.safetensors there (other weight formats are refused)")
        albert = _fused(AlbertConfig.from_pretrained(folder, hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=0.0))
        encoder = Encoder(albert, config.pooling, config.similarity, config.temperature)
        encoder.albert = AlbertModel.from_pretrained(folder, config=albert, use_safetensors=True, add_pooling_layer=False, dtype=torch.float32)
        return encoder
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
    return Encoder(_fused(albert), config.pooling, config.similarity, config.temperature)


def _fused(albert: AlbertConfig) -> AlbertConfig:
    """gelu_new and gelu_pytorch_tanh are the same function; the latter is one pass over memory instead of several."""
    if albert.hidden_act == "gelu_new":
        albert.hidden_act = "gelu_pytorch_tanh"
    return albert
