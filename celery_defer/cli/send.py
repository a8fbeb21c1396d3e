"""``celery -A shop defer send``: one event, or a file of them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from kombu.exceptions import OperationalError

from celery_defer.cli.application import Application, json_option, one_line_errors, pass_application
from celery_defer.cli.lines import checked, lines_of, value_of
from celery_defer.cli.plain import document
from celery_defer.cli.progress import Progress
from celery_defer.cli.times import instant
from celery_defer.errors import DurableError, PayloadError
from celery_defer.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from celery_defer.cli.lines import Line
    from celery_defer.durable import Durable

# One publish each; what is sent twice when a file is gone on with after a failure.
_BATCH = 1000


@click.command()
@click.argument("name", required=False)
@click.argument("data", required=False)
@click.option("--id", "event_id", metavar="ID", help="Of the event: one id is taken once within 24 hours.")
@click.option("--ts", callback=instant, metavar="TIME", help="When it happened; a future one delays what it starts.")
@click.option("--file", type=click.File("rb"), help="Send the events of this file, - for stdin.")
@click.option("--from-line", type=click.IntRange(min=1), metavar="N", help="Go on with this line of the file.")
@json_option
@pass_application
@one_line_errors
def send(  # noqa: PLR0913 - each option is one
    application: Application,
    /,
    *,
    as_json: bool,
    name: str | None,
    data: str | None,
    event_id: str | None,
    ts: datetime | None,
    file: BinaryIO | None,
    from_line: int | None,
) -> None:
    """Send the event NAME with DATA, a JSON object (- reads it from stdin), or those of a file.

    A file has a JSON object on each line: {"name": "order/created", "data": {"order_id": 1}}, with "id" and "ts" if
    it likes. Bad lines are told on stderr and skipped, the rest is sent; the exit code is 1 then. If the broker goes
    away, the last line says with which line to go on: the 1,000 events from there may have been sent already, so give
    them ids.

    JSON: {"id"} of one event; {"sent", "skipped", "next_line"} of a file: the numbers of events sent and of lines
    skipped, and the line to go on with, null if all was done.
    """
    if file is None:
        if name is None or data is None or from_line is not None:
            reason = "give NAME and DATA, or --file (only then --from-line)"
            raise click.UsageError(reason)
        _send_one(application, name, data, event_id, ts, as_json=as_json)
        return
    if name is not None or event_id is not None or ts is not None:
        reason = "--file has names, data, ids and times itself: leave NAME, DATA, --id and --ts out"
        raise click.UsageError(reason)
    durable, first = application.durable(), from_line or 1
    with Progress(_size(file), hidden=as_json, no_color=application.no_color) as progress:
        sending = _Sending(durable, progress, done=first - 1)
        sending.send(lines_of(file, first, durable.settings.event_bytes))
    sending.tell(as_json=as_json)


def _send_one(
    application: Application, name: str, data: str, event_id: str | None, ts: datetime | None, *, as_json: bool
) -> None:
    durable = application.durable()
    try:
        plain = value_of(click.open_file("-", "rb").read() if data == "-" else data)
    except PayloadError as error:
        raise click.BadParameter(str(error), param_hint="DATA") from error
    try:
        sent = durable.send_event(checked(Event(name, plain, event_id, ts), durable.settings.event_bytes))
    except (OperationalError, OSError) as error:
        reason = f"the event was not sent: {error}"
        raise click.ClickException(reason) from error
    click.echo(document({"id": sent}) if as_json else f"event {sent} was sent")


@dataclass
class _Sending:
    """What became of a file so far.

    Attributes:
        durable: What sends.
        progress: Where it is shown.
        done: The number of the last line that was looked at.
        batch: Lines that were looked at and not sent yet.
        sent: How many were sent.
        skipped: How many are bad.
        stopped: Why not all was sent; None if it was.
    """

    durable: Durable
    progress: Progress
    done: int = 0
    batch: list[tuple[int, Event[Any]]] = field(default_factory=list)
    sent: int = 0
    skipped: int = 0
    stopped: BaseException | None = None

    def send(self, lines: Iterable[Line]) -> None:
        """Send events in batches, up to one that can't be sent."""
        try:
            for line in lines:
                if line.reason:
                    self.skipped += 1
                    self.progress.say(f"line {line.number} is skipped: {line.reason}")
                if line.event is not None:
                    self.batch.append((line.number, line.event))
                self.done = max(self.done, line.number)
                if len(self.batch) == _BATCH:
                    self._send()
                self.progress.advance(line.size)
            self._send()
        except (OperationalError, OSError, DurableError, KeyboardInterrupt) as error:
            self.stopped = error

    def _send(self) -> None:
        if self.batch:
            self.durable.send_events([event for _, event in self.batch])
            self.sent += len(self.batch)
            self.batch.clear()

    def tell(self, *, as_json: bool) -> None:
        """Say what was done; end with 1 if that isn't all."""
        rest = self.batch[0][0] if self.batch else self.done + 1
        if as_json:
            left = None if self.stopped is None else rest
            click.echo(document({"sent": self.sent, "skipped": self.skipped, "next_line": left}))
        else:
            click.echo(f"events sent: {self.sent}, lines skipped: {self.skipped}")
        if self.stopped is not None:
            why = " ".join(str(self.stopped).split()) or type(self.stopped).__name__
            reason = f"stopped before line {rest}: {why}: go on with --from-line {rest}"
            raise click.ClickException(reason) from self.stopped
        if self.skipped:
            click.get_current_context().exit(1)


def _size(file: BinaryIO) -> int | None:
    """Return how long a file is; None if it has no end that anybody knows."""
    try:
        found = os.fstat(file.fileno())
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
