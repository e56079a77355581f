"""Run in a process of its own: tiny runs in which the batches of some steps are poisoned, beside the same steps taken by torch alone.

``poisoned.py FOLDER`` prints what was seen of each case of ``CASES`` as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import conftest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from medrag import train  # noqa: E402
from medrag.hardware import Hardware  # noqa: E402
from medrag.methods import Batch, closed_book  # noqa: E402
from medrag.methods.closed_book import ClosedBook  # noqa: E402
from medrag.schedule import Sampler, Task, rate  # noqa: E402
from medrag.train import checkpoints  # noqa: E402

BATCH, EPOCHS = 6, 5
STEPS = 25
TASK = Task("closed_book", closed_book.Config(), BATCH, EPOCHS, 1e-2, save_every_minutes=0, patience=0, most_skipped=3, clip=0.5)
HARDWARE = Hardware(micro_batch={"default": 3})
SEED = 5

Poison = Callable[[ClosedBook, Tensor], Tensor]


def nan(method: ClosedBook, loss: Tensor) -> Tensor:
    return loss * float("nan")


def huge(method: ClosedBook, loss: Tensor) -> Tensor:
    return loss * 1e4


def gradient(method: ClosedBook, loss: Tensor) -> Tensor:
    """The loss is right, its gradient is not a number."""
    return loss + (next(method.parameters()).sum() * 0).sqrt()


def stop(method: ClosedBook, loss: Tensor) -> Tensor:
    raise RuntimeError("killed")


def made(tiny: conftest.Tiny) -> ClosedBook:
    return ClosedBook(TASK.options, tiny.generator())


@contextmanager
def poisoned(steps: dict[int, Poison]) -> Iterator[None]:
    """While entered, training meets these in the first micro batch of these steps (the first is 1)."""
    draw, healthy, coming = Sampler.batch, ClosedBook.forward, list[Poison]()

    def drawn(self: Sampler, step: int) -> list[int]:
        coming[:] = [steps[step + 1]] if step + 1 in steps else []
        return draw(self, step)

    def forward(self: ClosedBook, batch: Batch) -> Tensor:
        loss = healthy(self, batch)
        return coming.pop()(self, loss) if coming else loss

    Sampler.batch, ClosedBook.forward = drawn, forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sampler.batch, ClosedBook.forward = draw, healthy  # type: ignore[method-assign]


def sampler(tiny: conftest.Tiny) -> Sampler:
    return Sampler([len(example.question) + len(example.answers[0]) for example in tiny.examples], BATCH, SEED)


def alone(tiny: conftest.Tiny, left_out: set[int]) -> dict[str, Tensor]:
    """The weights after all steps but those left out, by torch's own AdamW."""
    method, draw = made(tiny).train(), sampler(tiny)
    matrices = [parameter for parameter in method.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in method.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": TASK.weight_decay}, {"params": vectors, "weight_decay": 0.0}])
    for step in range(1, STEPS + 1):
        if step in left_out:
            continue
        for group in optimizer.param_groups:
            group["lr"] = rate(TASK, step - 1, STEPS)
        optimizer.zero_grad()
        method(method.collate([tiny.examples[number] for number in draw.batch(step - 1)])).backward()
        nn.utils.clip_grad_norm_(method.parameters(), TASK.clip)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in method.named_parameters()}


def run(tiny: conftest.Tiny, folder: Path, steps: dict[int, Poison]) -> dict[str, Any]:
    """What was seen of one run, which goes on where ``folder`` has one."""
    error = ""
    with poisoned(steps):
        try:
            train.fit(made(tiny), tiny.examples, tiny.examples[:4], TASK, HARDWARE, SEED, folder)
        except (ValueError, RuntimeError) as raised:
            error = str(raised)
    found = checkpoints.newest(folder)
    assert found is not None
    path, state, tensors = found
    weights = {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name.startswith("weight.")}
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    expected = alone(tiny, {row["step"] for row in rows if "skipped" in row})
    return {
        "error": error,
        "checkpoint": str(path),
        "state": asdict(state),
        "rows": rows,
        "apart": max(float((weights[name] - tensor).abs().max()) for name, tensor in expected.items()),
        "sum": float(torch.stack([tensor.double().sum() for tensor in weights.values()]).sum()),
    }


def main(home: Path) -> None:
    tiny = conftest.tiny.__wrapped__()  # type: ignore[attr-defined]
    train.connect(HARDWARE)
    cases: dict[str, list[dict[int, Poison]]] = {
        "healthy": [{}],
        "nan": [{7: nan}],
        "huge": [{17: huge}],
        "huge at first": [{5: huge}],
        "gradient": [{7: gradient}],
        "killed after": [{7: nan, 8: stop}, {7: nan}],
        "killed later": [{7: nan, 11: stop}, {7: nan}],
        "hopeless": [{12: nan, 13: nan, 14: nan}],
    }
    seen = {name: [run(tiny, home / name.replace(" ", "-"), steps) for steps in runs][-1] for name, runs in cases.items()}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
