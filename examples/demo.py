"""Three hundred orders, two kill -9, nothing lost and nothing done twice: ``python -m examples.demo``.

Some orders wait for the event of their payment meanwhile; some of these nobody pays in time, some are called off. The
scores wait for what customers do next.

It needs nothing but Python: it starts its own Valkey server, a worker and beat as real processes, with SQLite in
a temporary folder, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.text import Text
from sqlalchemy import select

from celery_defer import ConfigError
from celery_defer.testing import EmbeddedServer
from examples import report
from examples.children import Child, ChildFailedError, Children
from examples.story import Story
from examples.till import Till

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_defer import Run

ORDERS = Path(__file__).with_name("orders.jsonl")
WIDTH = 80
# All in seconds.
LEASE = 3
PATIENCE = 120.0
# The accidents happen when this part of the lines is done; with fewer lines there would be no time for them.
FIRST, SECOND = 0.25, 0.6
FEWEST = 40
POOL = 2
# How many orders are on their way at the same time: customers don't come all at once either.
AT_ONCE = 30


class DemoError(Exception):
    """The demo can't go on; the text says why."""


class InterruptedDemoError(BaseException):
    """Ctrl-C or SIGTERM; not a KeyboardInterrupt, after which Python may end itself by SIGINT though it was caught."""


class Interrupt:
    """The handler of signals that end the demo.

    What it raises is lost if the signal comes while Python collects garbage, so it is remembered too.
    """

    came = False

    def __call__(self, *_: object) -> NoReturn:
        """Leave whatever is being done."""
        self.came = True
        raise InterruptedDemoError

    def check(self) -> None:
        """Leave it now, if that failed when the signal came."""
        if self.came:
            raise InterruptedDemoError


interrupt = Interrupt()


class Demo:
    """One run of the demo.

    Args:
        story: What is told.
        children: Starts processes.
        folder: Where files go.
        lines: The orders.
    """

    def __init__(self, story: Story, children: Children, folder: Path, lines: list[str]) -> None:
        self.story, self.children, self._folder = story, children, folder
        # the application reads where its broker and database are when it is imported
        self.shop = importlib.import_module("examples.shop")
        self.services = importlib.import_module("examples.services")
        self.durable = self.shop.durable
        self.till = Till(self.shop.process_order, lines)
        self.customers = importlib.import_module("examples.customers").Customers(self.till.sent)
        self.hit: dict[str, tuple[str, datetime]] = {}

    def start_beat(self) -> Child:
        """Start beat, which also looks for what is due; workers do so if there is none."""
        schedule = str(self._folder / "beat-schedule")
        beat = self.children.start("beat", "beat", "--schedule", schedule, "--pidfile", "", "--loglevel", "INFO")
        self.children.wait_ready(beat, "beat: Starting")
        self.story.tell(f"beat is ready (pid {beat.pid})")
        return beat

    def start_worker(self, name: str) -> Child:
        """Start a worker and wait until it is ready."""
        options = ("--concurrency", str(POOL), "--loglevel", "INFO", "--hostname", f"{name.replace(' ', '')}@%h")
        worker = self.children.start(name, "worker", *options, "--without-gossip", "--without-mingle")
        self.children.wait_ready(worker, " ready.")
        self.story.tell(f"{name} is ready (pid {worker.pid}, {POOL} pool processes)")
        return worker

    def wait_for(self, what: str, condition: Callable[[list[Run]], bool]) -> None:
        """Send orders and show progress until a condition holds.

        Raises:
            DemoError: It takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            runs = self._runs()
            counted = Counter(run.state for run in runs)
            orders, over = len(self.over(runs)), sum(run.finished_at is not None for run in runs)
            self.till.serve(orders, AT_ONCE)
            self.customers.act(runs)
            waiting = f", {counted['waiting']} waiting" if counted["waiting"] else ""
            line = f"line {self.till.read}/{self.till.total}"
            self.story.progress(f"{line}: {orders} orders done, {over} runs over{waiting}")
            if condition(runs):
                return
            interrupt.check()
            self.children.check()
            if time.monotonic() > deadline:
                message = f"after {PATIENCE:g} s still not true: {what}; the runs are {dict(counted)}"
                raise DemoError(message)
            time.sleep(0.15)

    def _runs(self) -> list[Run]:
        found: list[Run] = self.durable.list_runs(include_deferred=True, limit=100_000)
        return found

    def over(self, runs: list[Run]) -> list[Run]:
        """Return the orders' runs that are over."""
        return [run for run in runs if run.id in self.till.sent and run.finished_at is not None]

    def wait_for_part(self, part: float) -> None:
        """Wait until a part of the orders is done."""
        wanted = int(part * self.till.total)
        self.wait_for(f"{wanted} orders are done", lambda runs: len(self.over(runs)) >= wanted)

    def wait_for_all(self) -> None:
        """Wait until all runs are over, and Celery's results say so."""

        def all_over(runs: list[Run]) -> bool:
            if not self.till.closed or len(self.over(runs)) < len(self.till.sent):
                return False
            if any(run.finished_at is None for run in runs):
                return False
            return all(self.durable.app.AsyncResult(run.id).ready() for run in runs)

        self.wait_for("all runs are over and their results are there", all_over)

    def kill(self, worker: Child, *others: Child) -> None:
        """Kill a worker with its pool while it charges cards.

        Args:
            worker: The worker.
            others: What is killed with it.
        """
        with self._frozen(worker) as charging:
            for child in (worker, *others):
                self.children.kill(child)
        names = " and ".join(child.name for child in (worker, *others))
        self.hit |= {run_id: (f"{names} killed", datetime.now(UTC)) for _, run_id in charging}
        pids = " ".join(str(-child.pid) for child in (worker, *others))
        orders = " and ".join(order_id for order_id, _ in charging)
        self.story.tell(f"kill -9 {pids}: {names}, all processes, while charging {orders}", "bold red")

    def wake_customers(self) -> None:
        """Have customers pay, call off, buy and leave from now on, and tell what has waited for that."""
        runs = self._runs()
        orders, waiting = len(self.customers.waiting(runs)), sum(run.waiting_for == "event" for run in runs)
        self.customers.awake = True
        self.customers.act(runs)
        self.story.tell(f"meanwhile {orders} orders wait to be paid and {waiting - orders} scores for their customers")
        self.story.tell(f"{self.customers.told} events are sent to the shop, where no worker is now")

    @contextmanager
    def _frozen(self, worker: Child) -> Iterator[list[tuple[str, str]]]:
        """Stop a worker at a moment when it charges cards, so that there is time to look; then let it go on.

        Yields:
            Order and run of the charges that are going on.
        """
        deadline = time.monotonic() + PATIENCE / 4
        while True:
            interrupt.check()
            self.children.check()
            worker.signal_group(signal.SIGSTOP)
            try:
                charging = self._charging()
                if charging:
                    yield charging
                    return
            finally:
                worker.signal_group(signal.SIGCONT)
            if time.monotonic() > deadline:
                message = "no moment was found at which the worker charges cards with both pool processes busy"
                raise DemoError(message)
            self.till.serve(len(self.over(self._runs())), AT_ONCE)
            time.sleep(0.02)

    def _charging(self) -> list[tuple[str, str]]:
        # those that were hit before run as far as SQL knows, until their lease has run out: no process has them
        running = [
            run for run in self.durable.list_runs(state="running", include_deferred=True) if run.id not in self.hit
        ]
        if len(running) < POOL:
            # a message that is fetched and not claimed yet would come back after Redis's visibility timeout only
            return []
        calls = self.services.calls
        with self.services.engine().connect() as connection:
            called = set(connection.scalars(select(calls.c.key).where(calls.c.service == "payments")))
        found = []
        for run in running:
            recorded = {step.id for step in self.durable.get_run(run.id).steps}
            if f"{run.id}:charge-payment" in called and "charge-payment" not in recorded:
                found.append((run.id.removeprefix("order-"), run.id))
        return sorted(found)

    def tell_the_end(self, console: Console) -> bool:
        """Print the tables.

        Returns:
            Whether all checks hold.
        """
        audit = importlib.import_module("examples.audit")
        facts = audit.gather(self.durable, self.till.sent)
        checks = audit.audit(facts)
        answered, of_hit = audit.answered(self.durable), audit.answered(self.durable, self.hit)
        unstable = next((i for i, order in self.till.sent.items() if order["card"] == self.services.UNSTABLE), None)
        named = [(why, run_id) for why, run_id in {why: run_id for run_id, (why, _) in self.hit.items()}.items()]
        named += [("the provider failed once", unstable)] if unstable else []
        named += self.customers.samples()
        failed = sorted((run for run in facts.runs if run.state in ("failed", "cancelled")), key=lambda run: run.id)
        console.print()
        console.print(report.runs_table(facts.runs))
        console.print(report.samples(self.durable, named))
        console.print()
        console.print(report.refused_table(self.till.refused, failed))
        console.print(report.recoveries_table(self.durable, self.hit, LEASE))
        console.print(report.counts_table(facts, answered, len(self.hit), of_hit))
        console.print(report.checks_table(checks))
        return not any(check.wrong for check in checks)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: The command line's.

    Returns:
        0 if all checks hold, 1 if not or if something doesn't work, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--orders", type=Path, default=ORDERS, help="a file with an order as JSON on each line")
    lines = parser.parse_args(arguments).orders.read_text().splitlines()
    if len(lines) < FEWEST:
        parser.error(f"the file has {len(lines)} lines; the story needs {FEWEST}")
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    story = Story(console)
    try:
        return 0 if _demo(story, console, lines) else 1
    except InterruptedDemoError:
        story.end_progress()
        console.print("\nstopped: the processes are ended and the files are gone")
        return 130
    except (ChildFailedError, DemoError, ConfigError) as error:
        story.end_progress()
        console.print(Text(f"the demo failed: {error}", "red"))
        return 1


def _demo(story: Story, console: Console, lines: list[str]) -> bool:
    with (
        tempfile.TemporaryDirectory(prefix="celery_defer-demo-") as name,
        EmbeddedServer() as server,
        Children(Path(name)) as children,
    ):
        folder = Path(name)
        os.environ |= {
            "SHOP_BROKER": server.url(0),
            "SHOP_BACKEND": server.url(1),
            "SHOP_DATABASE": f"sqlite:///{folder / 'shop.db'}",
            "SHOP_LEASE": f"{LEASE}s",
            "SHOP_VISIT": "1h",
        }
        story.tell("a Valkey server runs on a socket, SQLite in a temporary folder")
        demo = Demo(story, children, folder, lines)
        beat = demo.start_beat()
        worker = demo.start_worker("worker 1")
        demo.wait_for_part(FIRST)
        demo.kill(worker)
        demo.wake_customers()
        story.tell(f"its runs go on elsewhere when their lease of {LEASE} s has run out")
        worker = demo.start_worker("worker 2")
        demo.wait_for_part(SECOND)
        demo.kill(worker, beat)
        story.tell("beat stays away: the next worker looks for what is due")
        demo.start_worker("worker 3")
        demo.wait_for_all()
        story.end_progress()
        sent, refused, events = len(demo.till.sent), len(demo.till.refused), demo.customers.told
        story.tell(f"all runs are over: {sent} orders, {refused} lines refused, {events} events sent")
        good = demo.tell_the_end(console)
        children.stop()
        verdict = "Nothing was lost, nothing was done twice." if good else "A check does not hold: see above."
        console.print(Text(f"{verdict} ({story.elapsed:.0f} s)", "bold green" if good else "bold red"))
        return good


if __name__ == "__main__":
    sys.exit(main())
