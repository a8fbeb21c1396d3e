"""Where a Redis server is: what the URLs of Celery and of redis-py say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.connection import Connection, UnixDomainSocketConnection, parse_url
from redis.exceptions import RedisError

from celery_defer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

# A server that isn't there in this many seconds isn't there: what asks it goes on with SQL.
_CONNECT_TIMEOUT, _SOCKET_TIMEOUT = 0.25, 0.5
# INFO tells paths, which need not be UTF-8.
_OURS = {"decode_responses": True, "encoding_errors": "replace", "protocol": 2}
_SCHEMES = ("redis", "rediss", "unix", "redis+socket")
_ADVICE = "give one such as redis://localhost:6379/0, rediss://…, unix:///path?db=0 or redis+socket:///path"


@dataclass(frozen=True, slots=True, eq=False)
class Address:
    """A server, and how to connect to it.

    Attributes:
        kind: redis-py's class of connections.
        options: Its arguments.
    """

    kind: Any
    options: Mapping[str, Any]

    @classmethod
    def of(cls, url: str) -> Address:
        """Read a URL; opens nothing.

        Args:
            url: As redis-py takes it, or a broker's or result backend's of Celery. Its query may set any option of
                a connection, such as ``socket_timeout``.

        Raises:
            ConfigError: It can't be used.
        """
        scheme = url.partition("://")[0]
        if scheme == "sentinel" or re.search(r";\w+://", url):
            reason = (
                "defer_redis_url can't name Sentinels or several servers: give the address of the primary, such as a"
                " DNS name or a proxy that follows it, or of a node of a Redis Cluster; or leave it unset"
            )
            raise ConfigError(reason)
        if scheme not in _SCHEMES:
            reason = f"defer_redis_url can't be a URL of the kind {scheme[:20]!r}: {_ADVICE}"
            raise ConfigError(reason)
        try:
            given: dict[str, Any] = dict(parse_url(_as_redis_py(url)))  # type: ignore[no-untyped-call,unused-ignore]
            kind = given.pop("connection_class", Connection)
            given = {"socket_connect_timeout": _CONNECT_TIMEOUT, "socket_timeout": _SOCKET_TIMEOUT} | given
            address = cls(kind, given | _OURS)
            address.connection()  # what its options are is checked here
            given.get("host", "").encode("idna")
        except (RedisError, TypeError, ValueError) as error:
            reason = f"defer_redis_url can't be used: {error}: {_ADVICE}"
            raise ConfigError(reason) from error
        return address

    def beside(self, host: str, port: int) -> Address:
        """Return the address of another node of the cluster that this one is in.

        Args:
            host: As the cluster announces it; empty for this one's.
            port: Its port.
        """
        kind = Connection if issubclass(self.kind, UnixDomainSocketConnection) else self.kind
        options = {name: value for name, value in self.options.items() if name != "path"}
        return Address(kind, options | {"host": host or self.options.get("host", "localhost"), "port": port})

    def connection(self) -> Any:
        """Make a connection that isn't open yet."""
        return self.kind(**self.options)

    def __str__(self) -> str:
        if "path" in self.options:
            return str(self.options["path"])
        return f"{self.options.get('host', 'localhost')}:{self.options.get('port', 6379)}"


def _as_redis_py(url: str) -> str:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme in ("redis", "rediss"):
        _check_place(parts)
        if "ssl_cert_reqs" in query:  # kombu also takes the names of the ssl module
            query["ssl_cert_reqs"] = query["ssl_cert_reqs"].removeprefix("CERT_").lower()
        return f"{parts.scheme}://{parts.netloc}{parts.path}?{urlencode(query)}"
    if not parts.path:
        reason = "it names no socket"
        raise ValueError(reason)
    if "virtual_host" in query:
        query["db"] = query.pop("virtual_host").strip("/") or "0"
    return f"unix://{parts.netloc}{parts.path}?{urlencode(query)}"


def _check_place(parts: SplitResult) -> None:
    """Check port and path; what was found isn't told, for it may be a part of a password."""
    hint = "characters of a password such as / # ? @ must be percent-encoded"
    try:
        _ = parts.port
    except ValueError:
        reason = f"its port must be a number ({hint})"
        raise ValueError(reason) from None
    if not re.fullmatch(r"/*\d*/*", parts.path):
        reason = f"its path must be the number of a database ({hint})"
        raise ValueError(reason)
