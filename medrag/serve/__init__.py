"""The HTTP service: an API, a page, and the processes that answer.

One process speaks HTTP (``app``); others hold the models (``worker``), each bound to the versions that it opened. Between them stands one queue
(``pool``). A new index or model means new workers: they take over when they have answered a question, and the old ones end with what they have
in hand, so that an answer is always of one version.
"""

from __future__ import annotations

from medrag.serve.settings import Config, check

__all__ = ["Config", "check"]
