"""What a worker reads: batches in order, and what was given up before its turn came."""

from __future__ import annotations

import json
import os

from medrag.serve.worker import Inbox


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def test_batches_come_in_order_without_what_was_given_up() -> None:
    read, write = os.pipe()
    inbox = Inbox(read)
    batches = [[{"job": 1}, {"job": 2}], [{"job": 3}, {"job": 4}], [{"job": 5, "question": "问" * 100}]]
    os.write(write, line(batches[0]) + line(batches[1]) + line({"cancel": 4}) + line(batches[2])[:20])
    assert inbox.next() == batches[0] and not inbox.given_up(1)
    assert not inbox.given_up(5)
    os.write(write, line(batches[2])[20:])
    assert inbox.next() == [{"job": 3}] and inbox.next() == batches[2]
    os.close(write)
    os.close(read)


def test_a_job_in_hand_is_given_up_and_the_end_ends_none() -> None:
    read, write = os.pipe()
    inbox = Inbox(read)
    os.write(write, line([{"job": 1}]) + line([{"job": 2}]))
    assert inbox.next() == [{"job": 1}] and not inbox.given_up(1)
    os.write(write, line({"cancel": 1}))
    assert inbox.given_up(1)
    os.close(write)
    assert inbox.next() == [{"job": 2}] and not inbox.given_up(2)
    assert inbox.next() is None
    os.close(read)
