"""The public surface as type checkers see it: mypy strict and pyright, with what a user may and may not write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SNIPPETS = Path(__file__).parent / "snippets"
ACCEPTED, REFUSED = SNIPPETS / "accepted.py", SNIPPETS / "refused.py"
MYPY = "[mypy]\nstrict = true\n[mypy-celery.*]\nignore_missing_imports = true\n"

Errors = dict[str, dict[int, set[str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without the project's settings: users have their own."""
    return tmp_path_factory.mktemp("typing")


@pytest.fixture(scope="module")
def mypy(folder: Path) -> Errors:
    """What mypy reports in strict mode."""
    (folder / "mypy.ini").write_text(MYPY)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--output", "json"]
    found: Errors = defaultdict(lambda: defaultdict(set))
    for line in _run([*command, str(ACCEPTED), str(REFUSED)], folder).splitlines():
        report = json.loads(line)
        if report["severity"] == "error":
            found[Path(report["file"]).name][report["line"]].add(report["code"])
    return found


@pytest.fixture(scope="module")
def pyright(folder: Path) -> Errors:
    """What pyright reports as it comes."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(folder), "--outputjson"]
    (folder / "pyrightconfig.json").write_text("{}")
    found: Errors = defaultdict(lambda: defaultdict(set))
    for report in json.loads(_run([*command, str(ACCEPTED), str(REFUSED)], folder))["generalDiagnostics"]:
        if report["severity"] == "error":
            found[Path(report["file"]).name][report["range"]["start"]["line"] + 1].add(report["rule"])
    return found


def _run(command: list[str], folder: Path) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return ended.stdout


def _assert_refused(found: dict[int, set[str]], checker: int) -> None:
    marks = {}
    for number, line in enumerate(REFUSED.read_text().splitlines(), start=1):
        if mark := re.search(r"# E: ([\w-]+) \| (\w+)$", line):
            marks[number] = mark[checker]
    assert len(marks) > 40, "the marks can't be read"
    assert set(found) == set(marks)
    assert not {line: (code, found[line]) for line, code in marks.items() if code not in found[line]}


@pytest.mark.timeout(600)
def test_mypy_accepts_what_a_user_may_write(mypy: Errors) -> None:
    """Tasks, signatures, steps and deferrals have their exact types under ``mypy --strict``."""
    assert not mypy[ACCEPTED.name]


@pytest.mark.timeout(600)
def test_mypy_refuses_what_a_user_may_not_write(mypy: Errors) -> None:
    """Each marked line, and no other, is an error of that code under ``mypy --strict``."""
    _assert_refused(mypy[REFUSED.name], checker=1)


@pytest.mark.timeout(600)
def test_pyright_accepts_what_a_user_may_write(pyright: Errors) -> None:
    """Tasks, signatures, steps and deferrals have their exact types for pyright."""
    assert not pyright[ACCEPTED.name]


@pytest.mark.timeout(600)
def test_pyright_refuses_what_a_user_may_not_write(pyright: Errors) -> None:
    """Each marked line, and no other, is an error of that rule for pyright."""
    _assert_refused(pyright[REFUSED.name], checker=2)
