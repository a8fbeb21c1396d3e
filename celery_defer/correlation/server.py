"""One Redis server: its connections, who it is, and what happens while it is away."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from celery_defer.words import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from celery_defer.correlation.address import Address

logger = logging.getLogger("celery_defer.redis")

# After a failure nothing is tried for this long, in seconds.
_PAUSE = 1.0
# What INFO said about a server is believed for this long: its memory policy may be changed while it runs.
_FRESH = 30.0
_MOST_IDLE = 8
# Commands that are under way at once: their answers wait in the server's memory.
_CHUNK = 10_000
# A server that refuses commands is named once in this many seconds.
_QUIET = 60.0
# EXPIREAT's NX and GT are of 7.0 (https://redis.io/docs/latest/commands/expireat/).
_OLDEST = 7
_AWAY = "Redis can't be reached: events are matched in SQL until it is back"
_REFUSED = "Redis refused a command: events are matched in SQL where its index can't be used"

Command = tuple[str | float, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says about itself.

    Attributes:
        run_id: Another one after each start; a replica has its own.
        clustered: Whether it is a node of a Redis Cluster.
        problem: Why nothing in it can be believed, or None.
    """

    run_id: str
    clustered: bool
    problem: str | None

    @classmethod
    def of(cls, info: str) -> Facts:
        """Read the answer to INFO.

        Args:
            info: The text.
        """
        found = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        return cls(found.get("run_id", ""), found.get("cluster_enabled") == "1", _problem_of(found))


class Answer(NamedTuple):
    """What a server answered to the commands of one bucket.

    Attributes:
        facts: The server that answered.
        replies: One for each command; an error is a value here.
    """

    facts: Facts
    replies: list[Any]

    @property
    def is_good(self) -> bool:
        """Whether no command was refused."""
        return not any(isinstance(reply, ResponseError) for reply in self.replies)


@dataclass(slots=True)
class _Link:
    connection: Any
    facts: Facts
    fresh_until: float


class Server:
    """A server and this process's connections to it. No method raises because it is away.

    Whoever asks takes a connection of its own, so threads and greenlets need no lock. All commands of one call go
    over one connection, which is never opened again: the server that answers is the one that its facts are about.

    Args:
        address: Where it is.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.error: str | None = None
        self._idle: list[_Link] = []
        self._pid = os.getpid()
        self._inherited: list[list[_Link]] = []
        self._is_away, self._away_until, self._quiet_until = False, 0.0, 0.0

    def ask(self, buckets: Iterable[str], commands: Callable[[str, Facts], Sequence[Command]]) -> dict[str, Answer]:
        """Send commands and read the answers, in as few round trips as there are thousands of commands.

        Args:
            buckets: What to ask about.
            commands: Makes a bucket's commands for the server that will get them.

        Returns:
            An answer for each bucket; none at all if the server is away.
        """
        if clock.monotonic() < self._away_until:
            return {}
        if self._is_away:  # only one caller at a time tries whether it is back
            self._away_until = clock.monotonic() + _PAUSE
        link = None
        try:
            link = self._lend()
            groups = {bucket: commands(bucket, link.facts) for bucket in buckets}
            replies = _exchange(link.connection, [command for group in groups.values() for command in group])
        except BaseException as error:
            if link is not None:  # it may have been interrupted in the middle of an answer
                link.connection.disconnect()
            if not isinstance(error, (RedisError, OSError)):
                raise
            self._lost(error)
            return {}
        self._answered(link, replies)
        rest = iter(replies)
        return {bucket: Answer(link.facts, [next(rest) for _ in group]) for bucket, group in groups.items()}

    def close(self) -> None:
        """Close this process's idle connections."""
        self._leave_parents()
        idle, self._idle = self._idle, []
        for link in idle:
            link.connection.disconnect()

    def _lend(self) -> _Link:
        self._leave_parents()
        link = self._idle_one() or self._open()
        if clock.monotonic() > link.fresh_until:
            try:
                _read_facts(link)
            except BaseException:
                link.connection.disconnect()
                raise
        return link

    def _leave_parents(self) -> None:
        if self._pid != os.getpid():
            # Keep a reference: the collector would end the parent's sessions.
            self._inherited.append(self._idle)
            self._idle, self._pid = [], os.getpid()

    def _idle_one(self) -> _Link | None:
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return None
            try:
                if not link.connection.can_read():  # with nothing asked, there is only the end to be read
                    return link
            except (RedisError, OSError):
                logger.debug("an idle connection was closed by the server", exc_info=True)
            link.connection.disconnect()

    def _open(self) -> _Link:
        connection = self.address.connection()
        connection.connect()
        return _Link(connection, Facts("", clustered=False, problem=None), 0.0)

    def _answered(self, link: _Link, replies: list[Any]) -> None:
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(link)
        else:
            link.connection.disconnect()
        self._is_away, self._away_until, self.error = False, 0.0, None
        refused = next((reply for reply in replies if isinstance(reply, ResponseError)), None)
        if refused is not None and clock.monotonic() > self._quiet_until:
            self._quiet_until = clock.monotonic() + _QUIET
            logger.warning(_REFUSED, extra={"server": str(self.address), "error": repr(refused)})

    def _lost(self, error: BaseException) -> None:
        if not self._is_away:
            logger.warning(_AWAY, extra={"server": str(self.address), "error": repr(error)})
        self._is_away, self._away_until, self.error = True, clock.monotonic() + _PAUSE, str(error)


def _exchange(connection: Any, commands: Sequence[Command]) -> list[Any]:
    replies: list[Any] = []
    for start in range(0, len(commands), _CHUNK):
        chunk = commands[start : start + _CHUNK]
        connection.send_packed_command([_packed(chunk)])
        for _ in chunk:
            try:
                replies.append(connection.read_response())
            except ResponseError as error:
                replies.append(error)
    return replies


def _packed(commands: Iterable[Command]) -> bytes:
    """Write commands as the protocol wants them: redis-py, made for any kind of text, takes three times as long."""
    parts = []
    for command in commands:
        parts.append(f"*{len(command)}\r\n")
        parts += [f"${len(word)}\r\n{word}\r\n" for word in map(str, command)]
    return "".join(parts).encode("ascii")


def _read_facts(link: _Link) -> None:
    (info,) = _exchange(link.connection, [("INFO",)])
    if isinstance(info, ResponseError):
        raise info
    link.facts, link.fresh_until = Facts.of(info), clock.monotonic() + _FRESH


def _problem_of(found: dict[str, str]) -> str | None:
    major = found.get("redis_version", "").partition(".")[0]
    if not major.isdecimal() or int(major) < _OLDEST:
        return f"it is version {found.get('redis_version', 'unknown')}, and 7.0 is the oldest that can be used"
    if not found.get("run_id"):
        return "it doesn't tell its run_id, so a restart with old data couldn't be noticed"
    if found.get("role", "master") != "master":
        return "it is a replica: give the primary's address"
    policy = found.get("maxmemory_policy", "unknown")
    if found.get("maxmemory", "0") != "0" and policy != "noeviction":
        return (
            f"its maxmemory-policy is {policy}, which lets waits vanish: set it to noeviction;"
            " until then all events are matched in SQL"
        )
    return None
