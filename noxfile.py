"""The supported versions of Python, Celery and SQLAlchemy, each in an environment of its own.

``make versions`` runs all, ``.ci/run`` the lowest: what a machine lacks the Python for is skipped and named.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

# pyenv keeps its Pythons off PATH until they are asked for.
os.environ["PATH"] = os.pathsep.join(
    [os.environ["PATH"], *map(str, sorted(Path.home().glob(".pyenv/versions/3.1[123]*/bin")))]
)

PYTHONS = ("3.11", "3.12", "3.13")
# The newest of each Celery, with the kombu and redis that it brings; Flower and SQLAlchemy take turns with it.
FAMILIES = {
    "5.5": ("celery==5.5.*", "flower==2.0.*", "sqlalchemy==2.0.*"),
    "5.6": ("celery==5.6.*", "flower==2.1.*", "sqlalchemy==2.0.*"),
    "5.7": ("celery==5.7.*", "flower==2.2.*", "sqlalchemy==2.1.*"),
}
# What each environment tells of itself, so that a log shows what was tried.
_SHOWN = ("celery", "kombu", "redis", "sqlalchemy", "alembic", "pydantic", "flower", "psycopg")


def _install(session: nox.Session, *requirements: str, resolution: str = "highest") -> None:
    session.install("--editable", ".[test]", *requirements, env={"UV_RESOLUTION": resolution})
    versions = f"*(f'{{name}} {{version(name)}}' for name in {_SHOWN})"
    show = f"from importlib.metadata import version; print({versions}, sep=', ')"
    session.run("python", "-c", show, log=False)


def _check(session: nox.Session, *floors: str) -> None:
    """Run the product in short on real workers, and lower floors on SQLite."""
    pytest = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "3", "--dist", "loadscope"]
    session.run(*pytest, "-m", "versions", *session.posargs)
    session.run(*pytest, *floors, "-k", "not postgresql and not mariadb", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The lowest version of everything that pyproject.toml names."""
    _install(session, resolution="lowest-direct")
    _check(session, "tests/unit", "tests/store")  # the gate has little time


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest of everything, on each Python."""
    _install(session)
    _check(session, "tests/unit", "tests/store", "tests/engine")


@nox.session(python=PYTHONS[0])
@nox.parametrize("celery", list(FAMILIES), ids=list(FAMILIES))
def celery(session: nox.Session, celery: str) -> None:
    """Each Celery with its family."""
    _install(session, *FAMILIES[celery])
    _check(session, "tests/unit", "tests/store", "tests/engine")
