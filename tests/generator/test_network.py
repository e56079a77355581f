"""Our T5 against transformers' own, values and gradients; the parts of it that are ours alone; folders in the transformers layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Tiny
from oracle import COPIES, config_of, logits, transformers_t5, untied
from torch import Tensor, nn
from transformers import MT5Config, MT5ForConditionalGeneration

from medrag import generator
from medrag.generator import Generator
from medrag.generator.attention import relative_bucket
from medrag.generator.network import T5, Rows, Shape
from medrag.vocabulary import Sentencepiece


def batch(tiny: Tiny) -> tuple[Tensor, Tensor, Tensor]:
    """Sources of different lengths, their mask, and targets of different lengths, one of a single token."""
    ids_NL, mask_NL = tiny.sentencepiece.batch(tiny.questions[:4], 32)
    target_NT, _ = tiny.sentencepiece.batch([*(passage.text for passage in tiny.passages[:3]), ""], 32)
    assert not mask_NL.all() and (target_NT[3] != 0).sum() == 1
    return ids_NL, mask_NL, target_NT


def long_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Sources and targets longer than the distance from which all tokens share a bucket."""
    ids_NL, target_NT = torch.randint(3, 600, (3, 150)), torch.randint(3, 600, (3, 140))
    mask_NL = torch.arange(150) < torch.tensor([[150], [7], [149]])
    return ids_NL.masked_fill(~mask_NL, 0), mask_NL, target_NT.masked_fill(torch.arange(140) >= torch.tensor([[140], [139], [1]]), 0)


def logp(made: Generator, ids_NL: Tensor, mask_NL: Tensor, target_NT: Tensor) -> Tensor:
    return made.decode(made.encode(ids_NL, mask_NL), mask_NL, target_NT)


# -- against transformers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", [False, True])
def test_values_and_gradients_equal_transformers(tiny: Tiny, long: bool) -> None:
    made = tiny.generator()
    whole = transformers_t5(made)
    ids_NL, mask_NL, target_NT = long_batch() if long else batch(tiny)
    said = whole(input_ids=ids_NL, attention_mask=mask_NL.long(), labels=target_NT.masked_fill(target_NT == made.pad, -100))
    kept_NT = target_NT != made.pad
    expected_NT = said.logits.log_softmax(-1).gather(2, target_NT.unsqueeze(-1)).squeeze(-1) * kept_NT
    logp_NT = logp(made, ids_NL, mask_NL, target_NT)
    assert logp_NT.dtype == torch.float32 and torch.allclose(logp_NT, expected_NT, atol=1e-5)
    assert torch.allclose(-logp_NT.sum() / kept_NT.sum(), said.loss, atol=1e-5)
    assert (logp_NT[~kept_NT] == 0).all() and (logp_NT[kept_NT] < 0).all()

    weight_NT = torch.rand(target_NT.shape)
    (logp_NT * weight_NT).sum().backward()  # type: ignore[no-untyped-call]
    (expected_NT * weight_NT).sum().backward()
    theirs = dict(whole.named_parameters())
    assert set(theirs) == {name for name, _ in made.network.named_parameters()}
    for name, parameter in made.network.named_parameters():
        assert parameter.grad is not None, name
        largest = max(1.0, float(theirs[name].grad.abs().max()))
        assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-5 * largest), name


@torch.no_grad()
def test_the_first_attention_equals_the_scores_within_transformers(tiny: Tiny) -> None:
    made = tiny.generator()
    whole = transformers_t5(made)
    ids_NL, mask_NL, _ = batch(tiny)
    seen: list[Tensor] = []
    for block in whole.decoder.block:
        for side in (block.layer[1].EncDecAttention.q, block.layer[1].EncDecAttention.k):
            side.register_forward_hook(lambda _module, _inputs, output: seen.append(output.view(4, -1, 4, 8).transpose(1, 2)))
    whole(input_ids=ids_NL, attention_mask=mask_NL.long(), decoder_input_ids=torch.zeros(4, 1, dtype=torch.long))
    score_NHL = [(q @ k.mT).squeeze(2) for q, k in zip(seen[::2], seen[1::2], strict=True)]
    expected_NL = torch.stack(score_NHL).mean((0, 2)) * mask_NL
    found_NL = made.first_attention(made.encode(ids_NL, mask_NL), mask_NL)
    assert torch.allclose(found_NL, expected_NL, atol=1e-5) and float(expected_NL.std()) > 0.05


def test_weights_go_both_ways(tiny: Tiny) -> None:
    """Under equal names; the embedding, which transformers lists three times, is held once."""
    made = tiny.generator()
    theirs = transformers_t5(made).state_dict()
    assert set(theirs) - set(made.network.state_dict()) == COPIES
    again = tiny.generator(seed=1)
    again.network.load_state_dict({name: tensor for name, tensor in theirs.items() if name not in COPIES})
    ids_NL, mask_NL, target_NT = batch(tiny)
    assert torch.equal(logp(again, ids_NL, mask_NL, target_NT), logp(made, ids_NL, mask_NL, target_NT))
    assert made.network.lm_head.weight is not made.network.shared.weight
    assert made.parameters_count == sum(parameter.numel() for parameter in transformers_t5(made).parameters())


@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_equal_transformers(both_ways: bool) -> None:
    from transformers.models.mt5.modeling_mt5 import MT5Attention

    ahead = torch.arange(-400, 401)
    for buckets, distance in ((32, 128), (16, 40)):
        theirs = MT5Attention._relative_position_bucket(ahead, both_ways, buckets, distance)
        assert torch.equal(relative_bucket(ahead, both_ways, buckets, distance), theirs)


def test_random_weights_are_of_the_size_of_transformers(tiny: Tiny) -> None:
    """All but the head's, which transformers would draw as wide as the embedding's where it does not tie it."""
    torch.manual_seed(3)
    ours = T5(Shape(600, 64, 8, 6, 2, 2, 96, 0.1))
    theirs = untied(config_of(ours)).state_dict()
    for name, tensor in ours.state_dict().items():
        expected = 64**-0.5 if name == "lm_head.weight" else float(theirs[name].std())
        assert float(tensor.std()) == pytest.approx(expected, rel=0.25), name


def test_the_reference_size_is_80_million() -> None:
    """44,062,080 + 1,024 V parameters, head untied."""
    config = generator.Config()
    with torch.device("meta"):
        shape = Shape(
            config.vocabulary_tokens, config.width, config.head_width, config.heads, config.layers, config.layers, config.feed_forward, config.dropout
        )
        whole = T5(shape)
    assert sum(parameter.numel() for parameter in whole.parameters()) == 44_062_080 + 1_024 * 35_072 == 79_975_808


# -- what is ours ---------------------------------------------------------------------------------------------------------------


def test_padding_of_the_source_changes_nothing(tiny: Tiny) -> None:
    made = tiny.generator()
    ids_NL, mask_NL, target_NT = batch(tiny)
    together = logp(made, ids_NL, mask_NL, target_NT)
    for number in range(len(ids_NL)):
        length = int(mask_NL[number].sum())
        alone = logp(made, ids_NL[number : number + 1, :length], mask_NL[number : number + 1, :length], target_NT[number : number + 1])
        assert torch.allclose(alone[0], together[number], atol=1e-5)


def test_packing_and_spreading_are_each_others_inverse() -> None:
    mask_NL = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    rows = Rows.of(mask_NL)
    x_NLD = torch.randn(3, 3, 2)
    assert torch.equal(rows.pack(x_NLD), x_NLD[mask_NL])
    assert torch.equal(rows.spread(rows.pack(x_NLD)), x_NLD * mask_NL.unsqueeze(-1))
    assert Rows.of(torch.ones(2, 3)).place_M is None


def test_padding_between_target_tokens_is_read_as_transformers_reads_it(tiny: Tiny) -> None:
    made = tiny.generator()
    ids_NL, mask_NL, target_NT = batch(tiny)
    target_NT[0, 2] = made.pad
    before_NT = torch.cat([torch.zeros_like(target_NT[:, :1]), target_NT[:, :-1]], dim=1)
    expected_NT = logits(made, ids_NL, mask_NL, before_NT).log_softmax(-1).gather(2, target_NT.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(logp(made, ids_NL, mask_NL, target_NT), expected_NT * (target_NT != made.pad), atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_give_equal_gradients(tiny: Tiny, dropout: float) -> None:
    """Under dropout too: what is computed again drops the same."""
    shape = Shape(tiny.sentencepiece.size, 32, 8, 4, 2, 2, 48, dropout)
    plain, checkpointed = Generator(shape, tiny.sentencepiece).train(), Generator(shape, tiny.sentencepiece).train()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.checkpoint_activations()
    found = []
    for made in (plain, checkpointed):
        torch.manual_seed(4)
        found.append(logp(made, *batch(tiny)))
        found[-1].sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(found[0], found[1])
    for (name, one), two in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name
        assert torch.allclose(one.grad, two.grad, atol=1e-5), name


def test_dropout_drops_where_it_learns_and_nowhere_else(tiny: Tiny) -> None:
    torch.manual_seed(0)
    made = Generator(Shape(tiny.sentencepiece.size, 32, 8, 4, 2, 2, 48, 0.3), tiny.sentencepiece).train()
    inputs = batch(tiny)
    assert not torch.allclose(logp(made, *inputs), logp(made, *inputs), atol=1e-3)
    made.eval()
    assert torch.equal(logp(made, *inputs), logp(made, *inputs))


def test_a_restored_generator_is_the_saved_one(tiny: Tiny) -> None:
    made = tiny.generator()
    made.rescale(8.0)
    description = json.loads(json.dumps(made.describe()))
    again = generator.restore(description, tiny.sentencepiece).eval()
    again.load_state_dict(made.state_dict())
    assert again.describe() == made.describe()
    assert torch.equal(logp(made, *batch(tiny)), logp(again, *batch(tiny)))


# -- folders in the transformers layout -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint that transformers wrote, with more embedding rows than pieces, as the real mT5's."""
    vocabulary = Sentencepiece.build([*tiny.texts(), "这些字在语料里没有：龙虎山，雪花飘，琴棋书画诗酒茶。" * 3], 660)
    assert vocabulary.size > tiny.sentencepiece.size
    torch.manual_seed(5)
    config = MT5Config(
        vocab_size=vocabulary.size + 12, d_model=32, d_kv=8, num_heads=4, d_ff=48, num_layers=2, num_decoder_layers=3, dropout_rate=0.1
    )
    whole = untied(config)
    nn.init.normal_(whole.lm_head.weight, std=0.2)
    whole.save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(vocabulary.proto)
    return tmp_path


@torch.no_grad()
def test_a_cut_pretrained_generator_gives_the_logits_of_the_whole(tiny: Tiny, folder: Path) -> None:
    config = generator.Config(pretrained=str(folder), vocabulary_tokens=620, dropout=0.0)
    cut = generator.build_vocabulary(config, tiny.texts())
    old = Sentencepiece.load(folder)
    assert cut.size == 620 < old.size
    made = generator.build(config, cut).eval()
    assert made.network.lm_head.weight.shape == made.network.shared.weight.shape == (620, 32)
    assert made.network.shape.dropout == 0.0 and len(made.network.decoder.block) == 3

    whole = MT5ForConditionalGeneration.from_pretrained(folder).eval()
    number = {old.processor.id_to_piece(piece): piece for piece in range(old.size)}
    order = torch.tensor([number[cut.processor.id_to_piece(piece)] for piece in range(cut.size)])
    assert order[:3].tolist() == [0, 1, 2]
    ids_NL, mask_NL = cut.batch(tiny.questions[:4], 32)
    old_ids_NL, old_mask_NL = old.batch(tiny.questions[:4], 32)
    assert torch.equal(order[ids_NL], old_ids_NL) and torch.equal(mask_NL, old_mask_NL)
    start_N1 = torch.zeros(4, 1, dtype=torch.long)
    theirs = whole(input_ids=old_ids_NL, attention_mask=old_mask_NL.long(), decoder_input_ids=start_N1).logits
    assert torch.allclose(logits(made, ids_NL, mask_NL, start_N1), theirs[..., order], atol=1e-5)
    expected_NV = theirs[:, 0, order].log_softmax(-1)
    assert torch.allclose(made.stepper(made.encode(ids_NL, mask_NL), mask_NL).step(start_N1)[:, 0], expected_NV, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_transformers_reads_what_is_exported(tiny: Tiny, tmp_path: Path, scale: float) -> None:
    """Equal logits, with a head of its own; and the folder makes the same generator again, whatever scale it was exported at."""
    made = tiny.generator()
    before = {name: tensor.clone() for name, tensor in made.network.state_dict().items()}
    made.rescale(scale)
    made.export(tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"config.json", "model.safetensors", "spiece.model"}
    assert json.loads((tmp_path / "folder" / "config.json").read_text("utf-8"))["tie_word_embeddings"] is False
    whole = MT5ForConditionalGeneration.from_pretrained(tmp_path / "folder").eval()
    assert not torch.equal(whole.lm_head.weight, whole.shared.weight)
    ids_NL, mask_NL, target_NT = batch(tiny)
    said = whole(input_ids=ids_NL, attention_mask=mask_NL.long(), labels=target_NT).logits
    expected_NT = said.log_softmax(-1).gather(2, target_NT.unsqueeze(-1)).squeeze(-1) * (target_NT != made.pad)
    assert torch.allclose(logp(made, ids_NL, mask_NL, target_NT), expected_NT, atol=1e-5)

    config = generator.Config(pretrained=str(tmp_path / "folder"), vocabulary_tokens=tiny.sentencepiece.size, dropout=0.0)
    again = generator.build(config, tiny.sentencepiece)
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_pretrained_generator_in_fp16_is_trained_in_fp32(tiny: Tiny, folder: Path) -> None:
    MT5ForConditionalGeneration.from_pretrained(folder).half().save_pretrained(folder)
    config = generator.Config(pretrained=str(folder))
    made = generator.build(config, generator.build_vocabulary(config, tiny.texts()))
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}


def test_a_folder_without_an_mt5_in_safetensors_is_refused(tiny: Tiny, folder: Path) -> None:
    config = generator.Config(pretrained=str(folder))
    known = json.loads((folder / "config.json").read_text("utf-8"))
    for changed, message in (({**known, "feed_forward_proj": "relu"}, "feed_forward_proj='relu'; allowed: gated-gelu"), ({}, "it lacks vocab_size")):
        (folder / "config.json").write_text(json.dumps(changed), "utf-8")
        with pytest.raises(ValueError, match=message):
            generator.build(config, tiny.sentencepiece)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        generator.build(config, tiny.sentencepiece)
    with pytest.raises(ValueError, match="neither a folder here nor a hub name"):
        generator.build_vocabulary(generator.Config(pretrained=str(folder / "absent")), tiny.texts())
