"""Encoding of many texts: order, budget, precisions, devices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from medrag.encoding import BATCH_TOKENS, PRECISIONS, Encoding, budget, lowered, resolve
from medrag.quantized import Int8Linear

LIMIT = 16
CPU = torch.device("cpu")


def one_by_one(tiny: Tiny, texts: list[str]) -> npt.NDArray[np.float32]:
    """The oracle: each text alone, unpadded, in fp32."""
    made = tiny.encoder(pooling="mean")
    with torch.inference_mode():
        return np.stack([made(*tiny.wordpiece.batch([text], LIMIT))[0].numpy() for text in texts])


def cosines(x_ND: npt.NDArray[np.float32], y_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return F.cosine_similarity(torch.from_numpy(x_ND), torch.from_numpy(y_ND)).numpy()


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 0])
def test_each_text_has_the_vector_it_has_alone(tiny: Tiny, batch_tokens: int) -> None:
    texts = tiny.texts()
    assert max(len(text) for text in texts) + 2 > LIMIT > min(len(text) for text in texts) + 2, "some are cut, some are not"
    expected_ND = one_by_one(tiny, texts)
    assert np.linalg.norm(expected_ND[0] - expected_ND[1]) > 0.1, "two texts can be told apart"
    x_ND = Encoding(tiny.encoder(pooling="mean"), tiny.wordpiece, LIMIT, batch_tokens=batch_tokens)(texts)
    assert x_ND.dtype == np.float32
    np.testing.assert_allclose(x_ND, expected_ND, rtol=1e-4, atol=1e-5)


@given(lengths=st.lists(st.integers(1, 60), max_size=80), batch_tokens=st.integers(1, 400))
def test_batches_keep_to_the_budget_and_lose_no_row(lengths: list[int], batch_tokens: int) -> None:
    batches = [batch.tolist() for batch in budget(torch.tensor(lengths, dtype=torch.long), batch_tokens)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for number, batch in enumerate(batches):
        longest = max(lengths[row] for row in batch)
        assert len(batch) * longest <= batch_tokens or len(batch) == 1
        if number + 1 < len(batches):
            assert (len(batch) + 1) * longest > batch_tokens, "a batch is as full as it may be"
            assert min(lengths[row] for row in batch) >= max(lengths[row] for row in batches[number + 1])


def test_the_encoder_sees_padded_batches_within_the_budget(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    made = tiny.encoder()
    plain = type(made).forward

    def forward(self: object, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        seen.append((ids_BL.shape[0], ids_BL.shape[1]))
        assert not torch.is_grad_enabled()
        assert torch.equal(ids_BL == tiny.wordpiece.pad, ~mask_BL)
        return plain(self, ids_BL, mask_BL)  # type: ignore[arg-type]

    monkeypatch.setattr(type(made), "forward", forward)
    Encoding(made, tiny.wordpiece, LIMIT, batch_tokens=70)(tiny.texts())
    assert all(texts * tokens <= 70 and tokens <= LIMIT for texts, tokens in seen)
    assert sum(texts for texts, _ in seen) == len(tiny.texts())
    assert max(texts for texts, _ in seen) > 1


def test_no_texts_give_no_vectors(tiny: Tiny) -> None:
    for precision in ("fp32", "int8"):
        assert Encoding(tiny.encoder(), tiny.wordpiece, LIMIT, precision)([]).shape == (0, 32)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_fast_vectors_are_close_to_exact_ones(tiny: Tiny, precision: str, pooling: str, similarity: str) -> None:
    """Weights are wide, so that texts differ: their vectors must differ less between precisions than between texts."""
    made, texts = tiny.encoder(pooling=pooling, similarity=similarity), tiny.texts()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    exact_ND = Encoding(made, tiny.wordpiece, LIMIT)(texts)
    fast_ND = Encoding(made, tiny.wordpiece, LIMIT, precision)(texts)
    assert fast_ND.dtype == np.float32
    assert not np.array_equal(exact_ND, fast_ND)
    assert cosines(exact_ND, fast_ND).min() > 0.99
    assert cosines(exact_ND[:-1], exact_ND[1:]).mean() < 0.95
    if similarity == "cosine":
        np.testing.assert_allclose(np.linalg.norm(fast_ND, axis=1), np.linalg.norm(exact_ND, axis=1), rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_same_list_gives_the_same_bytes(tiny: Tiny, precision: str) -> None:
    made = tiny.encoder()
    first = Encoding(made, tiny.wordpiece, LIMIT, precision, batch_tokens=100)
    assert first(tiny.texts()).tobytes() == first(tiny.texts()).tobytes()
    several = Encoding(made, tiny.wordpiece, LIMIT, precision, [CPU, CPU, CPU], batch_tokens=100)
    assert several(tiny.texts()).tobytes() == first(tiny.texts()).tobytes(), "the number of devices changes nothing"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_weights_are_those_of_the_time_it_was_made(tiny: Tiny, checkpointing: bool) -> None:
    made = tiny.encoder().train()
    if checkpointing:
        made.checkpoint_activations()
    encoding = Encoding(made, tiny.wordpiece, LIMIT)
    before_ND = encoding(tiny.questions)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(encoding(tiny.questions), before_ND)
    assert made.training
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_an_error_on_one_device_is_raised(tiny: Tiny) -> None:
    """Ids beyond the embedding stand for any failure; the devices stay usable."""
    encoding = Encoding(tiny.encoder(), tiny.wordpiece, LIMIT, devices=[CPU, CPU], batch_tokens=100)
    pad, tiny.wordpiece.pad = tiny.wordpiece.pad, 10**6
    try:
        with pytest.raises(IndexError):
            encoding(tiny.texts())
    finally:
        tiny.wordpiece.pad = pad
    assert len(encoding(tiny.texts())) == len(tiny.texts())


def test_neighbours_do_not_change_a_vector_in_8_bits(tiny: Tiny) -> None:
    texts = tiny.texts()
    encoding = Encoding(tiny.encoder(), tiny.wordpiece, LIMIT, "int8", batch_tokens=200)
    alone_ND = np.concatenate([encoding([text]) for text in texts])
    assert cosines(encoding(texts), alone_ND).min() > 0.9999


@pytest.mark.parametrize("act", ["relu", "gelu_pytorch_tanh"])
def test_only_gelus_approximation_is_replaced(tiny: Tiny, act: str) -> None:
    made = tiny.encoder()
    made.transformer.config.hidden_act = act
    layer = made.transformer.encoder.albert_layer_groups[0].albert_layers[0]
    for precision, replaced in (("fp32", False), ("bf16", act != "relu"), ("int8", act != "relu")):
        found = lowered(made, precision).transformer.encoder.albert_layer_groups[0].albert_layers[0]
        assert isinstance(found.activation, nn.GELU) == replaced
        assert isinstance(found.ffn, Int8Linear) == (precision == "int8")
    assert not isinstance(layer.activation, nn.GELU)


def test_progress_is_off_by_default_and_tells_passages(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    encoding = Encoding(tiny.encoder(), tiny.wordpiece, LIMIT)
    encoding(tiny.questions)
    assert capfd.readouterr() == ("", "")
    encoding(tiny.questions, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{len(tiny.questions)}/{len(tiny.questions)}" in err and "passages" in err


def test_precisions(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"index\.encoding=int4; allowed: auto, fp32, bf16, fp16, int8"):
        Encoding(tiny.encoder(), tiny.wordpiece, LIMIT, "int4")
    with pytest.raises(ValueError, match="batch_tokens=-1"):
        Encoding(tiny.encoder(), tiny.wordpiece, LIMIT, batch_tokens=-1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    assert [resolve(precision, [CPU]) for precision in PRECISIONS] == ["int8", "fp32", "bf16", "fp16", "int8"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert Encoding(tiny.encoder(), tiny.wordpiece, LIMIT, "auto").precision == "fp32"
    assert Encoding(tiny.encoder(), tiny.wordpiece, LIMIT).batch_tokens == BATCH_TOKENS["cpu"], "the tests have one thread"

    chips = {0: (6, 1), 1: (7, 5), 2: (8, 6), 3: (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: chips[device.index])
    cards = [torch.device("cuda", number) for number in chips]
    assert [resolve("auto", [card]) for card in cards] == ["fp32", "fp16", "bf16", "bf16"]
    assert resolve("auto", cards[1:]) == "fp16", "the weakest card decides"
    with pytest.raises(ValueError, match=r"index\.encoding=int8 runs on a CPU only"):
        resolve("int8", cards[3:])
    with pytest.raises(ValueError, match=r"index\.encoding=bf16 needs compute capability 8\.0; a card here has 7\.5"):
        resolve("bf16", cards[1:])
