"""``celery defer send``: one event from the command line, and files of them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu.exceptions import OperationalError
from pydantic import BaseModel

from celery_defer import Durable
from celery_defer.cli import defer
from celery_defer.engine.awaiting import written
from celery_defer.events import Event, EventType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 60.0
GOOD: dict[str, Any] = {"name": "order/created", "data": {"order_id": 1}}


class Purchase(BaseModel):
    """The data of a declared event."""

    order_id: int
    currency: str = "EUR"


class Shop:
    """An application that remembers what was sent; it can lose its broker."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.update(defer_database_url=f"sqlite:///{folder / 'runs.db'}")
        self.durable = Durable(self.app)
        self.batches: list[list[Event[Any]]] = []
        self.before: Callable[[list[Event[Any]]], None] = lambda _events: None
        send = self.durable.send_events

        def recorded(events: list[Event[Any]]) -> list[str]:
            self.before(events)
            self.batches.append(list(events))
            return send(events)

        patch.setattr(self.durable, "send_events", recorded)

    @property
    def sent(self) -> list[Event[Any]]:
        """All events, in order."""
        return [event for batch in self.batches for event in batch]

    def send(self, *arguments: str | Path, stdin: str | bytes | None = None) -> Result:
        """Call ``celery -A shop defer send …`` in this process."""
        context = CLIContext(app=self.app, no_color=True, workdir=None)
        return CliRunner().invoke(defer, ["send", *map(str, arguments)], input=stdin, obj=context)

    def document(self, *arguments: str | Path, stdin: str | bytes | None = None) -> tuple[int, Any]:
        """Call it with ``--json``; return its exit code and the document."""
        result = self.send(*arguments, "--json", stdin=stdin)
        return result.exit_code, json.loads(result.stdout)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shop]:
    """A shop for which one type of event is declared."""
    monkeypatch.setattr(EventType, "declared", {})
    EventType("purchase/completed", Purchase)
    shop = Shop(monkeypatch, tmp_path)
    yield shop
    shop.durable.close()
    shop.app.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test writes its file."""
    return tmp_path / "events.jsonl"


def lines(*events: Any) -> str:
    """Write events as a file has them."""
    return "".join(f"{event if isinstance(event, str) else json.dumps(event)}\n" for event in events)


def numbered(count: int) -> list[dict[str, Any]]:
    """Make events with ids that say where they stand."""
    return [{**GOOD, "id": str(number)} for number in range(1, count + 1)]


# -- one event


def test_an_event_is_sent(shop: Shop) -> None:
    """Name, data, id and time are those of the command line; its id is told."""
    result = shop.send("order/created", '{"order_id": 1}', "--id", "o-1", "--ts", "2026-03-01T09:00:00+02:00")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "event o-1 was sent\n", "")
    assert shop.sent == [Event("order/created", {"order_id": 1}, "o-1", datetime(2026, 3, 1, 7, tzinfo=UTC))]


def test_an_event_gets_an_id(shop: Shop) -> None:
    """Without ``--id`` the new id is in the document."""
    code, document = shop.document("order/created", "{}")
    assert (code, list(document)) == (0, ["id"])
    assert document["id"]
    assert shop.sent == [Event("order/created", {})]


def test_data_comes_from_stdin(shop: Shop) -> None:
    """``-`` reads the data until its end, over several lines."""
    assert shop.document("order/created", "-", "--id", "o-1", stdin='{"order_id":\n 1}\n') == (0, {"id": "o-1"})
    assert shop.sent[0].data == {"order_id": 1}


def test_data_of_a_declared_type_is_built_from_its_model(shop: Shop) -> None:
    """What the model adds is sent as well."""
    assert shop.send("purchase/completed", '{"order_id": "7"}').exit_code == 0
    assert written(shop.sent[0], 1000)["data"] == {"order_id": 7, "currency": "EUR"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["order/created", "[1]"], "must be an object with fields, found list"),
        (["order/created", '{"a": NaN}'], "Out of range float values"),
        (["x" * 201, "{}"], "1 to 200 characters, found 201"),
        (["order/created", "{}", "--id", ""], "1 to 200 characters, found 0"),
        (["purchase/completed", '{"order_id": "one"}'], "order_id: Input should be a valid integer"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_bad_event_is_one_line(shop: Shop, arguments: list[str], said: str, options: list[str]) -> None:
    """Exit code 1, the reason on stderr, and nothing is sent."""
    result = shop.send(*arguments, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert said in line
    assert not shop.sent


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give NAME and DATA, or --file"),
        (["order/created"], "give NAME and DATA, or --file"),
        (["order/created", "{}", "--from-line", "2"], "give NAME and DATA, or --file"),
        (["order/created", "{order_id: 1}"], "Invalid value for DATA: it isn't JSON"),
        (["order/created", "-"], "Invalid value for DATA: it isn't JSON"),
        (["order/created", "[" * 100_000], "Invalid value for DATA: it isn't JSON"),
        (["order/created", "{}", "--ts", "2026-03-01T09:00:00"], "Invalid value for '--ts'"),
        (["--file", "-", "--id", "o-1"], "leave NAME, DATA, --id and --ts out"),
        (["order/created", "--file", "-"], "leave NAME, DATA, --id and --ts out"),
        (["--file", "/nowhere/events.jsonl"], "No such file"),
        (["--file", "-", "--from-line", "0"], "--from-line"),
    ],
)
def test_wrong_usage_ends_with_2(shop: Shop, arguments: list[str], said: str) -> None:
    """It is told with the usage on stderr, and nothing is sent."""
    result = shop.send(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not shop.sent


def away(_events: object) -> None:
    """Have no broker."""
    reason = "[Errno 111] Connection refused"
    raise OperationalError(reason)


def test_an_event_without_a_broker_is_one_line(shop: Shop) -> None:
    """Exit code 1 and why."""
    shop.before = away
    result = shop.send("order/created", "{}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: the event was not sent: [Errno 111] Connection refused\n"


# -- files


def test_a_file_is_sent_in_batches(shop: Shop, path: Path) -> None:
    """Of 2,500 lines a thousand are sent at once, in their order; blank lines say nothing."""
    path.write_text(lines(*numbered(1500), "", "  ", *numbered(2500)[1500:]))
    result = shop.send("--file", path)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "events sent: 2500, lines skipped: 0\n", "")
    assert [len(batch) for batch in shop.batches] == [1000, 1000, 500]
    assert [event.id for event in shop.sent] == [str(number) for number in range(1, 2501)]


def test_a_file_has_all_that_an_event_has(shop: Shop, path: Path) -> None:
    """Id and time may be there or not, and a mark of the byte order does no harm."""
    timed = {**GOOD, "id": "o-1", "ts": "2026-03-01T09:00:00Z"}
    path.write_text(lines(timed, {"name": "purchase/completed", "data": {"order_id": 7}}), encoding="utf-8-sig")
    assert shop.document("--file", path) == (0, {"sent": 2, "skipped": 0, "next_line": None})
    assert shop.sent == [
        Event("order/created", {"order_id": 1}, "o-1", "2026-03-01T09:00:00Z"),
        Event("purchase/completed", {"order_id": 7}),
    ]


BAD = {
    "{": "it isn't JSON: Expecting property name",
    "[" * 100_000: "it isn't JSON",
    "7" * 5_000: "it isn't JSON",
    "[1]": 'it must be an object with "name" and "data", found list',
    '{"name": "a", "data": {}, "user": 1}': "it has an unknown field 'user'",
    '{"name": "a", "data": {}, "[red]": 1}': "it has an unknown field '[red]'",
    '{"data": {}}': "it has no field 'name'",
    '{"name": "a"}': "it has no field 'data'",
    '{"name": 7, "data": {}}': "an event's name must be text, found int",
    '{"name": ["a"], "data": {}}': "an event's name must be text, found list",
    '{"name": "", "data": {}}': "1 to 200 characters, found 0",
    '{"name": "a", "data": "b"}': "must be an object with fields, found str",
    '{"name": "a", "data": null}': "must be an object with fields, found NoneType",
    '{"name": "a", "data": {"b": "\\u0000"}}': "data.b has a NUL character",
    '{"name": "a", "data": {"b": 9223372036854775808}}': "data.b is an integer of more than 64 bits",
    '{"name": "a", "data": {}, "ts": "yesterday"}': "can't have the time 'yesterday'",
    '{"name": "a", "data": {}, "ts": 7}': "can't have the time 7",
    '{"name": "a", "data": {}, "id": 7}': "the id of event 'a' must be text",
    '{"name": "purchase/completed", "data": {"order": 1}}': "order_id: Field required",
    '{"name": "purchase/completed", "data": [1]}': "event 'purchase/completed' can't have this data",
    '{"name": "\\u001b[31m\\n", "data": []}': "event '\\x1b[31m\\n'",
}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_bad_lines_are_told_and_skipped(shop: Shop, path: Path, options: list[str]) -> None:
    """Each is told with its number and why on stderr; the rest is sent, and the exit code is 1."""
    path.write_text(lines(*(line for bad in BAD for line in (GOOD, bad)), GOOD))
    result = shop.send("--file", path, *options)
    assert result.exit_code == 1
    told = result.stderr.splitlines()
    for number, (line, said) in enumerate(zip(told, BAD.values(), strict=True), 1):
        assert line.startswith(f"line {2 * number} is skipped: ")
        assert said in line
    assert shop.sent == [Event(GOOD["name"], GOOD["data"])] * (len(BAD) + 1)
    if options:
        assert json.loads(result.stdout) == {"sent": len(BAD) + 1, "skipped": len(BAD), "next_line": None}
    else:
        assert result.stdout == f"events sent: {len(BAD) + 1}, lines skipped: {len(BAD)}\n"


def test_a_line_that_is_not_utf_8_is_bad(shop: Shop) -> None:
    """The file may come from stdin, and its last line may end without a line break."""
    good = json.dumps(GOOD).encode()
    result = shop.send("--file", "-", stdin=b"\n".join([good, b'{"name": "\xff", "data": {}}', good]))
    assert (result.exit_code, len(shop.sent)) == (1, 2)
    assert result.stderr.startswith("line 2 is skipped: it isn't UTF-8")


def test_a_file_is_not_read_to_its_end_before_it_is_sent(shop: Shop, path: Path) -> None:
    """The first batch is sent while the writer of a pipe holds the rest back."""
    os.mkfifo(path)
    begun = Flag()
    shop.before = lambda _events: begun.set()

    def write() -> bool:
        with path.open("w") as pipe:
            pipe.write(lines(*numbered(1001)))
            pipe.flush()
            in_time = begun.wait(PATIENCE)
            pipe.write(lines(GOOD))
        return in_time

    with ThreadPoolExecutor() as threads:
        writing = threads.submit(write)
        assert shop.document("--file", path) == (0, {"sent": 1002, "skipped": 0, "next_line": None})
        assert writing.result()


def lost(shop: Shop, error: BaseException) -> None:
    """Have the broker go away once a batch was sent."""

    def go_away(_events: object) -> None:
        if shop.batches:
            raise error

    shop.before = go_away


@pytest.mark.parametrize("error", [OperationalError("gone"), ConnectionError("gone"), KeyboardInterrupt("gone")])
def test_a_file_goes_on_where_the_broker_went_away(shop: Shop, path: Path, error: BaseException) -> None:
    """It is told how many were sent and from which line on to go on: then each event was sent once."""
    path.write_text(lines("{", *numbered(1000), "", "[]", *numbered(1500)[1000:]))
    lost(shop, error)
    result = shop.send("--file", path)
    assert (result.exit_code, result.stdout) == (1, "events sent: 1000, lines skipped: 2\n")
    assert result.stderr.splitlines()[-1] == "Error: stopped before line 1004: gone: go on with --from-line 1004"
    shop.before = lambda _events: None
    code, document = shop.document("--file", path, "--from-line", "1004")
    assert (code, document) == (0, {"sent": 500, "skipped": 0, "next_line": None})
    assert [event.id for event in shop.sent] == [str(number) for number in range(1, 1501)]


def test_the_document_says_where_to_go_on(shop: Shop, path: Path) -> None:
    """With ``--json`` the next line is there for a program."""
    path.write_text(lines(*numbered(1100)))
    lost(shop, OperationalError("gone"))
    assert shop.document("--file", path) == (1, {"sent": 1000, "skipped": 0, "next_line": 1001})


@pytest.mark.parametrize(("moment", "options", "line"), [("say", [], 1001), ("advance", ["--from-line", "7"], 7)])
def test_an_interruption_between_two_batches_goes_on_with_the_next_line(
    shop: Shop, path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, options: list[str], line: int
) -> None:
    """Whoever stops it while nothing waits to be sent, or on the way to the first line, sends nothing twice."""
    path.write_text(lines(*numbered(1000), "{", GOOD))

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"celery_defer.cli.progress.Progress.{moment}", interrupted)
    result = shop.send("--file", path, *options)
    assert result.stderr == f"Error: stopped before line {line}: KeyboardInterrupt: go on with --from-line {line}\n"


# -- the bar


def on_terminal(path: Path, folder: Path, *options: str) -> tuple[str, str]:
    """Run the real command with a terminal as its stderr; return what it wrote to stdout and to the terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TEST_CLI_DATABASE_URL": f"sqlite:///{folder / 'runs.db'}", "TERM": "xterm"}
    command = [sys.executable, "-m", "celery", "-A", "tests.edges.cli_app", "defer", "send", "--file", str(path)]
    with open(ours, "rb", buffering=0) as screen:  # noqa: PTH123 - a descriptor
        process = subprocess.Popen(
            [*command, *options], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True
        )
        os.close(theirs)
        seen = b""
        try:
            while part := screen.read(4096):
                seen += part
        except OSError:  # what a terminal says when nobody else has it any more
            pass
        written, _ = process.communicate(timeout=PATIENCE)
    return written, seen.decode()


def test_a_terminal_shows_a_bar(path: Path, tmp_path: Path) -> None:
    """It says how many bytes are done, bad lines are above it, and ``--json`` has none."""
    path.write_text(lines(*numbered(3000), "{"))
    written, seen = on_terminal(path, tmp_path)
    assert written == "events sent: 3000, lines skipped: 1\n"
    assert "100%" in seen
    assert "kB" in seen
    assert "line 3001 is skipped" in seen
    written, seen = on_terminal(path, tmp_path, "--json")
    assert json.loads(written) == {"sent": 3000, "skipped": 1, "next_line": None}
    (line,) = seen.splitlines()
    assert line.startswith("line 3001 is skipped: it isn't JSON")
