"""Responses that take their time: streamed as events, and given up where nobody waits for them any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

from fastapi import Request

EVENTS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
QUIET = ": still there\n\n"
"""a comment, which clients pass over"""
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
    "description": "each event",
}
EVENTS_TOO: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}
"""FastAPI's ``responses`` of a route that streams where it is asked to"""


class Gone(Exception):  # noqa: N818
    """Who asked has gone away."""


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """What ``work`` gives; it is cancelled, and Gone raised, where the one who asked goes away first."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.wait({working, gone})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(name: str, data: Any) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
