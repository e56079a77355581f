"""Many texts -> vectors, fast: tokenised once, sorted by length, cut into batches by a budget of tokens, on every device at hand.

Shapes: N texts, T tokens of several texts, B texts of a batch, L tokens, D width.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medrag import quantized
from medrag.encoder import Encoder
from medrag.vocabulary import Wordpiece

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}
"""padded size of a batch for each thread of a CPU (its activations stay in the cache: 8,192 are half as fast), and for a card"""
_TOKENISED_AT_ONCE = 4096


class Encoding:
    """Ready to encode many texts with the weights that the encoder has now."""

    def __init__(
        self,
        encoder: Encoder,
        wordpiece: Wordpiece,
        limit_tokens: int,
        precision: str = "fp32",
        devices: Sequence[torch.device] | None = None,
        batch_tokens: int = 0,
    ) -> None:
        """``limit_tokens``: longer texts are cut; ``precision``: see ``resolve``; ``devices``: each gets a copy of the weights (default: the
        one where the encoder is); ``batch_tokens``: most tokens of a batch, padding counted (a longer text makes a batch of its own;
        0: as BATCH_TOKENS says).

        Raises ValueError on a precision that is unknown or that a device cannot do, and on a negative ``batch_tokens``.
        """
        if batch_tokens < 0:
            raise ValueError(f"batch_tokens={batch_tokens}; it must be 1 or more, or 0 for the usual one")
        self.devices = tuple(devices or (next(encoder.parameters()).device,))
        self.precision = resolve(precision, self.devices)
        self.width = encoder.width
        self.wordpiece = wordpiece
        self.limit_tokens = limit_tokens
        on_cpu = self.devices[0].type == "cpu"
        self.batch_tokens = batch_tokens or (BATCH_TOKENS["cpu"] * torch.get_num_threads() if on_cpu else BATCH_TOKENS["cuda"])
        self._idle: SimpleQueue[tuple[Encoder, torch.device]] = SimpleQueue()
        for device in self.devices:
            self._idle.put((lowered(encoder, self.precision).to(device), device))

    def __call__(self, texts: Sequence[str], progress: bool = False) -> npt.NDArray[np.float32]:
        """Vectors (N, D) in the order given; with ``progress``, passages done and the time left on stderr.

        A text's vector depends in its last bits on the texts that share its batch; the same list gives the same bytes.
        """
        token_T, length_N = self._tokenise(texts)
        start_N = length_N.cumsum(0) - length_N
        x_ND = np.empty((len(texts), self.width), np.float32)

        def encode(row_B: Tensor) -> int:
            place_L = torch.arange(int(length_N[row_B].max()))
            mask_BL = place_L < length_N[row_B].unsqueeze(1)
            ids_BL = torch.full(mask_BL.shape, self.wordpiece.pad)
            ids_BL[mask_BL] = token_T[(start_N[row_B].unsqueeze(1) + place_L)[mask_BL]].long()
            replica, device = self._idle.get()
            try:
                with torch.inference_mode():
                    x_ND[row_B.numpy()] = replica(ids_BL.to(device), mask_BL.to(device)).float().cpu().numpy()
            finally:
                self._idle.put((replica, device))
            return len(row_B)

        batches = budget(length_N, self.batch_tokens)
        with (
            ThreadPoolExecutor(len(self.devices)) as pool,
            tqdm(total=len(texts), desc="encoding", unit=" passages", disable=not progress, file=sys.stderr) as bar,
        ):
            for count in pool.map(encode, batches) if len(self.devices) > 1 else map(encode, batches):
                bar.update(count)
        return x_ND

    def _tokenise(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of all texts one after the other (T) int32, and how many each text has (N)."""
        tokens, lengths = [torch.empty(0, dtype=torch.int32)], [torch.empty(0, dtype=torch.long)]
        for start in range(0, len(texts), _TOKENISED_AT_ONCE):
            ids_NL, mask_NL = self.wordpiece.batch(texts[start : start + _TOKENISED_AT_ONCE], self.limit_tokens)
            tokens.append(ids_NL[mask_NL].int())
            lengths.append(mask_NL.sum(1))
        return torch.cat(tokens), torch.cat(lengths)


def budget(length_N: Tensor, batch_tokens: int) -> Iterator[Tensor]:
    """Rows from the longest text to the shortest in batches whose padded size, texts x longest, is at most ``batch_tokens``."""
    order_N = torch.argsort(length_N, descending=True, stable=True)
    start = 0
    while start < len(order_N):
        many = max(1, batch_tokens // int(length_N[order_N[start]]))
        yield order_N[start : start + many]
        start += many


def resolve(precision: str, devices: Sequence[torch.device]) -> str:
    """The arithmetic that all of the devices do; ``auto``: the fastest that keeps what is found.

    That is int8 on a CPU with VNNI instructions and fp32 on another; on cards bf16 (compute capability 8.0 and up), fp16 (7.0 and up) or
    fp32. A CPU without bf16 instructions does bf16 too, but several times slower than fp32.

    Raises ValueError on an unknown precision, int8 on a card, and bf16 on a card below 8.0.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"index.encoding={precision}; allowed: {', '.join(PRECISIONS)}")
    cards = [torch.cuda.get_device_capability(device) for device in devices if device.type == "cuda"]
    if precision == "auto":
        if not cards:
            return "int8" if quantized.sums_bytes() else "fp32"
        return "bf16" if min(cards) >= (8, 0) else "fp16" if min(cards) >= (7, 0) else "fp32"
    if precision == "int8" and cards:
        raise ValueError("index.encoding=int8 runs on a CPU only; on a card fp32, fp16 and bf16 are allowed")
    if precision == "bf16" and cards and min(cards) < (8, 0):
        raise ValueError(f"index.encoding=bf16 needs compute capability 8.0; a card here has {'.'.join(map(str, min(cards)))}")
    return precision


def lowered(encoder: Encoder, precision: str) -> Encoder:
    """A copy for inference in fp32, bf16, fp16 (weights and activations) or int8 (linear layers; the rest stays fp32)."""
    replica = copy.deepcopy(encoder).eval().requires_grad_(False)
    groups = [] if replica.albert is None else list(replica.albert.encoder.albert_layer_groups)
    for group in groups:
        # what recomputes activations in training is bound to the layers of the encoder that was copied
        vars(group).pop("forward", None)
    if precision == "fp32":
        return replica.float()
    for group in groups:
        for layer in group.albert_layers:
            if replica.transformer.config.hidden_act in ("gelu_new", "gelu_pytorch_tanh"):
                # the exact GELU differs by at most 0.0005, less than these precisions do, and takes a CPU a third of the time
                layer.activation = nn.GELU()
    if precision != "int8":
        return replica.to({"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    quantized.lower(replica)
    return replica
