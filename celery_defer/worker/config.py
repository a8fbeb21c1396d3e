"""The ``defer_…`` settings, read from wherever Celery reads its own, and checked."""

from __future__ import annotations

import logging
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
        "max_steps", "max_step_bytes", "max_run_bytes", "max_deferrals", "event_log", "encryption_keys",
        "auto_migrate", "strict",
    )
)  # fmt: skip
_HERE = ("", "localhost", "::1", "[::1]")
_LONGEST_NAMESPACE = 40


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
            limits=Limits(
                steps=self._count("max_steps", 1000),
                step_bytes=self._count("max_step_bytes", 4 * 1024**2),
                run_bytes=self._count("max_run_bytes", 32 * 1024**2),
                deferrals=self._count("max_deferrals", 1000),
            ),
        )

    def store(self) -> Store:
        """Return the store that the settings name; nothing is opened yet.

        Raises:
            ConfigError: It can't be used, or none is named and the broker is on another machine.
        """
        keys = self._get("encryption_keys") or ()
        keys = [keys] if isinstance(keys, str | bytes) else list(keys)
        namespace = self._get("namespace", "celery_defer")
        if not isinstance(namespace, str) or not namespace.isidentifier() or len(namespace) > _LONGEST_NAMESPACE:
            reason = (
                f"defer_namespace must be a name of letters, digits and underscores, at most {_LONGEST_NAMESPACE},"
                f" found {namespace!r}"
            )
            raise ConfigError(reason)
        store = Store(self._url(), namespace, Cipher(keys) if keys else None)
        logger.info("celery_defer keeps its runs in %s", store.url.render_as_string(hide_password=True))
        return store

    def _url(self) -> str:
        url = self._get("database_url")
        if url is not None:
            if not isinstance(url, str):
                reason = f"defer_database_url must be text, found {type(url).__name__}: give a SQLAlchemy URL"
                raise ConfigError(reason)
            return str(url)
        broker = self._app.connection_for_write()
        if broker.transport_cls not in ("memory", "filesystem") and not _is_here(broker.hostname or ""):
            reason = (
                f"the broker is on {broker.hostname}, so other machines may work on the same runs, and the default"
                f" database ({DEFAULT_DATABASE}) is a file on this one: set defer_database_url"
            )
            raise ConfigError(reason)
        return f"sqlite:///{Path(DEFAULT_DATABASE.removeprefix('sqlite:///')).absolute()}"

    def _check_names(self) -> None:
        for name in _names(self._app.conf):
            if name.startswith("defer_") and name not in _KNOWN:
                reason = f"there is no setting {name!r}: check its spelling; known are {', '.join(sorted(_KNOWN))}"
                raise ConfigError(reason)

    def _get(self, name: str, default: Any = None) -> Any:
        value = self._app.conf.get(f"defer_{name}")
        return default if value is None else value

    def _none(self, name: str) -> bool:
        key = f"defer_{name}"
        return key in _names(self._app.conf) and self._app.conf.get(key) is None

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


def _names(conf: Any) -> Iterator[str]:
    prefix = (getattr(conf, "prefix", None) or "").lower()
    for source in conf.maps:
        for key in source:
            name = str(key).lower()
            yield name.removeprefix(prefix) if prefix else name


def _is_here(host: str) -> bool:
    return host in _HERE or host.startswith(("127.", "/"))
