"""For Schemathesis: what a JSON Schema cannot say of a request that is to be accepted."""

from __future__ import annotations

from typing import Any

import schemathesis

QUESTION = {"role": "user", "content": "孕期可以喝咖啡吗？"}


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    """The last message of a chat is the user's, and a question."""
    chat = case.operation.path == "/v1/chat/completions" and case.meta is not None and case.meta.generation.mode.is_positive
    if chat and isinstance(case.body, dict) and isinstance(messages := case.body.get("messages"), list):
        case.body["messages"] = [*messages[:39], QUESTION]
