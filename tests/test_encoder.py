"""ALBERT: pooling, lengths, pretrained folders, recomputation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Tiny
from transformers import AlbertConfig, AlbertForMaskedLM, AlbertModel
from transformers.activations import ACT2FN

from medrag import encoder
from medrag.encoder import Encoder
from medrag.text import Segmenter

TEMPERATURE = 0.05


@pytest.mark.parametrize("pooling", encoder.POOLINGS)
@pytest.mark.parametrize("similarity", encoder.SIMILARITIES)
def test_padding_changes_nothing(tiny: Tiny, pooling: str, similarity: str) -> None:
    made = tiny.encoder(pooling=pooling, similarity=similarity)
    ids_BL, mask_BL = tiny.wordpiece.batch(tiny.questions[:4], 32)
    assert not mask_BL.all()
    together_BD = made(ids_BL, mask_BL)
    assert together_BD.shape == (4, made.width) == (4, 32)
    for number, question in enumerate(tiny.questions[:4]):
        assert torch.allclose(made(*tiny.wordpiece.batch([question], 32))[0], together_BD[number], atol=1e-5)
    garbage_BL = torch.where(mask_BL, ids_BL, torch.full_like(ids_BL, 7))
    assert torch.allclose(made(garbage_BL, mask_BL), together_BD, atol=1e-5)
    assert not torch.allclose(together_BD[0], together_BD[1], atol=1e-2)


def test_pooling_is_what_it_says(tiny: Tiny) -> None:
    first, mean = tiny.encoder(pooling="cls"), tiny.encoder(pooling="mean")
    ids_BL, mask_BL = tiny.wordpiece.batch(tiny.questions[:4], 32)
    assert first.albert is not None
    state_BLD = first.albert(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
    assert torch.allclose(first(ids_BL, mask_BL), state_BLD[:, 0], atol=1e-6)
    for number, mask_L in enumerate(mask_BL):
        assert torch.allclose(mean(ids_BL, mask_BL)[number], state_BLD[number, mask_L].mean(0), atol=1e-5)


def test_cosine_scores_are_cosines_over_the_temperature(tiny: Tiny) -> None:
    plain, cosine = tiny.encoder(), tiny.encoder(similarity="cosine")
    batch = tiny.wordpiece.batch(tiny.questions[:4], 32)
    x_BD, y_BD = plain(*batch), cosine(*batch)
    assert torch.allclose(y_BD.norm(dim=1), torch.full((4,), TEMPERATURE**-0.5), atol=1e-4)
    expected = torch.nn.functional.cosine_similarity(x_BD[:, None], x_BD[None], dim=-1) / TEMPERATURE
    assert torch.allclose(y_BD @ y_BD.T, expected, atol=1e-3)


def test_the_reference_size_is_5_million(tiny: Tiny) -> None:
    """ALBERT-small without a pooler, with the 21,128 words of Chinese BERT."""
    shape = encoder.Config()
    with torch.device("meta"):
        albert = AlbertConfig(
            vocab_size=shape.vocabulary_tokens,
            embedding_size=shape.embedding,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.feed_forward,
            max_position_embeddings=shape.positions_tokens,
        )
        made = Encoder(albert, "cls", "dot", TEMPERATURE)
    assert sum(parameter.numel() for parameter in made.parameters()) == 4_594_432


def test_fused_gelu_is_gelu_new() -> None:
    x = torch.linspace(-12, 12, 4001)
    assert float((ACT2FN["gelu_pytorch_tanh"](x) - ACT2FN["gelu_new"](x)).abs().max()) < 1e-6
    assert float((ACT2FN["gelu_pytorch_tanh"](x) - ACT2FN["gelu"](x)).abs().max()) > 1e-5


def test_checkpointed_activations_give_equal_gradients(tiny: Tiny) -> None:
    plain, checkpointed = tiny.encoder().train(), tiny.encoder().train()
    calls = [0, 0]
    for number, made in enumerate((plain, checkpointed)):

        def count(*_: object, number: int = number) -> None:
            calls[number] += 1

        assert made.albert is not None
        made.albert.encoder.albert_layer_groups[0].albert_layers[0].register_forward_pre_hook(count)
    checkpointed.checkpoint_activations()
    batch = tiny.wordpiece.batch(tiny.questions[:4], 32)
    weight_BD = torch.randn(4, plain.width)
    one_BD, two_BD = plain(*batch), checkpointed(*batch)
    assert torch.allclose(one_BD, two_BD, atol=1e-6)
    (one_BD * weight_BD).sum().backward()
    (two_BD * weight_BD).sum().backward()
    assert calls == [2, 4], "two layers, computed again in the backward pass"
    for (name, one), two in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name
        assert torch.allclose(one.grad, two.grad, atol=1e-5), name
    with torch.no_grad():
        checkpointed(*batch)
    assert calls == [2, 6]


def test_a_restored_encoder_is_the_saved_one(tiny: Tiny) -> None:
    made = tiny.encoder(pooling="mean", similarity="cosine")
    again = encoder.restore(made.describe()).eval()
    again.load_state_dict(made.state_dict())
    batch = tiny.wordpiece.batch(tiny.questions[:4], 32)
    assert torch.equal(made(*batch), again(*batch))


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint in the transformers layout: gelu_new, a pooler, weights that tell texts apart, vocab.txt."""
    torch.manual_seed(3)
    shape = AlbertConfig(
        vocab_size=tiny.wordpiece.size,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        hidden_act="gelu_new",
        initializer_range=0.5,
    )
    AlbertModel(shape).save_pretrained(tmp_path)
    words = tiny.wordpiece.tokenizer.get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n", encoding="utf-8")
    return tmp_path


def test_a_pretrained_folder_gives_its_own_vectors(tiny: Tiny, folder: Path) -> None:
    config = encoder.Config(pretrained=str(folder), dropout=0.0)
    wordpiece = encoder.build_vocabulary(config, [], Segmenter())
    assert wordpiece.size == tiny.wordpiece.size
    made = encoder.build(config, wordpiece).eval()
    ids_BL, mask_BL = wordpiece.batch(tiny.questions[:4], 32)
    assert torch.equal(ids_BL, tiny.wordpiece.batch(tiny.questions[:4], 32)[0])
    whole = AlbertModel.from_pretrained(folder).eval()
    assert made.albert is not None
    assert whole.config.hidden_act == "gelu_new" and made.albert.config.hidden_act == "gelu_pytorch_tanh"
    expected_BD = whole(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state[:, 0]
    assert torch.allclose(made(ids_BL, mask_BL), expected_BD, atol=1e-4)
    assert not torch.allclose(expected_BD[0], expected_BD[1], atol=1e-1)

    made.albert.save_pretrained(folder)
    again = encoder.build(config, wordpiece).eval()
    assert torch.equal(again(ids_BL, mask_BL), made(ids_BL, mask_BL))


def test_a_masked_language_model_is_a_pretrained_folder_too(tiny: Tiny, folder: Path) -> None:
    """Published checkpoints hold the prediction head as well, and their weights under another prefix."""
    shape = AlbertConfig.from_pretrained(folder)
    model = AlbertForMaskedLM(shape).eval()
    model.save_pretrained(folder)
    made = encoder.build(encoder.Config(pretrained=str(folder)), tiny.wordpiece).eval()
    ids_BL, mask_BL = tiny.wordpiece.batch(tiny.questions[:4], 32)
    expected_BD = model.albert(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state[:, 0]
    assert torch.allclose(made(ids_BL, mask_BL), expected_BD, atol=1e-4)


def test_the_configured_dropout_holds_for_a_pretrained_encoder_too(tiny: Tiny, folder: Path) -> None:
    made = encoder.build(encoder.Config(pretrained=str(folder), dropout=0.25), tiny.wordpiece)
    assert made.albert is not None
    layer = made.albert.encoder.albert_layer_groups[0].albert_layers[0]
    assert layer.dropout.p == 0.25
    assert made.describe()["albert"]["hidden_dropout_prob"] == 0.25


def test_a_pretrained_encoder_in_fp16_is_trained_in_fp32(tiny: Tiny, folder: Path) -> None:
    AlbertModel.from_pretrained(folder).half().save_pretrained(folder)
    made = encoder.build(encoder.Config(pretrained=str(folder)), tiny.wordpiece)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}


def test_bad_values_are_refused(tiny: Tiny, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"pooling='max'; allowed: cls, mean"):
        encoder.build(encoder.Config(pooling="max"), tiny.wordpiece)
    with pytest.raises(ValueError, match=r"similarity='l2'; allowed: dot, cosine"):
        encoder.build(encoder.Config(similarity="l2"), tiny.wordpiece)
    with pytest.raises(ValueError, match=r"temperature=-1"):
        encoder.build(encoder.Config(similarity="cosine", temperature=-1.0), tiny.wordpiece)
    with pytest.raises(ValueError, match=r"width=30 is not divisible by model\.encoder\.heads=4"):
        encoder.build(encoder.Config(width=30, heads=4), tiny.wordpiece)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        encoder.build(encoder.Config(pretrained=str(folder)), tiny.wordpiece)
    with pytest.raises(ValueError, match="neither a folder here nor a hub name"):
        encoder.build_vocabulary(encoder.Config(pretrained=str(folder / "absent")), [], Segmenter())
    with pytest.raises(ValueError, match=r"model\.encoder\.vocabulary_unit='letters'; allowed: characters, words"):
        encoder.build_vocabulary(encoder.Config(vocabulary_unit="letters"), [], Segmenter())
    with pytest.raises(ValueError, match=r"vocabulary_unit=words: model\.encoder\.pretrained=.* brings its own"):
        encoder.build_vocabulary(encoder.Config(pretrained=str(folder), vocabulary_unit="words"), [], Segmenter())


def test_the_vocabulary_is_of_the_unit_asked_for(tiny: Tiny) -> None:
    sizes = {}
    for unit in encoder.VOCABULARY_UNITS:
        made = encoder.build_vocabulary(encoder.Config(vocabulary_unit=unit, vocabulary_tokens=600), tiny.texts() * 2, Segmenter())
        assert made.size <= 600
        sizes[unit] = int(made.batch(tiny.questions, 64)[1].sum())
    assert sizes["words"] < 0.8 * sizes["characters"]
