"""mT5 cut at the waist: ``encode`` and ``decode`` stand apart, so that methods can combine passages between them; beam search.

Xue et al. 2021 (mT5). Shapes: N sequences, L source tokens, T target tokens, D width, V vocabulary, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MT5Config, MT5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from medrag import losses
from medrag.generator.decoding import Decoding, Hypothesis, beam_search
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


class Generator(nn.Module):
    """An mT5 whose head is never tied to its embedding."""

    def __init__(self, mt5: MT5Config, sentencepiece: Sentencepiece) -> None:
        super().__init__()
        self.mt5 = MT5ForConditionalGeneration(mt5)
        self.sentencepiece = sentencepiece
        self.pad = sentencepiece.pad
        self.scale = 1.0
        untie(self.mt5)

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def encode(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Encoder states (N, L, D)."""
        state_NLD: Tensor = self.mt5.encoder(input_ids=ids_NL, attention_mask=mask_NL.long()).last_hidden_state
        return state_NLD

    def decode(self, state_NLD: Tensor, mask_NL: Tensor, target_NT: Tensor) -> Tensor:
        """Log-probability of each target token (N, T) given those before it: fp32, zero at padding."""
        start_N1 = torch.full_like(target_NT[:, :1], self.pad)
        hidden_NTD = self.mt5.decoder(
            input_ids=torch.cat([start_N1, target_NT[:, :-1]], dim=1),
            encoder_hidden_states=state_NLD,
            encoder_attention_mask=mask_NL.long(),
            use_cache=False,
        ).last_hidden_state
        return losses.target_logp(self.mt5.lm_head(hidden_NTD), target_NT, self.pad)

    def stepper(self, state_NLD: Tensor, mask_NL: Tensor) -> Stepper:
        """Decode token by token with a key-value cache."""
        return Stepper(self, state_NLD, mask_NL)

    def search(self, state_NLD: Tensor, mask_NL: Tensor, decoding: Decoding) -> list[list[Hypothesis]]:
        """Beam search over each source by itself: the best hypotheses of each, best first."""
        rows, beams, device = len(state_NLD), decoding.beams, state_NLD.device
        stepper = self.stepper(state_NLD.repeat_interleave(beams, dim=0), mask_NL.repeat_interleave(beams, dim=0))
        base_R1 = torch.arange(rows, device=device).unsqueeze(1) * beams

        def step(token_RB: Tensor, parent_RB: Tensor | None) -> Tensor:
            if parent_RB is not None:
                stepper.reorder((base_R1 + parent_RB).flatten())
            return stepper.step(token_RB.flatten()).view(rows, beams, -1)

        return beam_search(step, rows, self.sentencepiece, decoding, device)

    def checkpoint_activations(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for stack in (self.mt5.encoder, self.mt5.decoder):
            for block in stack.block:
                block.forward = _recomputed(block.forward)

    def rescale(self, scale: float) -> None:
        """Divide the residual stream by ``scale`` in all, without changing the function, so that fp16 holds it.

        mT5's feed-forward output passes fp16's 65,504. Embedding, attention output and the linear half of the feed-forward are
        divided by the scale and RMSNorm's epsilon by its square; every norm then yields what it did. A generator that has that scale
        already (a saved one, say) stays as it is.
        """
        factor, self.scale = scale / self.scale, scale
        with torch.no_grad():
            self.mt5.shared.weight /= factor
            for stack in (self.mt5.encoder, self.mt5.decoder):
                for block in stack.block:
                    for layer in block.layer[:-1]:
                        attention = layer.SelfAttention if hasattr(layer, "SelfAttention") else layer.EncDecAttention
                        attention.o.weight /= factor
                    block.layer[-1].DenseReluDense.wi_1.weight /= factor
        epsilon = self.mt5.config.layer_norm_epsilon / factor**2
        self.mt5.config.layer_norm_epsilon = epsilon
        for module in self.mt5.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = epsilon

    def describe(self) -> dict[str, Any]:
        """What ``restore`` needs to make a generator of this shape."""
        return {"mt5": self.mt5.config.to_dict(), "scale": self.scale}


class Stepper:
    """One decoding in progress over N sequences: ``step`` takes their last tokens and gives log-probabilities of the next."""

    def __init__(self, generator: Generator, state_NLD: Tensor, mask_NL: Tensor) -> None:
        self.generator = generator
        self.state_NLD = state_NLD
        self.mask_NL = mask_NL.long()
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(self, token_N: Tensor) -> Tensor:
        """Log-probabilities (N, V) of the next token, fp32."""
        hidden_N1D = self.generator.mt5.decoder(
            input_ids=token_N.unsqueeze(1),
            encoder_hidden_states=self.state_NLD,
            encoder_attention_mask=self.mask_NL,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        logits_NV = self.generator.mt5.lm_head(hidden_N1D[:, 0]).float()
        return torch.log_softmax(logits_NV, dim=-1)

    def reorder(self, row_N: Tensor) -> None:
        """Continue row ``row_N[i]`` at place ``i``; only the own past moves, so a row may be replaced only by one of the same source."""
        self.cache.self_attention_cache.reorder_cache(row_N)


def untie(mt5: MT5ForConditionalGeneration) -> None:
    """Give the head a matrix of its own; transformers 5 ties it to the embedding whatever mT5's configuration says."""
    if mt5.lm_head.weight is mt5.shared.weight:
        mt5.lm_head.weight = nn.Parameter(mt5.lm_head.weight.detach().clone())


def _recomputed(plain: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' own switch for this changed its name within version 5, with a warning for the old one."""

    def forward(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs, **named)
        return checkpoint(plain, *inputs, use_reentrant=False, **named)

    return forward


def restore(description: dict[str, Any], sentencepiece: Sentencepiece) -> Generator:
    """A generator of the described shape with random weights, to load saved ones into."""
    generator = Generator(MT5Config(**description["mt5"]), sentencepiece)
    generator.scale = float(description["scale"])
    return generator


def build_vocabulary(config: Config, texts: Iterable[str]) -> Sentencepiece:
    """The pretrained folder's vocabulary cut to the corpus, or one built from the corpus."""
    if config.pretrained:
        return Sentencepiece.load(pretrained_folder(config.pretrained)).cut(texts, config.vocabulary_tokens)[0]
    return Sentencepiece.build(texts, config.vocabulary_tokens)


def build(config: Config, sentencepiece: Sentencepiece) -> Generator:
    """A generator with the pretrained folder's weights, embedding and head cut to the vocabulary, or with random weights.

    Raises ValueError where the folder holds no safetensors.
    """
    if config.pretrained:
        return _pretrained(pretrained_folder(config.pretrained), sentencepiece, config.dropout)
    mt5 = MT5Config(
        vocab_size=sentencepiece.size,
        d_model=config.width,
        d_kv=config.head_width,
        num_heads=config.heads,
        d_ff=config.feed_forward,
        num_layers=config.layers,
        num_decoder_layers=config.layers,
        dropout_rate=config.dropout,
        pad_token_id=sentencepiece.pad,
        eos_token_id=sentencepiece.end,
        decoder_start_token_id=sentencepiece.pad,
    )
    generator = Generator(mt5, sentencepiece)
    nn.init.normal_(generator.mt5.lm_head.weight, std=config.width**-0.5)
    return generator


def _pretrained(folder: Path, sentencepiece: Sentencepiece, dropout: float) -> Generator:
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"model.generator.pretrained={folder}: no model.safetensors there (other weight formats are refused)")
    whole = MT5ForConditionalGeneration.from_pretrained(folder, use_safetensors=True, dropout_rate=dropout)
    untie(whole)
    old = {piece: number for number, piece in enumerate(_names(Sentencepiece.load(folder)))}
    order = torch.tensor([old[piece] for piece in _names(sentencepiece)])
    mt5 = MT5Config(**{**whole.config.to_dict(), "vocab_size": sentencepiece.size})
    generator = Generator(mt5, sentencepiece)
    weights = whole.state_dict()
    for name in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][order]
    generator.mt5.load_state_dict(weights)
    return generator


def _names(sentencepiece: Sentencepiece) -> list[str]:
    return [sentencepiece.processor.id_to_piece(number) for number in range(sentencepiece.size)]
