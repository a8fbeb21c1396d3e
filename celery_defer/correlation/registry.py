"""The registry of open waits in Redis.

Keys, where ``b`` is the bucket of a digest, its first byte in hex, and the hash tag of Redis Cluster:

* ``<namespace>:{b}:w:<shape>:<digest>``: the ids of the open waits for a value, sorted by when they expire.
* ``<namespace>:{b}:gen``: the bucket's generation, ``building:<epoch>:<run id>`` or ``ready:<epoch>:<run id>``, with
  the run id of the server that has the bucket's slot. A server that was restarted with old data and a replica that
  became the primary have another run id, so what they hold isn't believed before it was built anew.

SQL is the truth: an answer may name waits that are over, and what can't be believed is looked up there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from celery_defer.correlation.address import Address
from celery_defer.correlation.servers import Servers
from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from celery_defer.correlation.server import Command, Facts

Key = tuple[str, str]
T = TypeVar("T")

BUCKETS = tuple(f"{number:02x}" for number in range(256))
# How much longer than its last wait a key lives, and a wait is found: clocks differ. In seconds.
_SLACK = 3600
# A key with more waits is matched in SQL, which claims them in portions.
_MOST = 1_000
# Compare and set. It may be sent twice: what it made is also right.
_TURN = (
    "local found = redis.call('GET', KEYS[1])"
    " if found == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) return 1 end"
    " return found == ARGV[2] and 1 or 0"
)


@dataclass(frozen=True, slots=True)
class Filed:
    """An open wait as the registry keeps it.

    Attributes:
        wait_id: Its row.
        expires: When it times out, in seconds since the epoch.
        keys: The shape id and the digest of each value that it waits for.
    """

    wait_id: int
    expires: float
    keys: tuple[Key, ...]


class Registry:
    """The open waits of one namespace, by what they wait for.

    Nothing is opened before the first use, and every process opens its own connections. No method raises because
    Redis is away; it is left alone for a second then.

    Args:
        url: Of a Redis or Valkey server, or of a node of a cluster.
        namespace: The prefix of its keys.

    Raises:
        ConfigError: The URL can't be used.
    """

    def __init__(self, url: str, namespace: str) -> None:
        self._namespace = namespace
        self._servers = Servers(Address.of(url), self._generation)

    def add(self, waits: Sequence[Filed]) -> bool:
        """File waits; doing so again changes nothing.

        Args:
            waits: They are in SQL already.

        Returns:
            False if not all of them were filed: Redis, or a part of it, is away or refused.
        """
        now = clock.utcnow().timestamp()
        filed = _by_bucket((key, wait) for wait in waits for key in wait.keys)

        def commands(bucket: str, _facts: Facts) -> list[Command]:
            made: list[Command] = []
            for key, wait in filed[bucket]:
                name = self._key(bucket, key)
                # Never in the past: that would delete the key, and others' waits with it.
                until = math.ceil(max(wait.expires, now)) + _SLACK
                # First longer, so that a key which is about to expire doesn't take the new wait with it; NX for a
                # key without an expiry, which GT leaves alone; GT again if another worker's NX came first.
                longer: Command = ("EXPIREAT", name, until, "GT")
                made += [longer, ("ZADD", name, wait.expires, wait.wait_id), ("EXPIREAT", name, until, "NX"), longer]
            return made

        answers = self._servers.ask(filed, commands)
        return len(answers) == len(filed) and all(answer.is_good for answer in answers.values())

    def remove(self, waits: Sequence[Filed]) -> None:
        """Forget waits that are over. What can't be removed now is found in vain until it expires.

        Args:
            waits: With the keys that they were filed under.
        """
        filed = _by_bucket((key, wait) for wait in waits for key in wait.keys)
        self._servers.ask(
            filed,
            lambda bucket, _facts: [("ZREM", self._key(bucket, key), wait.wait_id) for key, wait in filed[bucket]],
        )

    def find(self, keys: Sequence[Key]) -> dict[Key, list[int]]:
        """Find who waits for values.

        Args:
            keys: Shape ids and digests.

        Returns:
            The ids of the waits under each key whose answer can be believed. Keys that are missing must be matched in
            SQL: Redis is away or being rebuilt, lost something, or the key has more than 1,000 waits.
        """
        since = clock.utcnow().timestamp() - _SLACK
        wanted = _by_bucket((key, None) for key in dict.fromkeys(keys))

        def commands(bucket: str, facts: Facts) -> list[Command]:
            if facts.problem is not None:
                return []
            generation: Command = ("GET", self._generation(bucket))
            names = [self._key(bucket, key) for key, _ in wanted[bucket]]
            ranges: list[Command] = [("ZRANGEBYSCORE", name, since, "+inf", "LIMIT", 0, _MOST + 1) for name in names]
            return [generation, *ranges, generation]

        found: dict[Key, list[int]] = {}
        for bucket, answer in self._servers.ask(wanted, commands).items():
            if not answer.replies or not answer.is_good:
                continue
            before, *ranges, after = answer.replies
            if before == after and _is_ready(before, answer.facts):
                lists = zip(wanted[bucket], ranges, strict=True)
                found |= {key: [int(id) for id in ids] for (key, _), ids in lists if len(ids) <= _MOST}
        return found

    def stale(self) -> bool:
        """Tell whether the registry must be rebuilt: some bucket's generation isn't ready, or of another server.

        A server that can't be believed (see `report`) isn't rebuilt, and its generations are removed, so that it is
        rebuilt when that has changed.

        Returns:
            False if Redis, or a part of it, is away: there is nothing to rebuild now.
        """
        generations = self._servers.ask(
            BUCKETS,
            lambda bucket, facts: [("GET" if facts.problem is None else "DEL", self._generation(bucket))],
        )
        if len(generations) < len(BUCKETS) or any(answer.facts.problem for answer in generations.values()):
            return False
        return any(not _is_ready(answer.replies[0], answer.facts) for answer in generations.values())

    def begin(self, epoch: int) -> bool:
        """Begin a rebuild: nothing is believed until `ready`. Then `add` all open waits.

        Args:
            epoch: The rebuild's number.

        Returns:
            False if it can't be done now.
        """

        def commands(bucket: str, facts: Facts) -> list[Command]:
            if facts.problem is not None:
                return []
            return [("SET", self._generation(bucket), f"building:{epoch}:{facts.run_id}")]

        return self._is_done(commands, "OK")

    def ready(self, epoch: int) -> bool:
        """End a rebuild, if nothing was lost and no other one has begun since `begin`.

        Args:
            epoch: The rebuild's number.

        Returns:
            False if some bucket isn't ready.
        """

        def commands(bucket: str, facts: Facts) -> list[Command]:
            if facts.problem is not None:
                return []
            states = (f"{state}:{epoch}:{facts.run_id}" for state in ("building", "ready"))
            return [("EVAL", _TURN, 1, self._generation(bucket), *states)]

        return self._is_done(commands, 1)

    def report(self) -> str | None:
        """Say what is wrong with the server, for a line at start-up, or None."""
        return self._servers.problem()

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        self._servers.close()

    def _is_done(self, commands: Callable[[str, Facts], list[Command]], sign: object) -> bool:
        answers = self._servers.ask(BUCKETS, commands)
        return len(answers) == len(BUCKETS) and all(answer.replies == [sign] for answer in answers.values())

    def _generation(self, bucket: str) -> str:
        return f"{self._namespace}:{{{bucket}}}:gen"

    def _key(self, bucket: str, key: Key) -> str:
        shape, digest = key
        return f"{self._namespace}:{{{bucket}}}:w:{shape}:{digest}"


def _by_bucket(keyed: Iterable[tuple[Key, T]]) -> dict[str, list[tuple[Key, T]]]:
    found: dict[str, list[tuple[Key, T]]] = {}
    for key, value in keyed:
        found.setdefault(key[1][:2], []).append((key, value))
    return found


def _is_ready(generation: object, facts: Facts) -> bool:
    return isinstance(generation, str) and generation.startswith("ready:") and generation.endswith(f":{facts.run_id}")
