"""The transformers layout: a folder with ``config.json``, ``model.safetensors`` and ``spiece.model``, read and written without transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from medrag import files, weights
from medrag.generator.network import Shape
from medrag.vocabulary import Sentencepiece

CONFIG, WEIGHTS, VOCABULARY = "config.json", "model.safetensors", "spiece.model"
_KEYS = {
    "vocabulary_tokens": "vocab_size",
    "width": "d_model",
    "head_width": "d_kv",
    "heads": "num_heads",
    "layers": "num_layers",
    "feed_forward": "d_ff",
    "dropout": "dropout_rate",
    "buckets": "relative_attention_num_buckets",
    "distance_tokens": "relative_attention_max_distance",
    "epsilon": "layer_norm_epsilon",
}
"""our names of what every configuration has, and transformers'"""
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def read(folder: Path, sentencepiece: Sentencepiece, dropout: float) -> tuple[Shape, dict[str, Tensor]]:
    """Shape and fp32 weights of the folder's network, embedding and head cut to the vocabulary's pieces.

    Raises ValueError where there are no safetensors, or the network is not mT5's.
    """
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"model.generator.pretrained={folder}: no {WEIGHTS} there (other weight formats are refused)")
    told = replace(shape(folder), vocabulary_tokens=sentencepiece.size, dropout=dropout)
    tensors = weights.read(folder / WEIGHTS)
    copies = [tensors.pop(name) for name in _COPIES if name in tensors]
    if "shared.weight" not in tensors and copies:
        tensors["shared.weight"] = copies[0]
    tensors.setdefault("lm_head.weight", tensors["shared.weight"])
    old = {piece: number for number, piece in enumerate(_names(Sentencepiece.load(folder)))}
    order = torch.tensor([old[piece] for piece in _names(sentencepiece)])
    for name in ("shared.weight", "lm_head.weight"):
        tensors[name] = tensors[name][order]
    # not before the cut: what is read is mapped, and only the rows that stay come into memory
    return told, {name: tensor.float() for name, tensor in tensors.items()}


def write(folder: Path, shape: Shape, tensors: dict[str, Tensor], sentencepiece: Sentencepiece) -> None:
    """The folder that ``read``, and transformers' ``MT5ForConditionalGeneration.from_pretrained``, make the same network of."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {theirs: getattr(shape, ours) for ours, theirs in _KEYS.items()} | {
        "architectures": ["MT5ForConditionalGeneration"],
        "model_type": "mt5",
        "num_decoder_layers": shape.decoder_layers,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "initializer_factor": 1.0,
        "use_cache": True,
        "pad_token_id": sentencepiece.pad,
        "eos_token_id": sentencepiece.end,
        "decoder_start_token_id": sentencepiece.pad,
    }
    files.write_json(folder / CONFIG, config)
    weights.write(tensors, folder / WEIGHTS)
    (folder / VOCABULARY).write_bytes(sentencepiece.proto)


def shape(folder: Path) -> Shape:
    """Of the folder's network, without dropout. Raises ValueError where it is not mT5's."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    missing = [theirs for theirs in ("vocab_size", "d_model", "d_kv", "num_heads", "num_layers", "d_ff") if theirs not in config]
    if missing:
        raise ValueError(f"{folder / CONFIG}: not a T5's, it lacks {', '.join(missing)}")
    if config.get("feed_forward_proj", "gated-gelu") != "gated-gelu":
        raise ValueError(f"{folder / CONFIG}: feed_forward_proj={config['feed_forward_proj']!r}; allowed: gated-gelu, which is mT5's")
    values = {ours: config[theirs] for ours, theirs in _KEYS.items() if theirs in config}
    return Shape(**{"dropout": 0.0} | values, decoder_layers=config.get("num_decoder_layers") or config["num_layers"])


def _names(sentencepiece: Sentencepiece) -> list[str]:
    return [sentencepiece.processor.id_to_piece(number) for number in range(sentencepiece.size)]
