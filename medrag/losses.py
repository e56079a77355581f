"""Pure objectives. Everything is in nats and computed in fp32, whatever the model's precision.

Shapes: B questions, C contexts, K passages, P places of a question's passages joined, T target tokens, D width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def contrastive(q_BD: Tensor, c_CD: Tensor, positive_B: Tensor, masked_BC: Tensor | None = None) -> Tensor:
    """Mean over questions of ``-log softmax_C(q . c)`` at the positive's column.

    Karpukhin et al. 2020 (DPR), equation 2. ``positive_B`` holds column numbers; columns that ``masked_BC`` marks (other copies of a
    right answer) take no part.
    """
    score_BC = q_BD.float() @ c_CD.float().T
    if masked_BC is not None:
        score_BC = score_BC.masked_fill(masked_BC, float("-inf"))
    return F.cross_entropy(score_BC, positive_B)


def distillation(student_BK: Tensor, teacher_BK: Tensor, temperature: float = 1.0) -> Tensor:
    """``KL(softmax_K(teacher / temperature) || softmax_K(student))`` summed over each question's candidates, a mean over all B questions.

    Hinton et al. 2015, equation 1, over a list of candidates as in RocketQAv2 (Ren et al. 2021, equation 4). Scores that are not finite mark
    questions without a teacher: they add 0 and count in B all the same, so that the mean over ranks is that of one process.
    """
    known_B = teacher_BK.isfinite().all(1)
    teacher_BK = torch.where(known_B.unsqueeze(1), teacher_BK, 0.0)
    return (_divergence(student_BK, teacher_BK, temperature) * known_B).mean()


def rag_sequence(prior_BK: Tensor, logp_BKT: Tensor) -> Tensor:
    """``-LSE_k[log p(k|x) + sum_t log p(y_t|y_<t, x, k)]`` for each question (B,).

    Lewis et al. 2020, section 2.1, RAG-Sequence. ``prior_BK`` is normalised over K; ``logp_BKT`` is zero at padding.
    """
    return -torch.logsumexp(prior_BK.float() + logp_BKT.float().sum(-1), dim=1)


def rag_token(prior_BK: Tensor, logp_BKT: Tensor, mask_BT: Tensor) -> Tensor:
    """``-sum_t LSE_k[log p(k|x) + log p(y_t|y_<t, x, k)]`` for each question (B,).

    Lewis et al. 2020, section 2.1, RAG-Token. Gathering the target's log-probability before the log-sum-exp is exact, since
    marginalising and selecting a token commute; no B x K x T x V tensor outlives the decoder.
    """
    marginal_BT = torch.logsumexp(prior_BK.float().unsqueeze(-1) + logp_BKT.float(), dim=1)
    return -(marginal_BT * mask_BT).sum(-1)


# -- a retriever that learns from its reader --------------------------------------------------------------------------------------
#
# What the reader says of each passage is a constant; only ``student_BK``, the retriever's scores, gets a gradient. The divergences are divided
# by K, as in the papers' code (a mean over all B x K); each is a value for every question (B,).


def fid_kd(student_BK: Tensor, score_BP: Tensor, own_BKP: Tensor, temperature: float = 1.0) -> Tensor:
    """``KL(softmax_K(g / temperature) || softmax_K(student)) / K``, g_k the mean pre-softmax cross-attention over passage k's places.

    Izacard & Grave 2021, "Distilling Knowledge from Reader to Retriever", section 3.2. ``score_BP`` is the first decoded token's, a mean over
    layers and heads; ``own_BKP`` marks the tokens of each passage, at least one.
    """
    own_BKP = own_BKP.float()
    gain_BK = torch.einsum("bp,bkp->bk", score_BP.float(), own_BKP) / own_BKP.sum(-1)
    return _divergence(student_BK, gain_BK, temperature) / student_BK.shape[1]


def pdist(student_BK: Tensor, logp_BKT: Tensor, mask_BT: Tensor, temperature: float = 0.01) -> Tensor:
    """``KL(softmax_K(g / temperature) || softmax_K(student)) / K``, ``g_k = mean_t log p(y_t|y_<t, x, k)`` with passage k alone.

    Izacard et al. 2022 (Atlas), section 2.2, perplexity distillation; the temperature is their code's, for a mean in nats per token.
    """
    return _divergence(student_BK, _mean(logp_BKT, mask_BT), temperature) / student_BK.shape[1]


def loop(student_BK: Tensor, without_BKT: Tensor, mask_BT: Tensor, temperature: float = 0.01) -> Tensor:
    """``KL(softmax_K(g / temperature) || softmax_K(student)) / K``, ``g_k = -mean_t log p(y_t|y_<t, x, all passages but k)``.

    Izacard et al. 2022 (Atlas), section 2.2, leave-one-out perplexity distillation: a passage is worth what is lost without it.
    """
    return _divergence(student_BK, -_mean(without_BKT, mask_BT), temperature) / student_BK.shape[1]


def emdr2(student_BK: Tensor, logp_BKT: Tensor, mask_BT: Tensor) -> Tensor:
    """``-sum_t LSE_k[log softmax_K(student)_k + log p(y_t|y_<t, x, k)]``, each passage alone.

    Sachan et al. 2021 (EMDR2), the retriever's term of the objective, token by token as in Atlas's code: RAG-Token's with the reader held fast.
    """
    return rag_token(torch.log_softmax(student_BK.float(), dim=1), logp_BKT.detach(), mask_BT)


def _divergence(student_BK: Tensor, gain_BK: Tensor, temperature: float) -> Tensor:
    """``KL(softmax_K(gain / temperature) || softmax_K(student))`` (B,); no gradient reaches ``gain_BK``."""
    target_BK = torch.log_softmax(gain_BK.detach().float() / temperature, dim=1)
    return F.kl_div(torch.log_softmax(student_BK.float(), dim=1), target_BK, reduction="none", log_target=True).sum(1)


def _mean(logp_BKT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over each target's tokens (B, K)."""
    return (logp_BKT.float() * mask_BT.unsqueeze(1)).sum(-1) / mask_BT.sum(-1, keepdim=True)


# -- over the rows of all ranks ----------------------------------------------------------------------------------------------------


class _Gather(torch.autograd.Function):
    """All ranks' rows, one after another; the backward pass sums what every rank asks of this rank's rows."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        context.rows = len(x)  # type: ignore[attr-defined]
        return torch.cat(parts)

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        rows: int = context.rows  # type: ignore[attr-defined]
        return gradient[dist.get_rank() * rows : (dist.get_rank() + 1) * rows]


def gather(x: Tensor) -> Tensor:
    """Join equal-sized tensors of all ranks along dimension 0, differentiably; without a process group, ``x`` itself.

    With each rank's loss a mean over its own questions, averaging the ranks' parameter gradients (what DeepSpeed does) then gives
    exactly the gradient of one process on the joined batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered
