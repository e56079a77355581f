"""transformers' own mT5 with the weights of one of ours: what ours is held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MT5Config, MT5ForConditionalGeneration

from medrag.generator import Generator
from medrag.generator.network import T5

COPIES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def untie(whole: Any) -> Any:
    """transformers 5 ties the head whatever mT5's configuration says; here it gets a matrix of its own."""
    whole.lm_head.weight = nn.Parameter(whole.lm_head.weight.detach().clone())
    return whole


def untied(config: Any) -> Any:
    """A random one."""
    return untie(MT5ForConditionalGeneration(config))


def config_of(network: T5) -> Any:
    shape = network.shape
    return MT5Config(
        vocab_size=shape.vocabulary_tokens,
        d_model=shape.width,
        d_kv=shape.head_width,
        num_heads=shape.heads,
        d_ff=shape.feed_forward,
        num_layers=shape.layers,
        num_decoder_layers=shape.decoder_layers,
        relative_attention_num_buckets=shape.buckets,
        relative_attention_max_distance=shape.distance_tokens,
        dropout_rate=shape.dropout,
        layer_norm_epsilon=network.encoder.final_layer_norm.epsilon,
    )


def fill(whole: Any, network: T5) -> Any:
    """transformers' model with the network's weights; it lists the embedding under three names."""
    found = whole.load_state_dict(network.state_dict(), strict=False)
    assert set(found.missing_keys) == COPIES and not found.unexpected_keys
    return whole


def transformers_t5(made: Generator) -> Any:
    """In evaluation mode."""
    return fill(untied(config_of(made.network)), made.network).eval()


def logits(made: Generator, ids_NL: Tensor, mask_NL: Tensor, before_NT: Tensor) -> Tensor:
    """transformers' logits (N, T, V)."""
    with torch.no_grad():
        found: Tensor = transformers_t5(made)(input_ids=ids_NL, attention_mask=mask_NL.long(), decoder_input_ids=before_NT).logits
    return found
