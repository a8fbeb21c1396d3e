"""What README and docs print runs, and what they point to is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from celery_defer.errors import ConfigError
from celery_defer.testing import EmbeddedServer
from celery_defer.words import clock
from celery_defer.worker import config
from tests.services import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# a block that begins with its file's name is a module; the others are scripts that use it
_MODULE = re.compile(r"# (\w+)\.py\n")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
_DEADLINE = 60.0


def blocks(text: str) -> tuple[dict[str, str], list[str]]:
    """Return a page's modules by name, and its scripts."""
    modules, scripts = {}, []
    for code in _BLOCK.findall(text):
        named = _MODULE.match(code)
        if named:
            modules[named.group(1)] = code
        else:
            scripts.append(code)
    return modules, scripts


def run_page(text: str, folder: Path) -> None:
    """Write a page's modules into a folder, start a worker on them, and run its scripts."""
    modules, scripts = blocks(text)
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    try:
        server = EmbeddedServer()
    except ConfigError as error:
        missing(str(error))
    with server:
        # Celery's own variables: they come before what the page's code says
        env = {
            **os.environ,
            "CELERY_BROKER_URL": server.url(0),
            "CELERY_RESULT_BACKEND": server.url(1),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        }
        with _worker(list(modules), folder, env) as log:
            for code in scripts or [f"import {', '.join(modules)}\n"]:
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    cwd=folder, env=env, timeout=_DEADLINE, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}\n{log.read_text()[-4000:]}"


@contextmanager
def _worker(modules: list[str], folder: Path, env: dict[str, str]) -> Iterator[Path]:
    log = folder / "worker.log"
    app, *others = modules
    include = ["--include", ",".join(others)] if others else []
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        app,
        "worker",
        "--loglevel",
        "INFO",
        "--concurrency",
        "1",
        *include,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = clock.monotonic() + _DEADLINE
        while " ready." not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert clock.monotonic() < deadline, log.read_text()
            clock.sleep(0.05)
        yield log
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if _BLOCK.search(page.read_text())], ids=lambda page: page.name
)
def test_every_python_block_runs_as_printed(page, tmp_path):
    """With a worker on a page's modules, the page's other blocks run to their end, assertions included."""
    run_page(page.read_text(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["assert task.delay().get(timeout=30) == 2", "import no_such_module"])
def test_a_block_that_does_not_run_is_noticed(wrong, tmp_path):
    """A page whose script fails, by what the worker returned or by itself, fails the check."""
    app = "app = Celery('page', broker='redis://localhost/0')\n"
    module = f"# page.py\nfrom celery import Celery\n{app}@app.task\ndef task():\n    return 1\n"
    page = f"```python\n{module}```\n\n```python\nfrom page import task\n{wrong}\n```\n"
    with pytest.raises(AssertionError, match=re.escape(wrong)):
        run_page(page, tmp_path)


def test_readme_has_an_application_and_a_call():
    """README's blocks are found: at least one module and one script that uses it."""
    modules, scripts = blocks((ROOT / "README.md").read_text())
    assert "shop" in modules
    assert any("process_order.delay" in code for code in scripts)


def test_every_setting_is_documented_and_every_documented_one_exists():
    """docs/settings.md names exactly the settings that the configuration knows."""
    rows = [line.split("|")[1] for line in (ROOT / "docs/settings.md").read_text().splitlines() if line.startswith("|")]
    documented = {name for row in rows for name in re.findall(r"`(defer_\w+)`", row)}
    assert documented == config._KNOWN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    """Every relative link of a page names a file of the checkout."""
    links = _LINK.findall(page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
