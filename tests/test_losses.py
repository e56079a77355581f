"""Objectives against enumeration, loops, and one process against two."""

from __future__ import annotations

import itertools
import math
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import Tiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from medrag import encoder, losses, search
from medrag.methods import Batch, dense
from medrag.mining import Mined
from medrag.retriever import Retriever
from medrag.schedule import Room
from medrag.search import Search
from medrag.text import Segmenter
from medrag.types import Example, Passage
from medrag.vocabulary import Wordpiece

K, V, PAD = 3, 4, 0


def world(targets: int) -> tuple[list[float], list[dict[tuple[int, ...], list[float]]]]:
    """``p(k|x)``, and for every passage the full distribution of the next token after every prefix of fewer than ``targets`` tokens."""
    prior = torch.randn(K, dtype=torch.float64).softmax(0).tolist()
    prefixes = [prefix for length in range(targets) for prefix in itertools.product(range(V), repeat=length)]
    return prior, [{prefix: torch.randn(V, dtype=torch.float64).mul(2).softmax(0).tolist() for prefix in prefixes} for _ in range(K)]


def gathered(tables: list[dict[tuple[int, ...], list[float]]], y: tuple[int, ...]) -> Tensor:
    """``log p(y_t|y_<t, x, k)`` (1, K, T)."""
    return torch.tensor([[[math.log(table[y[:t]][y[t]]) for t in range(len(y))] for table in tables]])


def sequence_by_enumeration(prior: list[float], tables: list[dict[tuple[int, ...], list[float]]], y: tuple[int, ...]) -> float:
    return -math.log(sum(p * math.prod(table[y[:t]][y[t]] for t in range(len(y))) for p, table in zip(prior, tables, strict=True)))


def token_by_enumeration(prior: list[float], tables: list[dict[tuple[int, ...], list[float]]], y: tuple[int, ...]) -> float:
    """Every step's whole marginal distribution is formed before the target is looked up in it."""
    total = 0.0
    for t in range(len(y)):
        marginal = [sum(p * table[y[:t]][v] for p, table in zip(prior, tables, strict=True)) for v in range(V)]
        assert sum(marginal) == pytest.approx(1)
        total -= math.log(marginal[y[t]])
    return total


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_rag_losses_equal_enumeration(targets: int) -> None:
    prior, tables = world(targets)
    prior_BK = torch.tensor([prior]).log()
    mass = {"sequence": 0.0, "token": 0.0}
    for y in itertools.product(range(V), repeat=targets):
        logp_BKT = gathered(tables, y)
        sequence = float(losses.rag_sequence(prior_BK, logp_BKT))
        token = float(losses.rag_token(prior_BK, logp_BKT, torch.ones(1, targets, dtype=torch.bool)))
        assert sequence == pytest.approx(sequence_by_enumeration(prior, tables, y), abs=1e-5)
        assert token == pytest.approx(token_by_enumeration(prior, tables, y), abs=1e-5)
        assert targets == 1 or abs(sequence - token) > 1e-6
        mass["sequence"] += math.exp(-sequence)
        mass["token"] += math.exp(-token)
    assert mass["sequence"] == pytest.approx(1, abs=1e-5)
    assert mass["token"] == pytest.approx(1, abs=1e-5)


def test_rag_losses_agree_for_one_passage_or_one_token() -> None:
    mask = torch.ones(5, 7, dtype=torch.bool)
    one_passage = torch.zeros(5, 1), -torch.rand(5, 1, 7)
    assert torch.allclose(losses.rag_sequence(*one_passage), losses.rag_token(*one_passage, mask), atol=1e-5)
    one_token = torch.randn(5, 4).log_softmax(1), -3 * torch.rand(5, 4, 1)
    assert torch.allclose(losses.rag_sequence(*one_token), losses.rag_token(*one_token, mask[:, :1]), atol=1e-5)
    both = torch.randn(5, 4).log_softmax(1), -3 * torch.rand(5, 4, 7)
    assert not torch.allclose(losses.rag_sequence(*both), losses.rag_token(*both, mask), atol=1e-2)


def test_padding_adds_nothing() -> None:
    prior_BK, logp_BKT = torch.randn(2, 4).log_softmax(1), -torch.rand(2, 4, 3)
    padded_BKT = torch.cat([logp_BKT, torch.zeros(2, 4, 2)], dim=2)
    mask_BT = torch.tensor([[True] * 3 + [False] * 2] * 2)
    assert torch.allclose(losses.rag_sequence(prior_BK, padded_BKT), losses.rag_sequence(prior_BK, logp_BKT))
    assert torch.allclose(losses.rag_token(prior_BK, padded_BKT, mask_BT), losses.rag_token(prior_BK, logp_BKT, mask_BT[:, :3]))


def test_gather_first_equals_the_full_marginal() -> None:
    """Gathering the target before the log-sum-exp gives what the B x K x T x V marginal gives, gradients included."""
    B, T = 2, 5
    logits_BKTV = torch.randn(B, K, T, V, dtype=torch.float64).float().requires_grad_()
    score_BK = torch.randn(B, K).requires_grad_()
    target_BT = torch.tensor([[1, 2, 3, 1, 2], [3, 1, PAD, PAD, PAD]])
    mask_BT = target_BT != PAD

    logp_BKT = logits_BKTV.log_softmax(-1).gather(3, target_BT[:, None, :, None].expand(-1, K, -1, -1)).squeeze(-1) * mask_BT.unsqueeze(1)
    gather_first = losses.rag_token(score_BK.log_softmax(1), logp_BKT, mask_BT)
    marginal_BTV = torch.logsumexp(score_BK.log_softmax(1)[..., None, None] + logits_BKTV.log_softmax(-1), dim=1)
    full = -(marginal_BTV.gather(2, target_BT.unsqueeze(-1)).squeeze(-1) * mask_BT).sum(1)
    assert torch.allclose(gather_first, full, atol=1e-5)
    ours = torch.autograd.grad(gather_first.sum(), (logits_BKTV, score_BK))
    theirs = torch.autograd.grad(full.sum(), (logits_BKTV, score_BK))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_losses_are_fp32_whatever_comes_in() -> None:
    q_BD, c_CD = torch.randn(2, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    assert losses.contrastive(q_BD, c_CD, torch.tensor([0, 1])).dtype == torch.float32
    assert losses.rag_sequence(torch.zeros(1, 1).half(), torch.zeros(1, 1, 2).half()).dtype == torch.float32
    assert losses.rag_token(torch.zeros(1, 1).half(), torch.zeros(1, 1, 2).half(), torch.ones(1, 2, dtype=torch.bool)).dtype == torch.float32


def test_contrastive_equals_a_loop() -> None:
    q_BD, c_CD = torch.randn(3, 5), torch.randn(7, 5)
    positive = [4, 0, 6]
    masked = [{1, 2}, set(), {0}]
    masked_BC = torch.tensor([[column in row for column in range(7)] for row in masked])
    for mask, hidden in ((masked_BC, masked), (None, [set(), set(), set()])):
        expected = 0.0
        for b in range(3):
            score = {c: sum(float(q) * float(d) for q, d in zip(q_BD[b], c_CD[c], strict=True)) for c in range(7) if c not in hidden[b]}
            expected -= score[positive[b]] - math.log(sum(math.exp(value) for value in score.values()))
        assert float(losses.contrastive(q_BD, c_CD, torch.tensor(positive), mask)) == pytest.approx(expected / 3, abs=1e-5)


def test_masked_columns_get_no_gradient() -> None:
    q_BD, c_CD = torch.randn(1, 5), torch.randn(4, 5, requires_grad=True)
    losses.contrastive(q_BD, c_CD, torch.tensor([0]), torch.tensor([[False, True, False, False]])).backward()  # type: ignore[no-untyped-call]
    assert c_CD.grad is not None
    assert (c_CD.grad[1] == 0).all()
    assert (c_CD.grad[[0, 2, 3]].abs().sum(1) > 0).all()


def test_the_distance_from_the_teacher_is_the_divergence_and_vanishes_where_they_agree() -> None:
    student_BK, teacher_BK = torch.randn(3, 4), torch.randn(3, 4)
    teacher_BK[1, 2] = math.nan
    expected = 0.0
    for b in (0, 2):
        p, q = (teacher_BK[b].double() / 0.5).softmax(0).tolist(), student_BK[b].double().softmax(0).tolist()
        expected += sum(mass * math.log(mass / other) for mass, other in zip(p, q, strict=True)) / 3
    assert float(losses.distillation(student_BK, teacher_BK, 0.5)) == pytest.approx(expected, abs=1e-6)
    known_BK = teacher_BK[[0, 2]]
    assert float(losses.distillation(known_BK / 0.5 + 7, known_BK, 0.5)) == pytest.approx(0, abs=1e-6)
    student_BK.requires_grad_()
    losses.distillation(student_BK, teacher_BK, 0.5).backward()  # type: ignore[no-untyped-call]
    assert student_BK.grad is not None and bool(student_BK.grad.isfinite().all())
    assert (student_BK.grad[1] == 0).all() and (student_BK.grad[[0, 2]] != 0).all()


def divergence(gains: list[float], temperature: float, student: list[float]) -> float:
    """``KL(softmax(gains / temperature) || softmax(student))`` by hand."""
    target = [math.exp(gain / temperature) for gain in gains]
    target = [value / sum(target) for value in target]
    model = [math.exp(score) for score in student]
    model = [value / sum(model) for value in model]
    return sum(p * math.log(p / q) for p, q in zip(target, model, strict=True))


def taught(targets: tuple[int, ...] = (3, 1), longest: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """A student's scores (B, K), a reader's log-probabilities (B, K, T), zero at padding, and which are no padding (B, T)."""
    mask_BT = torch.arange(longest) < torch.tensor(targets).unsqueeze(1)
    return torch.randn(len(targets), K), -torch.rand(len(targets), K, longest) * mask_BT.unsqueeze(1), mask_BT


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_attention_and_perplexity_teach_the_divergence_that_loops_give(temperature: float) -> None:
    student_BK, logp_BKT, mask_BT = taught()
    score_BP = torch.randn(2, 7)
    owners = [[0, 0, 1, 2, 2, 2, None], [2, 1, 1, 0, None, None, None]]
    own_BKP = torch.tensor([[[owner == k for owner in row] for k in range(K)] for row in owners])
    attention = losses.fid_kd(student_BK, score_BP, own_BKP, temperature)
    alone = losses.pdist(student_BK, logp_BKT, mask_BT, temperature)
    without = losses.loop(student_BK, logp_BKT, mask_BT, temperature)
    for b in range(2):
        student = student_BK[b].double().tolist()
        places = [[float(score_BP[b, p]) for p in range(7) if owners[b][p] == k] for k in range(K)]
        tokens = [[float(logp_BKT[b, k, t]) for t in range(3) if mask_BT[b, t]] for k in range(K)]
        means = [sum(row) / len(row) for row in tokens]
        assert float(attention[b]) == pytest.approx(divergence([sum(row) / len(row) for row in places], temperature, student) / K, abs=1e-5)
        assert float(alone[b]) == pytest.approx(divergence(means, temperature, student) / K, abs=1e-5)
        assert float(without[b]) == pytest.approx(divergence([-mean for mean in means], temperature, student) / K, abs=1e-5)


def test_emdr2_is_the_marginal_token_by_token() -> None:
    student_BK, logp_BKT, mask_BT = taught()
    found_B = losses.emdr2(student_BK, logp_BKT, mask_BT)
    for b in range(2):
        mass = [math.exp(score) for score in student_BK[b].tolist()]
        expected = 0.0
        for t in range(int(mask_BT[b].sum())):
            expected -= math.log(sum(mass[k] / sum(mass) * math.exp(float(logp_BKT[b, k, t])) for k in range(K)))
        assert float(found_B[b]) == pytest.approx(expected, abs=1e-5)


def test_emdr2_teaches_the_student_what_the_marginal_likelihood_does() -> None:
    """And each token's gradient is the prior less the posterior over passages."""
    student_BK, logp_BKT, mask_BT = taught()
    student_BK.requires_grad_()
    (ours,) = torch.autograd.grad(losses.emdr2(student_BK, logp_BKT, mask_BT).sum(), student_BK)
    marginal = losses.rag_token(student_BK.log_softmax(1), logp_BKT.requires_grad_(), mask_BT).sum()
    (theirs,) = torch.autograd.grad(marginal, student_BK)
    assert torch.equal(ours, theirs)
    prior_BK1 = student_BK.detach().softmax(1).unsqueeze(-1)
    posterior_BKT = (prior_BK1.log() + logp_BKT.detach()).softmax(1)
    assert torch.allclose(ours, ((prior_BK1 - posterior_BKT) * mask_BT.unsqueeze(1)).sum(-1), atol=1e-5)


@pytest.mark.parametrize("name", ["fid_kd", "pdist", "loop", "emdr2"])
def test_only_the_student_learns_from_the_reader(name: str) -> None:
    """Nothing flows to what the reader said; a shift of all scores changes nothing; a divergence vanishes where both agree."""
    student_BK, logp_BKT, mask_BT = taught()
    student_BK.requires_grad_()
    own_BKP = torch.eye(K, dtype=torch.bool).expand(2, -1, -1)
    said = torch.randn(2, K, requires_grad=True) if name == "fid_kd" else logp_BKT.requires_grad_()
    given = (own_BKP,) if name == "fid_kd" else (mask_BT,)
    loss_B = getattr(losses, name)(student_BK, said, *given)
    assert loss_B.shape == (2,) and loss_B.dtype == torch.float32 and (loss_B > 0).all()
    loss_B.sum().backward()
    assert said.grad is None
    assert student_BK.grad is not None and (student_BK.grad.abs().sum(1) > 1e-4).all()
    assert torch.allclose(student_BK.grad.sum(1), torch.zeros(2), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(getattr(losses, name)(student_BK + 5, said, *given), loss_B, atol=1e-4)
        if name == "fid_kd":
            assert torch.allclose(losses.fid_kd(said / 0.5 + 3, said, own_BKP, 0.5), torch.zeros(2), atol=1e-6)


def test_gather_without_a_group_is_the_tensor_itself() -> None:
    x = torch.randn(2, 3)
    assert losses.gather(x) is x


def make_dense(folder: Path, examples: list[Example], passages: list[Passage]) -> tuple[dense.Dense, Batch]:
    """The method with the weights kept in ``folder`` and the batch of ``examples``; nothing in it is drawn."""
    wordpiece = Wordpiece.load(folder)
    torch.manual_seed(0)
    description = encoder.build(
        encoder.Config(embedding=16, width=32, layers=2, heads=4, feed_forward=48, dropout=0.0, positions_tokens=64), wordpiece
    ).describe()
    config = search.Config(question_tokens=32, passage_tokens=48)
    finder = Retriever(config, Search(synonyms=""), wordpiece, encoder.restore(description), encoder.restore(description), Segmenter())
    options = dense.Config(negatives=1, title_share=1.0, retriever=config, symmetric=0.5, distillation=2.0, teacher="index")
    method = dense.Dense(options, finder, {passage.id: passage for passage in passages})
    method.load_state_dict(load_file(folder / "weights.safetensors"))
    method.mined = {"e0": Mined(("p1",), {"p0": 1.0, "p1": 0.2}), "e4": Mined(("p5",), {"p4": 0.1, "p5": 0.4})}
    return method, method.collate(examples)


def one_rank(rank: int, port: int, folder: Path, examples: list[Example], passages: list[Passage]) -> dict[str, Tensor]:
    """Loss and gradients of this rank's half of the batch, averaged over both ranks as DeepSpeed averages them."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    half = len(examples) // 2
    method, batch = make_dense(folder, examples[rank * half : (rank + 1) * half], passages)
    method.room = Room(examples=1) if rank else Room(tokens=40)
    loss = method(batch)
    loss.backward()
    found = {name: parameter.grad for name, parameter in method.named_parameters() if parameter.grad is not None} | {"loss": loss.detach()}
    for value in found.values():
        dist.all_reduce(value)
        value /= 2
    dist.destroy_process_group()
    return found


def second_rank(_process: int, port: int, folder: Path, examples: list[Example], passages: list[Passage]) -> None:
    torch.set_num_threads(1)
    one_rank(1, port, folder, examples, passages)


def test_two_ranks_equal_one_process(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real method on a batch split over two gloo ranks, each in chunks of its own, with every part of the loss.

    A right answer of one rank's question is a column of the other's; each rank has one question that a teacher has scored.
    """
    examples = tiny.examples[:6]
    shared = Example("twin", "糖尿病能喝酒吗？", examples[0].answers, ("p0",), ("p20",))
    examples = [*examples[:3], shared, *examples[4:]]
    tiny.wordpiece.save(tmp_path)
    finder = tiny.retriever(remember=False)
    save_file(dense.Dense(dense.Config(), finder, tiny.library).state_dict(), tmp_path / "weights.safetensors")

    method, batch = make_dense(tmp_path, examples, tiny.passages)
    assert len(set(batch.tensors["likeness_PS"][:, 0].tolist())) < len(batch.tensors["likeness_PS"])
    assert batch.tensors["teacher_BK"].isfinite().all(1).tolist() == [True, False, False, False, True, False]
    loss = method(batch)
    loss.backward()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    other = spawn(second_rank, (port, tmp_path, examples, tiny.passages), nprocs=1, join=False)  # type: ignore[no-untyped-call]
    two = one_rank(0, port, tmp_path, examples, tiny.passages)
    other.join()

    assert float(two.pop("loss")) == pytest.approx(float(loss.detach()), abs=1e-5)
    one = {name: parameter.grad for name, parameter in method.named_parameters()}
    assert set(one) == set(two)
    largest = max(float(gradient.abs().max()) for gradient in one.values() if gradient is not None)
    assert largest > 1e-2
    for name, gradient in one.items():
        assert gradient is not None
        assert float((gradient - two[name]).abs().max()) < 1e-5 * max(1.0, largest), name
