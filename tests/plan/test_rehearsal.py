"""What a run is rehearsed from: of pretrained folders their shapes alone."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import Tiny
from transformers import AlbertConfig, AlbertModel

from medrag import config
from medrag.assemble.rehearsal import rehearse

SHORT = ["hardware.devices=1", "task.global_batch=2"]


def test_a_pretrained_folder_gives_the_shape_and_is_not_read_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    made = tiny.generator()
    made.export(tmp_path / "generator")
    (tmp_path / "generator" / "model.safetensors").unlink()
    shape = made.network.shape
    plain = [
        "task=closed_book",
        *SHORT,
        f"model.generator.width={shape.width}",
        f"model.generator.head_width={shape.head_width}",
        f"model.generator.heads={shape.heads}",
        f"model.generator.layers={shape.layers}",
        f"model.generator.feed_forward={shape.feed_forward}",
        f"model.generator.vocabulary_tokens={shape.vocabulary_tokens}",
    ]
    given = ["model=reference", "task=closed_book", *SHORT, f"model.generator.pretrained={tmp_path / 'generator'}", "model.generator.dropout=0"]
    expected, found = rehearse(config.compose(plain)), rehearse(config.compose(given))
    assert found.trained_parameters == expected.trained_parameters == made.parameters_count
    assert found.memory == expected.memory


def test_so_does_an_encoder_s(tmp_path: Path) -> None:
    known = AlbertConfig(
        vocab_size=500,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=300,
    )
    known.save_pretrained(tmp_path)
    with torch.device("meta"):
        own = sum(parameter.numel() for parameter in AlbertModel(known, add_pooling_layer=False).parameters())
    found = rehearse(config.compose(["model=reference", "task=dense", *SHORT, f"model.encoder.pretrained={tmp_path}"]))
    assert found.trained_parameters == 2 * own
