"""The application that a command works on, found and made ready, and errors as one line."""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from celery_defer.errors import ConfigError, DurableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_defer.cli.screen import Screen
    from celery_defer.durable import Durable

P = ParamSpec("P")
R = TypeVar("R")


class Application:
    """What ``celery -A`` named.

    Args:
        app: The Celery application.
        no_color: Whether the user wants none.

    Attributes:
        no_color: Whether the user wants none.
    """

    def __init__(self, app: Any, *, no_color: bool) -> None:
        self._app, self.no_color = app, no_color
        self._durable: Durable | None = None

    def durable(self) -> Durable:
        """Return the application's `Durable`, with all its tasks imported.

        Raises:
            ConfigError: It has none.
        """
        self._app.loader.import_default_modules()
        self._app.finalize(auto=True)
        found: Durable | None = getattr(self._app, "durable", None)
        if found is None:
            reason = (
                f"application {self._app.main!r} has no Durable: create Durable(app) in the module that `celery -A`"
                " names or in one that it imports"
            )
            raise ConfigError(reason)
        self._durable = found
        return found

    def prepared(self) -> Durable:
        """Return it with its tables brought up to date, or checked if ``defer_auto_migrate`` is off.

        Raises:
            ConfigError: There is none, or a setting can't be used.
            SchemaError: The tables can't be used, or the database can't be reached.
        """
        durable = self.durable()
        durable.prepare()
        return durable

    def screen(self) -> Screen:
        """Return where tables are drawn."""
        from celery_defer.cli.screen import Screen  # noqa: PLC0415 - rich is slow to import, and JSON needs none

        return Screen(width=shutil.get_terminal_size((120, 24)).columns, no_color=self.no_color)

    def close(self) -> None:
        """Write what is noted and close connections."""
        if self._durable is not None:
            self._durable.close()


json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document instead of tables.")
pass_application = click.make_pass_decorator(Application)


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the package's errors into one line on stderr and exit code 1."""

    @functools.wraps(command)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except DurableError as error:
            raise click.ClickException(" ".join(str(error).split())) from error

    return called
