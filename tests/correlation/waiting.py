"""Waits for tests of the registry."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from redis import Redis

from celery_defer.correlation import Filed, server
from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_defer.testing import EmbeddedServer

NAMESPACE = "ns"
HOUR = 3600.0
PATIENCE = 20.0


def key(value: object, shape: str = "s") -> tuple[str, str]:
    """Return the key of a value."""
    return shape, hashlib.blake2b(str(value).encode(), digest_size=20).hexdigest()


def filed(wait_id: int, *values: object, left: float = HOUR) -> Filed:
    """Return a wait for values, that expires so many seconds from now."""
    return Filed(wait_id, now() + left, tuple(key(value) for value in values or (wait_id,)))


def name_of(value: object, namespace: str = NAMESPACE) -> str:
    """Return the Redis key of a value's waits."""
    shape, digest = key(value)
    return f"{namespace}:{{{digest[:2]}}}:w:{shape}:{digest}"


def generation_of(value: object) -> str:
    """Return the Redis key of the generation of a value's bucket."""
    return f"{NAMESPACE}:{{{key(value)[1][:2]}}}:gen"


def now() -> float:
    """Return the time in seconds since the epoch."""
    return clock.utcnow().timestamp()


def client_of(private: EmbeddedServer) -> Redis:
    """Return a client of its own."""
    return Redis(unix_socket_path=str(private.path), decode_responses=True)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition, with a deadline."""
    deadline = clock.monotonic() + PATIENCE
    while not (found := condition()):
        assert clock.monotonic() < deadline, f"{what} did not happen within {PATIENCE} s"
        clock.sleep(0.02)
    return found


def recorded(monkeypatch: Any) -> list[list[server.Command]]:
    """Record the commands of each exchange with a server, except INFO."""
    sent: list[list[server.Command]] = []
    exchange = server._exchange

    def record(connection: Any, commands: Any) -> list[Any]:
        if commands and commands[0][0] != "INFO":
            sent.append(list(commands))
        return exchange(connection, commands)

    monkeypatch.setattr(server, "_exchange", record)
    return sent


def parts(commands: list[server.Command]) -> Iterator[str]:
    """Yield the key of each command."""
    for command in commands:
        yield str(command[3] if command[0] == "EVAL" else command[1])
