"""A question that goes on from an earlier one, put so that it can be understood, and looked up, alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medrag import text

_REFERS = re.compile(
    r"(?:(?:好的?|嗯+|哦+|谢谢)[，,。！! ]*)?"
    r"(?:那|这|它|他|她|还|也|又|然后|另外|如果|要是|除了|刚才|上面|前面|具体)"
)
_ENDS = re.compile(r"(?:呢|呢吗|吗呢)[?？。!！]*$")
_ALONE_CHARACTERS = 6
"""a question with no more than these leans on what was said before"""


def standalone(question: str, earlier: Sequence[str], limit_characters: int) -> tuple[str, bool]:
    """The question as it is asked of a method, and whether it leans on an earlier one: then the last of those (oldest first) stands before it."""
    said = question.strip()
    leans = bool(_REFERS.match(said) or _ENDS.search(said)) or len(text.key(said)) <= _ALONE_CHARACTERS
    before = earlier[-1].strip() if earlier else ""
    if not (leans and text.key(before)):
        return question, False
    return f"{before[: max(0, limit_characters - len(said) - 1)]}，{said}"[:limit_characters], True
