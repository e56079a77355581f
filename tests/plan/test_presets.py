"""The reference's three stages on one card of 11 GB, as its preset has them: within 6 GiB, by the rehearsal."""

from __future__ import annotations

from itertools import product

import pytest

from medrag.assemble.rehearsal import rehearse
from medrag.config import compose


@pytest.mark.parametrize(("card", "task"), list(product(["1080ti", "2080ti"], ["dense", "closed_book", "rag_token"])))
def test_a_stage_of_the_reference_takes_six_gib_of_one_card(card: str, task: str) -> None:
    run = compose(["model=reference", f"hardware={card}", "hardware.devices=1", f"task={task}"])
    assert not run.hardware.checkpointing and not run.hardware.offload
    found = rehearse(run)
    assert 1.5 < found.memory.total_bytes / 2**30 <= 6.0
    assert found.trained_parameters > 9e6, "it is the reference's model"
