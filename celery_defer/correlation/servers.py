"""Which server has which bucket: one server for all, or the nodes of a Redis Cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.crc import key_slot

from celery_defer.correlation.server import Answer, Server
from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from celery_defer.correlation.address import Address
    from celery_defer.correlation.server import Command, Facts

# The map of a cluster that seems to have changed is read again, but not more often than this, in seconds.
_PAUSE = 1.0


class Servers:
    """The server at an address, or the cluster that it is in.

    redis-py's client for clusters hides which node answered, and tries again on its own. Here every bucket is asked
    of the node that has its slot, and what a node refuses (``MOVED``, ``ASK``) counts as no answer.

    Args:
        address: Of the server, or of any node.
        slot_key: Gives a bucket's key; all keys of a bucket have one slot.
    """

    def __init__(self, address: Address, slot_key: Callable[[str], str]) -> None:
        self._seed = Server(address)
        self._slot_key = slot_key
        # a node by its address, and the first and last slot of ranges with their node; none without a cluster
        self._nodes: dict[tuple[str, int], Server] = {}
        self._ranges: list[tuple[int, int, Server]] = []
        self._is_known, self._next_look = False, 0.0

    def ask(self, buckets: Iterable[str], commands: Callable[[str, Facts], Sequence[Command]]) -> dict[str, Answer]:
        """Ask each bucket's server.

        Args:
            buckets: What to ask about.
            commands: Makes a bucket's commands for the server that will get them.

        Returns:
            An answer for each bucket whose server is there.
        """
        if not self._is_known and clock.monotonic() >= self._next_look:
            self._look()
        by_server: dict[Server, list[str]] = {}
        for bucket in buckets:
            by_server.setdefault(self._server_of(bucket), []).append(bucket)
        answers: dict[str, Answer] = {}
        for server, asked in by_server.items():
            got = server.ask(asked, commands)
            answers |= got
            if not got or not all(answer.is_good for answer in got.values()):
                self._is_known = False
        return answers

    def problem(self) -> str | None:
        """Say what is wrong with the first server that can't be used, or None."""
        self._look()
        for server in self._nodes.values() or [self._seed]:
            answer = server.ask([""], lambda _bucket, _facts: []).get("")
            problem = f"it can't be reached ({server.error})" if answer is None else answer.facts.problem
            if problem is not None:
                return f"the Redis server {server.address} of defer_redis_url is of no use: {problem}"
        return None

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        for server in (self._seed, *self._nodes.values()):
            server.close()

    def _server_of(self, bucket: str) -> Server:
        if not self._ranges:
            return self._seed
        slot = key_slot(self._slot_key(bucket).encode())
        return next((server for first, last, server in self._ranges if first <= slot <= last), self._seed)

    def _look(self) -> None:
        self._next_look = clock.monotonic() + _PAUSE
        for server in (self._seed, *self._nodes.values()):
            answer = server.ask([""], lambda _bucket, facts: [("CLUSTER", "SLOTS")] if facts.clustered else [])
            if answer and answer[""].is_good:
                (told,) = answer[""].replies or [[]]
                self._take(server, told)
                return

    def _take(self, server: Server, told: Any) -> None:
        known = self._nodes
        nodes: dict[tuple[str, int], Server] = {}
        ranges: list[tuple[int, int, Server]] = []
        for first, last, (host, port, *_rest), *_replicas in told:
            # an empty or unknown name is that of who was asked
            name = "" if host in (None, "?") else str(host)
            node = nodes.get((name, port)) or known.get((name, port)) or Server(server.address.beside(name, port))
            nodes[name, port] = node
            ranges.append((first, last, node))
        self._nodes, self._ranges, self._is_known = nodes, ranges, True
        for place in known.keys() - nodes.keys():
            known[place].close()
