"""The table of what is supported names tests that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.matrix.test_cells import CELLS

TESTS = Path(__file__).parent.parent
SUPPORT = TESTS.parent / "docs" / "support.md"
_BROKERS = {
    "redis": "Redis",
    "classic": "RabbitMQ, classic queue",
    "quorum": "RabbitMQ, quorum queue",
    "filesystem": "filesystem",
}
_BACKENDS = {"redis": "Redis", "rpc": "RPC", "db+postgresql": "PostgreSQL", "db+sqlite": "SQLite", "none": "none"}
_CELL = re.compile(r"^\| (prefork|threads|gevent|solo) \|([^|]+)\|([^|]+)\|$", re.MULTILINE)
_TEST = re.compile(r"`(\w+/\w+\.py)(?:::(\w+))?`")


@cache
def defined(file: str) -> set[str]:
    """The functions of a test file."""
    return {each.name for each in ast.parse((TESTS / file).read_text()).body if isinstance(each, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), sorted(set(_TEST.findall(SUPPORT.read_text()))))
def test_a_test_that_is_named_is_there(file: str, name: str) -> None:
    """A test that was renamed or is gone shows nothing."""
    assert (TESTS / file).exists()
    assert not name or name in defined(file)


def test_the_matrix_is_the_one_that_is_tested() -> None:
    """Pools, brokers and result backends of the table, which are killed and which confirm, are those of the cells."""
    shown = {tuple(map(str.strip, row)) for row in _CELL.findall(SUPPORT.read_text())}
    assert shown == {
        (
            cell.pool,
            _BROKERS[cell.broker] + (", publisher confirms" if cell.conf else ""),
            _BACKENDS[cell.backend] + ("; **killed**" if cell.rescued else ""),
        )
        for cell in CELLS
    }
