"""The ``defer_…`` settings, read from wherever Celery reads its own, and checked."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_defer.errors import ConfigError
from celery_defer.store import Store
from celery_defer.store.cipher import Cipher
from celery_defer.words.durations import seconds
from celery_defer.words.settings import Limits, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("celery_defer.config")

DEFAULT_DATABASE = "sqlite:///celery-defer.db"
_KNOWN = frozenset(
    f"defer_{name}"
    for name in (
        "database_url", "namespace", "queue", "record_calls", "redis_url", "lease", "sweep_interval", "retention",
        "max_steps", "max_step_bytes", "max_run_bytes", "max_deferrals", "max_event_bytes", "event_log",
        "encryption_keys", "auto_migrate", "strict",
    )
)  # fmt: skip
_HERE = ("", "localhost", "::1", "[::1]")
_REDIS = ("redis://", "rediss://", "redis+socket://")
_LOCAL = ("memory", "filesystem")
# Transports whose URL needs no host and whose broker is never here.
_HOSTED = ("sqs", "azureservicebus", "azurestoragequeues", "gcpubsub")
_NAMESPACE = re.compile("[A-Za-z][A-Za-z0-9_]{0,39}")


class Config:
    """The settings of one application.

    Args:
        app: The Celery application.

    Raises:
        ConfigError: A setting isn't known or can't be used.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._check_names()
        self.auto_migrate = self._flag("auto_migrate", default=True)
        lease = self._duration("lease", 30.0, at_least=1.0)
        self.settings = Settings(
            lease=lease,
            sweep_interval=self._duration("sweep_interval", 1.0, at_least=0.01),
            retention=None if self._none("retention") else self._duration("retention", 30 * 86400.0, at_least=1.0),
            record_calls=self._flag("record_calls", default=False),
            strict=self._flag("strict", default=False),
            event_log=self._one_of("event_log", ("used", "all")),
            event_bytes=self._count("max_event_bytes", 512 * 1024),
            queue=self._text("queue"),
            redis_url=self._redis_url(),
            limits=Limits(
                steps=self._count("max_steps", 1000),
                step_bytes=self._count("max_step_bytes", 4 * 1024**2),
                run_bytes=self._count("max_run_bytes", 32 * 1024**2),
                deferrals=self._count("max_deferrals", 1000),
            ),
        )

    @property
    def names_database(self) -> bool:
        """Whether ``defer_database_url`` is set, so that the database isn't our own default."""
        return self._get("database_url") is not None

    def store(self) -> Store:
        """Return the store that the settings name; nothing is opened yet.

        Raises:
            ConfigError: It can't be used, or none is named and the broker is on another machine.
        """
        keys = self._keys()
        namespace = self._get("namespace", "celery_defer")
        if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
            reason = (
                "defer_namespace must be a name of letters, digits and underscores, at most 40 of them, and begin with"
                f" a letter, found {namespace!r}"
            )
            raise ConfigError(reason)
        store = Store(self._url(), namespace, Cipher(keys) if keys else None)
        logger.info("celery_defer keeps its runs in %s", store.url.render_as_string(hide_password=True))
        return store

    def _keys(self) -> list[str]:
        value = self._get("encryption_keys") or []
        keys = [value] if isinstance(value, str | bytes) else value
        if not isinstance(keys, list | tuple) or not all(isinstance(key, str | bytes) for key in keys):
            reason = f"defer_encryption_keys must be a list of Fernet keys, newest first, found {type(value).__name__}"
            raise ConfigError(reason)
        return [key.decode() if isinstance(key, bytes) else key for key in keys]

    def _url(self) -> str:
        url = self._get("database_url")
        if url is not None:
            if not isinstance(url, str):
                reason = f"defer_database_url must be text, found {type(url).__name__}: give a SQLAlchemy URL"
                raise ConfigError(reason)
            return str(url)
        host = _elsewhere(self._app.connection_for_write())
        if host is not None:
            reason = (
                f"the broker is on {host}, so other machines may work on the same runs, and the default"
                f" database ({DEFAULT_DATABASE}) is a file on this one: set defer_database_url"
            )
            raise ConfigError(reason)
        return f"sqlite:///{Path(DEFAULT_DATABASE.removeprefix('sqlite:///')).absolute()}"

    def _check_names(self) -> None:
        for key, name in _names(self._app):
            if name is None and key.lower() in _KNOWN:
                reason = f"Celery doesn't read the setting {key!r}: write {key.lower()!r}"
                raise ConfigError(reason)
            if name is not None and name.startswith("defer_") and name not in _KNOWN:
                reason = f"there is no setting {key!r}: check its spelling; known are {', '.join(sorted(_KNOWN))}"
                raise ConfigError(reason)

    def _text(self, name: str) -> str | None:
        value = self._get(name)
        if value is not None and (not isinstance(value, str) or not value):
            reason = f"defer_{name} must be text, found {value!r}"
            raise ConfigError(reason)
        return None if value is None else str(value)

    def _one_of(self, name: str, words: tuple[str, ...]) -> str:
        value = self._get(name, words[0])
        if value not in words:
            reason = f"defer_{name} must be {' or '.join(map(repr, words))}, found {value!r}"
            raise ConfigError(reason)
        return str(value)

    def _redis_url(self) -> str | None:
        if self._get("redis_url") == "":
            return None  # events are matched in SQL
        url = self._text("redis_url")
        if url is not None:
            return url
        found = (self._app.connection_for_write().as_uri(include_password=True), self._app.conf.result_backend)
        return next((each for each in found if isinstance(each, str) and each.startswith(_REDIS)), None)

    def _get(self, name: str, default: Any = None) -> Any:
        value = self._app.conf.get(f"defer_{name}")
        return default if value is None else value

    def _none(self, name: str) -> bool:
        key = f"defer_{name}"
        return any(name == key for _, name in _names(self._app)) and self._app.conf.get(key) is None

    def _flag(self, name: str, *, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            reason = f"defer_{name} must be True or False, found {value!r}"
            raise ConfigError(reason)
        return value

    def _count(self, name: str, default: int) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            reason = f"defer_{name} must be a whole number from 1, found {value!r}"
            raise ConfigError(reason)
        return value

    def _duration(self, name: str, default: float, *, at_least: float) -> float:
        value = self._get(name, default)
        try:
            found = seconds(value)
        except (ValueError, TypeError) as error:
            reason = f"defer_{name}: {error}"
            raise ConfigError(reason) from error
        if found < at_least:
            reason = f"defer_{name} must be at least {at_least:g} s, found {found:g} s"
            raise ConfigError(reason)
        return found


def _names(app: Any) -> Iterator[tuple[str, str | None]]:
    """Yield each key of the configuration, and the setting that Celery takes it for; None if it takes it for none."""
    app.conf.get("defer_lease")  # before the first read there is a placeholder, which doesn't know the namespace
    prefix = (app.conf.prefix or "").lower()
    for source in app.conf.maps:
        for key in map(str, source):
            if prefix and key.lower().startswith(prefix):
                yield key, key.lower().removeprefix(prefix)
            elif key.islower():
                yield key, key
            elif not prefix:
                yield key, None


def _elsewhere(broker: Any) -> str | None:
    """Return the first host of a broker that isn't this machine."""
    for each in [type(broker)(url) for url in broker.alt] or [broker]:
        if each.transport_cls in _HOSTED:
            return str(each.transport_cls)
        host = each.hostname or ""
        # kombu names a unix socket so
        if each.transport_cls not in _LOCAL and host not in _HERE and not host.startswith(("127.", "/", "socket:")):
            return str(host)
    return None
