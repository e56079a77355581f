"""mT5 cut at the waist: ``encode`` and ``decode`` stand apart, so that methods can combine passages between them.

Xue et al. 2021 (mT5). Shapes: N sequences, L source tokens, T target tokens, M target tokens packed, D width, V vocabulary, B beams.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medrag.generator import layout
from medrag.generator.copying import start_copying
from medrag.generator.head import target_logp
from medrag.generator.network import T5, Shape
from medrag.generator.stepping import Joined, Stepper, joined
from medrag.vocabulary import Sentencepiece, pretrained_folder


@dataclass
class Config:
    """The shape of the generator; the defaults are mT5-small with its vocabulary cut to about 80 million parameters in all."""

    pretrained: str = ""
    """folder in the transformers layout (or, to be downloaded, a hub name); empty: random weights and a vocabulary from the corpus"""
    vocabulary_tokens: int = 35_072
    """size of the SentencePiece vocabulary, at most; a pretrained one is cut to the pieces the corpus uses"""
    width: int = 512
    head_width: int = 64
    heads: int = 6
    layers: int = 8
    """layers of the encoder, and as many of the decoder"""
    feed_forward: int = 1024
    dropout: float = 0.1
    copying: bool = False
    """random weights start with heads that copy from the source (see ``generator.copying``)"""


class Generator(nn.Module):
    """An mT5 whose head is never tied to its embedding, and its vocabulary."""

    def __init__(self, shape: Shape, sentencepiece: Sentencepiece) -> None:
        super().__init__()
        self.network = T5(shape)
        self.sentencepiece = sentencepiece
        self.pad = sentencepiece.pad
        self.scale = 1.0
        self.joined: Joined | None = None
        """what a lowered precision steps with; None: the weights as they are"""

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def encode(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Encoder states (N, L, D), zero at padding."""
        return self.network.encode(ids_NL, mask_NL)

    def decode(self, state_NLD: Tensor, mask_NL: Tensor, target_NT: Tensor) -> Tensor:
        """Log-probability of each target token (N, T) given those before it: fp32, zero at padding."""
        target_M, kept_NT, hidden_MD = self._read(state_NLD, mask_NL, target_NT)
        logp_M = target_logp(hidden_MD, self.network.lm_head.weight, target_M, self.pad)
        return torch.zeros(target_NT.shape, device=logp_M.device).masked_scatter(kept_NT, logp_M)

    def _read(self, state_NLD: Tensor, mask_NL: Tensor, target_NT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The target tokens up to each row's last, where they stand, and the decoder's states before them."""
        before_NT = torch.cat([torch.full_like(target_NT[:, :1], self.pad), target_NT[:, :-1]], dim=1)
        kept_NT = (target_NT != self.pad).flip(1).cumsum(1).flip(1) > 0
        return target_NT[kept_NT], kept_NT, self.network.decode(state_NLD, mask_NL, before_NT, kept_NT)

    def first_attention(self, state_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        """How much the first token of an answer looks at each source token (N, L): see ``T5.first_attention``."""
        return self.network.first_attention(state_NLD, mask_NL, self.pad)

    def stepper(self, state_NLD: Tensor, mask_NL: Tensor, beams: int = 1) -> Stepper:
        """Decode N sources token by token, each in ``beams`` rows that share what is read of the source."""
        return Stepper(self.network, self.joined or joined(self.network), state_NLD, mask_NL, beams)

    def checkpoint_activations(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.network.encoder.recompute = self.network.decoder.recompute = True

    def rescale(self, scale: float) -> None:
        """Divide the residual stream by ``scale`` in all, without changing the function, so that fp16 holds it.

        mT5's feed-forward output passes fp16's 65,504. The weights stay as they are.
        """
        self.scale = scale
        self.network.rescale(scale)

    def describe(self) -> dict[str, Any]:
        """What ``restore`` needs to make a generator of this shape."""
        return {"network": asdict(self.network.shape), "scale": self.scale}

    def export(self, folder: Path) -> None:
        """A folder in the transformers layout, in fp32, which ``model.generator.pretrained`` reads again."""
        tensors = {name: tensor.detach().float() for name, tensor in self.network.state_dict().items()}
        layout.write(folder, self.network.shape, tensors, self.sentencepiece)


def restore(description: dict[str, Any], sentencepiece: Sentencepiece) -> Generator:
    """A generator of the described shape with random weights, to load saved ones into."""
    generator = Generator(Shape(**description["network"]), sentencepiece)
    generator.rescale(float(description["scale"]))
    return generator


def outline(config: Config) -> Config:
    """The same shape without weights to start from: that of the pretrained folder, where there is one."""
    if not config.pretrained:
        return config
    known = layout.shape(pretrained_folder(config.pretrained))
    shape = {name: getattr(known, name) for name in ("width", "head_width", "heads", "layers", "feed_forward")}
    return replace(config, pretrained="", vocabulary_tokens=min(config.vocabulary_tokens, known.vocabulary_tokens), **shape)


def build_vocabulary(config: Config, texts: Iterable[str]) -> Sentencepiece:
    """The pretrained folder's vocabulary cut to the corpus, or one built from the corpus."""
    if config.pretrained:
        return Sentencepiece.load(pretrained_folder(config.pretrained)).cut(texts, config.vocabulary_tokens)[0]
    return Sentencepiece.build(texts, config.vocabulary_tokens)


def build(config: Config, sentencepiece: Sentencepiece) -> Generator:
    """A generator with the pretrained folder's weights, embedding and head cut to the vocabulary, or with random weights.

    Raises ValueError where the folder holds no mT5 in safetensors.
    """
    if config.pretrained:
        shape, tensors = layout.read(pretrained_folder(config.pretrained), sentencepiece, config.dropout)
        generator = Generator(shape, sentencepiece)
        generator.network.load_state_dict(tensors)
        return generator
    shape = Shape(
        vocabulary_tokens=sentencepiece.size,
        width=config.width,
        head_width=config.head_width,
        heads=config.heads,
        layers=config.layers,
        decoder_layers=config.layers,
        feed_forward=config.feed_forward,
        dropout=config.dropout,
    )
    generator = Generator(shape, sentencepiece)
    if config.copying:
        start_copying(generator.network)
    return generator
