"""The demo: it ends well, it ends badly when something is wrong, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from celery_defer import Run
from celery_defer.testing import EmbeddedServer
from celery_defer.words import clock
from examples.audit import Facts, audit
from examples.customers import outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
_DEADLINE = 150.0

pytestmark = pytest.mark.timeout(210)


@pytest.fixture
def temporary(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo takes for the machine's folder for temporary files; skips where there is no server to embed."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the examples, to be broken."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@contextmanager
def demo(folder: Path, temporary: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the demo of a checkout; it is over at the end of the block."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=10)


def output(process: subprocess.Popen[str]) -> str:
    """Wait for the demo's end and return what it printed."""
    return process.communicate(timeout=_DEADLINE)[0]


def few_orders(folder: Path) -> Path:
    """Write the first lines of the orders into a file of their own."""
    lines = (ROOT / "examples/orders.jsonl").read_text().splitlines(keepends=True)
    path = folder / "few.jsonl"
    path.write_text("".join(lines[:80]))
    return path


def replaced(path: Path, before: str, after: str) -> None:
    """Change one place of a file."""
    text = path.read_text()
    assert text.count(before) == 1, f"{path.name} no longer has {before!r} once"
    path.write_text(text.replace(before, after))


def left_behind(temporary: Path) -> list[str]:
    """Return files in the demo's temporary folder, and processes that were started with it."""
    found = [path.name for path in temporary.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environ = (process / "environ").read_bytes()  # of which the server keeps nothing; its command has the path
        except OSError:  # another user's, or gone
            continue
        if re.search(rf"{temporary}[\0/]".encode(), command + environ):
            found.append(command.replace(b"\0", b" ").decode())
    return found


def still_there(temporary: Path) -> list[str]:
    """Return what is left when the system has had the time to forget killed processes."""
    deadline = clock.monotonic() + 10
    while (left := left_behind(temporary)) and clock.monotonic() < deadline:
        clock.sleep(0.1)
    return left


@pytest.mark.slow
@pytest.mark.crash
def test_the_demo_survives_its_kills_and_says_so(temporary):
    """`python -m examples.demo` ends with 0 after two kill -9, says what was refused, and leaves nothing behind."""
    with demo(ROOT, temporary) as process:
        text = output(process)
    assert process.returncode == 0, text
    assert text.count("kill -9 -") == 2
    assert "Nothing was lost, nothing was done twice." in text
    assert text.count(" yes   ") == 10
    for line in ("process_order                284        3           3", "track_analytics              281"):
        assert line in text
    assert re.search(r"meanwhile [1-9]\d* orders wait to be paid", text)
    for why in ("paid by transfer", "nobody paid in time", "called off by its customer"):
        assert f"({why})" in text
    assert "run order-A-1011 was cancelled by event" in text
    for line in ("13   B-2001   card: Field required", "72   ?        not JSON", "141   A-1121   no second run"):
        assert line in text
    assert "the card ending in 0002 was declined" in text
    assert "charge-payment: completed in" in text
    assert "2 attempts" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "\x1b" not in text
    assert still_there(temporary) == []


@pytest.mark.slow
@pytest.mark.crash
def test_a_charge_made_twice_fails_the_demo(checkout, temporary):
    """With a payment provider that ignores its key and a body that charges twice, the demo ends with 1 and says so."""
    services = checkout / "examples/services.py"
    once = '    _once("payments", idempotency_key, f"{order_id} {total:.2f}")\n'
    replaced(services, once, once + once.replace("idempotency_key", "f'{idempotency_key}:again'"))
    with demo(checkout, temporary, "--orders", str(few_orders(checkout))) as process:
        text = output(process)
    assert process.returncode == 1, text
    assert " no    every order was charged exactly once" in text
    assert "too many: order-A-" in text


@pytest.mark.slow
@pytest.mark.crash
def test_waits_that_take_any_event_and_forget_their_timeout_fail_the_demo(checkout, temporary):
    """With scores that take anybody's event and a body that takes a timeout for a payment, the demo ends with 1."""
    shop = checkout / "examples/shop.py"
    replaced(shop, 'match={"user_id": user_id}, ', "")
    replaced(shop, "if payment is None:", "if payment == 0:")
    with demo(checkout, temporary, "--orders", str(few_orders(checkout))) as process:
        text = output(process)
    assert process.returncode == 1, text
    for claim in (
        "every score says what its customer did",
        "every order that nobody paid in time",
        "every transfer that came was booked",
    ):
        assert f" no    {claim}" in text


@pytest.mark.slow
def test_a_worker_that_does_not_start_is_shown_with_its_log(checkout, temporary):
    """A worker that dies at its start ends the demo with 1 and the end of the worker's log, and nothing is left."""
    with (checkout / "examples/shop.py").open("a") as shop:
        shop.write('\nimport sys\n\nif "worker" in sys.argv:\n    raise RuntimeError("no worker today")\n')
    with demo(checkout, temporary) as process:
        text = output(process)
    assert process.returncode == 1
    assert "worker 1 (pid " in text
    assert "RuntimeError: no worker today" in text
    assert still_there(temporary) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_demo_leaves_nothing_behind(number, temporary):
    """Ctrl-C, or SIGTERM, in the middle of the demo ends all processes and removes all files."""
    with demo(ROOT, temporary) as process:
        assert process.stdout is not None
        assert any("worker 1 is ready" in line for line in process.stdout)
        assert len(left_behind(temporary)) >= 8  # two folders, the demo, its server, beat, a worker with its pool
        process.send_signal(number)
        text = output(process)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert still_there(temporary) == []


def run_of(
    run_id: str,
    task: str,
    state: str = "completed",
    parent: str | None = None,
    name: str | None = None,
    trigger: str = "call",
) -> Run:
    """A run as the audit sees it."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Run(
        id=run_id, task=task, state=state, waiting_for=None, args=[], kwargs={}, result=None, error=None,
        trigger="deferral" if parent else trigger, event=None, parent_id=parent, root_id=parent or run_id,
        deferral_id=name, created_at=at, started_at=at, finished_at=at, wake_at=None,
    )  # fmt: skip


@pytest.fixture
def facts() -> Facts:
    """What is found after one order with a card that went well, one nobody paid, and one that was called off."""
    deferred = run_of("t1", "t", parent="o1", name="track"), run_of("s1", "s", parent="o1", name="score")
    off, released = run_of("o3", "order", "cancelled"), run_of("r3", "r", trigger="event")
    runs = (run_of("o1", "order"), run_of("o2", "order"), off, released, *deferred)
    return Facts(
        sent={
            "o1": {"order_id": "A-1", "user_id": "u-1", "card": "4242424242424242"},
            "o2": {"order_id": "A-2", "user_id": "u-2", "card": None, "then": "forgets"},
            "o3": {"order_id": "A-3", "user_id": "u-3", "card": None, "then": "cancels"},
        },
        runs=runs,
        results={run.id: "REVOKED" if run is off else "SUCCESS" for run in runs},
        created=["A-1", "A-2", "A-3"],
        effects=[
            ("payments", "o1:charge", ""),
            ("analytics", "t1:send", ""),
            ("scores", "s1:record", f"o1 sku-1 {outcome_of('u-1')}"),
            ("unpaid", "o2:close", "A-2"),
            ("released", "r3:release", "A-3"),
        ],
        calls=[],
    )


def test_the_audit_finds_nothing_where_all_is_well(facts):
    """All ten checks hold for three orders with their charge, their other runs and their effects."""
    assert [check.wrong for check in audit(facts)] == [""] * 10


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, lambda facts: {"runs": [replace(facts.runs[0], state="failed"), *facts.runs[1:]]}),
        (0, lambda facts: {"runs": [*facts.runs, run_of("o4", "order")]}),
        (1, lambda _: {"created": ["A-1", "A-1", "A-2", "A-3"]}),
        (1, lambda _: {"created": []}),
        (2, lambda facts: {"effects": [("payments", "o1:charge#2", ""), *facts.effects]}),
        (2, lambda facts: {"effects": facts.effects[1:]}),
        (2, lambda facts: {"sent": {**facts.sent, "o1": {**facts.sent["o1"], "card": "4000000000000002"}}}),
        (3, lambda facts: {"effects": [("transfers", "o2:book", "A-2"), *facts.effects]}),
        (3, lambda facts: {"sent": {**facts.sent, "o2": {**facts.sent["o2"], "then": "pays"}}}),
        (4, lambda facts: {"effects": [*facts.effects[:3], facts.effects[4]]}),
        (4, lambda facts: {"effects": [("unpaid", "o3:close", "A-3"), *facts.effects]}),
        (5, lambda facts: {"effects": facts.effects[:4]}),
        (5, lambda facts: {"effects": [("released", "r4:release", "A-3"), *facts.effects]}),
        (6, lambda facts: {"runs": facts.runs[:5]}),
        (6, lambda facts: {"runs": [*facts.runs, run_of("t2", "t", parent="o1", name="track")]}),
        (7, lambda facts: {"effects": facts.effects[:2]}),
        (7, lambda facts: {"effects": [*facts.effects, ("scores", "s1:record#2", "o1 sku-1 visit/ended")]}),
        (8, lambda facts: {"effects": [*facts.effects[:2], ("scores", "s1:record", "o1 sku-1 unknown")]}),
        (8, lambda facts: {"effects": [*facts.effects, ("scores", "s1:record#2", "o1 sku-1 visit/ended")]}),
        (9, lambda facts: {"results": {**facts.results, "t1": "STARTED"}}),
    ],
)
def test_the_audit_finds_what_was_lost_or_done_twice(facts, number, change):
    """Each of the checks fails when its fact is missing, doubled or of another kind."""
    assert audit(replace(facts, **change(facts)))[number].wrong
