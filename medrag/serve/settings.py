"""What is asked of the HTTP service."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field


@dataclass
class Config:
    """Where it listens, who answers, and how much it takes on at once."""

    host: str = "127.0.0.1"
    """address to listen on; any other than this machine's own needs a token"""
    port: int = 8000
    """0: a free one, which is printed"""
    token_file: str = ""
    """file whose first line is the token that every request but /healthz must bring; empty: the environment's MEDRAG_TOKEN, else none"""
    methods: list[str] = field(default_factory=lambda: ["dense"])
    """trained methods that may be asked; the first answers where a request names none"""
    workers: int = 1
    """processes that answer, each with the models in its own memory"""
    batch_questions: int = 2
    """most questions answered at once; a worker has a batch in hand and the next one ready"""
    queue_questions: int = 1
    """most requests that wait for a worker beside what it has; beyond it the answer is 429. More: fewer refusals, longer waits"""
    screened_a_second: int = 50
    """requests a second that are still read while the queue is full, so that emergencies among them are answered; the others are not even read"""
    deadline_seconds: float = 30.0
    """how long a request may wait for its answer before it is told 504"""
    request_seconds: float = 10.0
    """how long a request may take to arrive, its headers and body together, before its connection is closed"""
    swap_seconds: float = 2.0
    """how often a new index or model is looked for"""
    golden_question: str = "孕期可以喝咖啡吗？"
    """asked of new workers; they serve when they have answered it"""
    feedback: str = ""
    """SQLite file of the verdicts on answers; empty: feedback.sqlite in the store"""
    cluster: str = ""
    """empty: this process and its workers; ``local``: replicas of the service on a Ray cluster made here; else the address of a Ray cluster, or
    ``auto``, whose machines share the store's folder. A replica is given ``serve.workers`` processes of ``hardware.threads`` cores (one, where that
    is 0), and a card where ``hardware.device`` is cuda. Needs ``pip install 'medrag[cluster]'``"""
    replicas_least: int = 1
    """replicas on a cluster, however little there is to do"""
    replicas_most: int = 2
    """replicas on a cluster, however much there is to do"""
    log: bool = True
    """a JSON line on stderr for each request: hashes and lengths, never texts"""


def local(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(config: Config, token: str) -> None:
    """Raise ValueError where a value is out of range, or an address is open to others without a token."""
    if not local(config.host) and not token:
        raise ValueError(f"serve.host={config.host} is open to other machines: name a file with a token (serve.token_file), or set MEDRAG_TOKEN")
    if token and (len(token) < 16 or not token.isascii() or not token.isprintable()):
        raise ValueError("the token must have at least 16 characters, printable ASCII, as from: openssl rand -hex 32")
    if not config.methods or len(set(config.methods)) != len(config.methods):
        raise ValueError(f"serve.methods={config.methods}; name each method once, at least one")
    if not 0 <= config.port <= 65535:
        raise ValueError(f"serve.port={config.port}; allowed: 0 to 65535")
    for name in ("workers", "batch_questions", "queue_questions", "replicas_least"):
        if getattr(config, name) < 1:
            raise ValueError(f"serve.{name}={getattr(config, name)}; it must be 1 or more")
    for name in ("deadline_seconds", "request_seconds", "swap_seconds"):
        if not getattr(config, name) > 0:
            raise ValueError(f"serve.{name}={getattr(config, name)}; it must be above 0")
    if config.replicas_most < config.replicas_least:
        raise ValueError(f"serve.replicas_most={config.replicas_most}; it must be serve.replicas_least={config.replicas_least} or more")
    if config.screened_a_second < 0:
        raise ValueError(f"serve.screened_a_second={config.screened_a_second}; it must be 0 or more")
