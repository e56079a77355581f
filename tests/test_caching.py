"""Gradient caching: the gradient of the whole batch with the memory of a chunk."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medrag import caching, encoder, losses
from medrag.caching import Limit
from medrag.encoder import Encoder

LENGTHS = st.lists(st.integers(1, 256), min_size=1, max_size=60)


@given(LENGTHS, st.integers(0, 20), st.integers(0, 2000), st.integers(0, 600))
def test_chunks_hold_every_text_once_and_keep_within_the_limit(lengths: list[int], texts: int, tokens: int, padding: int) -> None:
    limit = Limit(texts, tokens)
    chunks = caching.cut(lengths, limit, padding)
    assert sorted(row for rows in chunks for row in rows) == list(range(len(lengths)))
    for rows in chunks:
        longest = max(lengths[row] for row in rows)
        assert len(rows) == 1 or ((not texts or len(rows) <= texts) and (not tokens or len(rows) * longest <= tokens))
        assert longest * len(rows) - sum(lengths[row] for row in rows) <= padding
    spans = [(min(lengths[row] for row in rows), max(lengths[row] for row in rows)) for rows in chunks]
    assert all(shorter[1] <= longer[0] for shorter, longer in itertools.pairwise(spans)), "chunks are of like length, the longest last"


def test_texts_of_one_length_fill_their_chunks() -> None:
    assert [len(rows) for rows in caching.cut([10] * 7, Limit(texts=3))] == [1, 3, 3]
    assert [len(rows) for rows in caching.cut([10] * 7, Limit(tokens=50))] == [2, 5]
    assert [len(rows) for rows in caching.cut([10] * 7, Limit(texts=6, tokens=20))] == [1, 2, 2, 2]
    assert [len(rows) for rows in caching.cut([10] * 7, Limit())] == [7]
    assert caching.cut([300, 20, 20], Limit(tokens=100)) == [[1, 2], [0]], "a text beyond the limit stands alone"
    assert len(caching.cut([256, *[8] * 30], Limit())) == 2, "much padding is not worth a chunk saved"


def texts(tiny: Tiny) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eight questions and eight passages of different lengths."""
    return *tiny.wordpiece.batch(tiny.questions[:8], 32), *tiny.wordpiece.batch([passage.text * 2 for passage in tiny.passages[:8]], 48)


def gradient(models: list[Encoder], batch: tuple[Tensor, ...], limit: Limit, seed: int = 5) -> tuple[float, Tensor]:
    """Loss and gradient, all parameters one after another, of the contrastive loss over the batch."""
    for model in models:
        model.zero_grad()
    torch.manual_seed(seed)
    q_BD, c_CD = caching.encode([(models[0], batch[0], batch[1]), (models[1], batch[2], batch[3])], limit)
    loss = losses.contrastive(q_BD / 10, c_CD / 10, torch.arange(len(q_BD)))
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), torch.cat(
        [parameter.grad.flatten() for model in models for parameter in model.parameters() if parameter.grad is not None]
    )


@pytest.mark.parametrize("limit", [Limit(texts=16), Limit(texts=8), Limit(texts=3), Limit(texts=1), Limit(tokens=120), Limit(tokens=1)])
def test_any_chunks_give_the_gradient_of_the_whole_batch(tiny: Tiny, limit: Limit) -> None:
    models = [tiny.encoder(seed).train() for seed in (0, 1)]
    batch = texts(tiny)
    q_BD, c_CD = models[0](batch[0], batch[1]), models[1](batch[2], batch[3])
    losses.contrastive(q_BD / 10, c_CD / 10, torch.arange(8)).backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([parameter.grad.flatten() for model in models for parameter in model.parameters() if parameter.grad is not None])
    _, found = gradient(models, batch, limit)
    assert float(expected.norm()) > 1e-2
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())


def test_chunks_go_together_with_layers_that_are_checkpointed_themselves(tiny: Tiny) -> None:
    models = [tiny.encoder(seed).train() for seed in (0, 1)]
    _, expected = gradient(models, texts(tiny), Limit())
    for model in models:
        model.checkpoint_activations()
    _, found = gradient(models, texts(tiny), Limit(texts=3))
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())


def test_vectors_come_in_the_order_given(tiny: Tiny) -> None:
    model = tiny.encoder()
    batch = texts(tiny)
    with torch.no_grad():
        (found,) = caching.encode([(model, batch[2], batch[3])], Limit(texts=3))
        for row in range(8):
            alone = model(batch[2][row : row + 1, : int(batch[3][row].sum())], batch[3][row : row + 1, : int(batch[3][row].sum())])
            assert torch.allclose(found[row], alone[0], atol=1e-4)


def test_dropout_is_replayed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, the gradient is that of the masks that the loss was computed with: what the same chunks give that are not encoded twice."""
    models = [tiny.encoder(seed).train() for seed in (0, 1)]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
    batch, limit = texts(tiny), Limit(texts=3)
    loss, cached = gradient(models, batch, limit)
    replays = []

    def plain(function: Callable[..., Tensor], *inputs: Tensor, use_reentrant: bool, preserve_rng_state: bool) -> Tensor:
        replays.append((use_reentrant, preserve_rng_state))
        return function(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(caching, "checkpoint", plain)
        same_loss, expected = gradient(models, batch, limit)
        other_loss, other = gradient(models, batch, limit, seed=6)
    assert replays and set(replays) == {(False, True)}
    assert loss == same_loss and float((cached - expected).norm()) < 1e-6 * float(expected.norm())
    assert other_loss != loss and float((cached - other).norm()) > 1e-2 * float(expected.norm()), "dropout is at work"


def held(models: list[Encoder], batch: tuple[Tensor, ...], limit: Limit) -> tuple[int, int]:
    """Bytes of the activations kept for the backward pass at its start, and how many texts were encoded in both passes."""
    kept: dict[int, int] = {}
    encoded = 0

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal encoded
        encoded += len(inputs[0])

    own = {parameter.data_ptr() for model in models for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = [model.register_forward_pre_hook(count) for model in models]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vectors = caching.encode([(models[0], batch[0], batch[1]), (models[1], batch[2], batch[3])], limit)
    size = sum(kept.values())
    torch.cat(vectors).sum().backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    return size, encoded


def test_what_is_kept_falls_with_the_chunk_and_nothing_is_encoded_twice_without_need(tiny: Tiny) -> None:
    models = [tiny.encoder(seed).train() for seed in (0, 1)]
    batch = texts(tiny)
    whole, once = held(models, batch, Limit())
    fits, still_once = held(models, batch, Limit(texts=16))
    half, some_twice = held(models, batch, Limit(texts=8))
    least, most_twice = held(models, batch, Limit(texts=1))
    assert once == still_once == 16 and fits <= whole
    assert some_twice == 24, "the passages' activations are the first that the backward pass asks for"
    assert most_twice == 31
    assert least < half / 4 < whole / 4


def test_a_bag_alone_is_never_cut(tiny: Tiny) -> None:
    """A call of it costs a gradient of its whole table, and it holds next to nothing."""
    config = encoder.Config(layers=0, bag=8, bag_buckets=50, bag_dropout=0.0, similarity="cosine")
    light, plain = encoder.build(config, tiny.wordpiece).train(), tiny.encoder().train()
    calls: list[int] = []
    for model in (light, plain):
        model.register_forward_hook(lambda model, inputs, output: calls.append(len(output)))
    batch = texts(tiny)
    q_BD, c_CD = caching.encode([(light, batch[0], batch[1]), (plain, batch[2], batch[3])], Limit(texts=2))
    assert calls == [8, 2, 2, 2, 2] and (len(q_BD), len(c_CD)) == (8, 8)
    assert torch.allclose(q_BD, light(batch[0], batch[1]))
