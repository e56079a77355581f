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


TURNS = 4
"""how far back is looked for what a question leans on"""


def standalone(question: str, earlier: Sequence[str], limit_characters: int) -> tuple[str, bool]:
    """The question as it is asked of a method, and whether it leans on earlier ones (oldest first).

    Those stand before it then, from the last that stands alone. The question itself is never cut, those before it from their beginning.
    """
    if not _leans(question):
        return question, False
    before: list[str] = []
    for turn in reversed(earlier[-TURNS:]):
        before.insert(0, turn.strip())
        if not _leans(turn):
            break
    joined = "，".join(turn for turn in before if text.key(turn))
    room = limit_characters - len(question.strip()) - 1
    return (f"{joined[-room:]}，{question.strip()}", True) if joined and room > 0 else (question, False)


def _leans(question: str) -> bool:
    said = question.strip()
    return bool(_REFERS.match(said) or _ENDS.search(said)) or len(text.key(said)) <= _ALONE_CHARACTERS
