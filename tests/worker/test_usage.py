"""What a task does with its request, ``retry``, ``replace``, hooks and states, it does as a durable task too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chain, chord, group
from celery.canvas import StampingVisitor
from celery.exceptions import MaxRetriesExceededError, NotRegistered, TaskRevokedError

from celery_defer import ConfigError, NonRetriableError, PayloadError
from celery_defer.words import clock
from tests.worker.harness import PATIENCE, Site, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_defer.testing import EmbeddedServer
    from tests.worker.harness import Process

# Celery's Redis backend uses a command that the client calls old.
pytestmark = [pytest.mark.redis, pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")]


@pytest.fixture(scope="module")
def site(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A SQLite store, broker and results on Redis, every serializer accepted."""
    accepted = {"accept_content": ["json", "yaml", "pickle", "msgpack"], "task_send_sent_event": True}
    folder = tmp_path_factory.mktemp("site")
    with (
        pytest.MonkeyPatch.context() as patch,
        Site(folder, "sqlite", server.url(0), server.url(1), **accepted) as site,
    ):
        patch.setenv("C_FORCE_ROOT", "1")  # Celery's worker doesn't take pickle from root, who may run the tests
        yield site


@pytest.fixture(scope="module")
def worker(site: Site) -> Process:
    """A prefork worker with three children; it lives as long as the module."""
    return site.worker(concurrency=3, queues=f"{site.name},{site.name}-other").wait_ready()


def get(site: Site, result: Any) -> Any:
    """Return a call's value as its caller gets it."""
    return result.get(timeout=PATIENCE, interval=0.02)


def whats(site: Site, run_id: str, *of: str) -> list[str]:
    """Return what a run did, only of these kinds if any are given."""
    return [what for what in site.done(run_id) if not of or what in of]


# --- the request

_OPTIONS: dict[str, Any] = {
    "shadow": "another name",
    "headers": {"mine": {"trace": [1]}},
    "priority": 3,
    "time_limit": 50,
    "soft_time_limit": 40,
    "argsrepr": "(hidden)",
    "kwargsrepr": "{hidden}",
    "expires": 60,
    "countdown": 0.05,
    "compression": "gzip",
    "stamped_headers": ["who"],
    "who": "me",
    "group_id": "some-group",
    "root_id": "some-root",
    "parent_id": "some-parent",
    "reply_to": "somebody",
    "ignore_result": False,
    "retries": 0,
}
# What is the first delivery's alone.
_ONCE = {"expires", "eta"}


@pytest.mark.parametrize("death", [False, True], ids=["suspended", "died"])
@pytest.mark.parametrize("serializer", ["json", "yaml", "pickle"])
def test_a_body_sees_the_same_request_at_every_delivery(
    site: Site, worker: Process, serializer: str, death: bool
) -> None:
    """Field by field, but expires and eta, over a suspension and over a killed process."""
    signature = site.tasks.usage.shown.s("what", die=death)
    link, errback = site.tasks.pairs.told.s(tag="shown"), site.tasks.pairs.failed.s(tag="shown")
    options = {**_OPTIONS, "queue": f"{site.name}-other", "serializer": serializer}
    if serializer != "yaml":  # which can't write a signature
        options |= {"link": [link], "link_error": [errback]}
    result = signature.apply_async(**options)
    assert get(site, result) is None
    first, *others = [each["fields"] for each in site.effects(result.id, "request")]
    assert len(others) == 1 + death
    assert first["mine"] == {"trace": [1]}
    assert (first["stamps"], first["shadow"]) == ({"who": "me"}, "another name")
    assert first["delivery_info"]["priority"] == 3
    assert first["compression"] == "application/x-gzip"
    for other in others:
        assert {name for name in first if first[name] != other[name]} <= _ONCE
        assert [other[name] for name in _ONCE] == [None, None]


def test_a_call_without_options_has_the_same_request_at_every_delivery(site: Site, worker: Process) -> None:
    """Nothing is added to what was not given; ``send_task`` by name and a task id of one's own."""
    app = site.tasks.app
    result = app.send_task("shown", ("what",), task_id=f"own-{site.name}")
    assert get(site, result) is None
    first, second = [each["fields"] for each in site.effects(f"own-{site.name}", "request")]
    assert first == second


class Stamps(StampingVisitor):
    """Stamps every signature."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        """Return the stamps."""
        del headers
        return {"who": sig.task, "stamped_headers": ["who"]}


def test_stamps_of_a_canvas_are_there_at_every_delivery(site: Site, worker: Process) -> None:
    """Of a chord's members and of its body."""
    shown = site.tasks.usage.shown
    canvas = chord([shown.si("one"), shown.si("two")], shown.si("body"))
    canvas.stamp(Stamps())
    result = canvas.apply_async()
    assert get(site, result) is None
    for each in (*result.parent.results, result):
        seen = site.effects(each.id, "request")
        assert [effect["fields"]["stamps"] for effect in seen] == [{"who": "shown"}] * 2


# --- retries


def test_celery_s_retry_suspends_the_run_and_keeps_its_records(site: Site, worker: Process) -> None:
    """The step before it ran once, the counter counts, and no eta message is on the broker."""
    result = site.tasks.usage.retried.delay("value", {})
    assert get(site, result) == ["value", 2]
    assert [each["retries"] for each in site.effects(result.id, "attempt")] == [0, 1, 2]
    assert whats(site, result.id, "before") == ["before"]
    assert site.row(result.id)["epoch"] == 3


def test_celery_s_retry_takes_new_arguments_and_options(site: Site, worker: Process) -> None:
    """Other arguments, another queue and other limits hold for the deliveries that follow."""
    how: dict[str, Any] = {"kwargs": {"value": "new", "how": {"countdown": 0.01}}, "args": []}
    how |= {"queue": f"{site.name}-other", "time_limit": 33, "soft_time_limit": 22}
    result = site.tasks.usage.retried.delay(value="old", how=how)
    assert get(site, result) == ["new", 2]
    first, *others = site.effects(result.id, "attempt")
    assert (first["value"], first["queue"], first["limits"]) == ("old", site.name, [None, None])
    for other in others:
        assert (other["value"], other["queue"], other["limits"]) == ("new", f"{site.name}-other", [33, 22])


def test_celery_s_retry_takes_an_eta(site: Site, worker: Process) -> None:
    """The next delivery isn't before it."""
    eta = clock.utcnow().timestamp() + 1.0
    text = clock.utcnow().fromtimestamp(eta, tz=clock.utcnow().tzinfo).isoformat()
    result = site.tasks.usage.retried.delay("value", {"eta": text, "countdown": None})
    assert get(site, result) == ["value", 2]
    assert site.effects(result.id, "attempt")[1]["at"] >= eta - 0.005


@pytest.mark.parametrize(("own", "error"), [(False, MaxRetriesExceededError), (True, KeyError)])
def test_the_end_of_celery_s_retries_fails_the_run(
    site: Site, worker: Process, own: bool, error: type[Exception]
) -> None:
    """After ``max_retries`` the given error or Celery's, and the task's own budget doesn't begin then."""
    result = site.tasks.usage.retried_to_the_end.delay(own=own)
    with pytest.raises(error):
        get(site, result)
    assert whats(site, result.id) == ["attempt"] * 3


def test_a_retry_that_isn_t_thrown_takes_effect_when_the_body_returns(site: Site, worker: Process) -> None:
    """The lines after it run, and the value is that of the last delivery."""
    result = site.tasks.usage.not_thrown.delay()
    assert get(site, result) == 1
    assert whats(site, result.id) == ["last line"] * 2


def test_autoretry_for_and_its_exceptions(site: Site, worker: Process) -> None:
    """Celery's counter, steps run once; what it is not for fails at once; used up, the error itself."""
    automatic = site.tasks.usage.automatic
    good, used_up, never = automatic.delay("value", 1), automatic.delay("value", 9), automatic.delay("lookup", 9)
    assert get(site, good) == 1
    assert whats(site, good.id) == ["before", "attempt", "attempt"]
    first, second = site.effects(good.id, "attempt")
    assert second["at"] - first["at"] >= 0.99  # retry_backoff without jitter
    with pytest.raises(ValueError, match="value"):
        get(site, used_up)
    assert whats(site, used_up.id, "attempt") == ["attempt"] * 2
    with pytest.raises(LookupError):
        get(site, never)
    assert whats(site, never.id, "attempt") == ["attempt"]


# --- replace

_REPLACED = {"plain": 1, "durable": 2, "chain": 0, "group": [1, 2], "chord": [1, 2], "itself": 2}


@pytest.mark.parametrize("by", _REPLACED)
def test_a_replaced_run_s_caller_gets_the_replacement_s_value(site: Site, worker: Process, by: str) -> None:
    """A plain or durable task, a chain, a group, a chord, the task itself; links are called once, with that value."""
    signature = site.tasks.usage.replaced.s(by)
    told = site.tasks.pairs.told.s(tag=f"replaced {by}")
    result = signature.apply_async(link=[told])
    assert get(site, result) == _REPLACED[by]
    until(lambda: [each for each in site.effects(what="told") if each["tag"] == f"replaced {by}"], "the link is called")
    (seen,) = [each for each in site.effects(what="told") if each["tag"] == f"replaced {by}"]
    assert seen["value"] == _REPLACED[by]
    run = site.run(result.id)
    assert (run.state, run.result) == ("completed", None)
    assert [(each.id, each.state) for each in run.deferrals] == [("celery_defer/replacement", "dispatched")]
    assert whats(site, result.id, "replaced") == ["replaced"]


@pytest.mark.parametrize("by", ["durable", "group", "chain"])
def test_a_replaced_member_of_a_chain_and_of_a_chord(site: Site, worker: Process, by: str) -> None:
    """What comes after it gets the replacement's value, once."""
    usage = site.tasks.usage
    after = chain(usage.replaced.si(by), usage.value.s())
    assert get(site, after.apply_async()) == _REPLACED[by]
    result = chord([usage.replaced.si(by), usage.value.si("other")], usage.value.s()).apply_async()
    assert get(site, result) == [_REPLACED[by], "other"]
    assert whats(site, result.id) == ["value"]


def test_a_replacement_that_fails_fails_the_replaced(site: Site, worker: Process) -> None:
    """The caller gets its error, and the error callback is called once."""
    usage, failed = site.tasks.usage, site.tasks.pairs.failed.s(tag="replaced failing")
    result = usage.replaced.s("failing").apply_async(link_error=[failed])
    with pytest.raises(ValueError, match="the replacement fails"):
        get(site, result)
    until(lambda: site.effects(what="failed"), "the error callback is called")
    in_chord = chord([usage.replaced.si("failing"), usage.value.si(1)], usage.value.s()).apply_async()
    with pytest.raises(Exception, match="the replacement fails"):
        get(site, in_chord)
    assert len([each for each in site.effects(what="failed") if each["tag"] == "replaced failing"]) == 1


def test_a_chord_s_member_isn_t_replaced_with_a_chord_that_ends_durable(site: Site, worker: Process) -> None:
    """Celery would hang on it: refused with what to do instead, and the chord fails."""
    usage = site.tasks.usage
    result = chord([usage.replaced.si("chord"), usage.value.si(1)], usage.value.s()).apply_async()
    with pytest.raises(NonRetriableError, match="let the replacement end in a plain task"):
        get(site, result)


def test_add_to_chord_is_for_steps(site: Site, worker: Process) -> None:
    """In a step it adds once; outside of one it is refused, since each replay would add again."""
    usage = site.tasks.usage
    result = chord([usage.adds.si(stepped=True), usage.value.si("other")], usage.value.s()).apply_async()
    assert sorted(get(site, result)) == ["added", "adds", "other"]
    refused = chord([usage.adds.si(stepped=False)], usage.value.s()).apply_async()
    with pytest.raises(Exception, match="outside of a step"):
        get(site, refused)


# --- hooks and bases


def test_hooks_are_called_as_celery_calls_them(site: Site, worker: Process) -> None:
    """before_start and ``__call__`` once per execution, on_retry once per retry, on_success and after_return once."""
    result = site.tasks.usage.hooked.delay("fine")
    assert get(site, result) == "fine"
    until(lambda: "after_return" in site.done(result.id), "the last hook is called")
    assert whats(site, result.id) == [
        *["before_start", "call"] * 2,
        "on_retry",
        *["before_start", "call"],
        "on_success",
        "after_return",
    ]
    assert len(site.effects(what="apply_async")) == 1
    for each in site.effects(result.id, "before_start"):
        assert (each["ours"], each["value"]) == (True, [["fine"], {}])
    assert site.effects(result.id, "on_retry")[0]["value"] == ["KeyError", ["fine"], "Retry"]
    assert site.effects(result.id, "on_success")[0]["value"] == "fine"
    assert site.effects(result.id, "after_return")[0]["value"] == "SUCCESS"


def test_hooks_of_a_failure(site: Site, worker: Process) -> None:
    """A body that fails is retried by the task's own budget: on_retry for that too, on_failure once at the end."""
    result = site.tasks.usage.hooked.delay("fails")
    with pytest.raises(ValueError, match="fails"):
        get(site, result)
    until(lambda: "after_return" in site.done(result.id), "the last hook is called")
    kinds = [each["value"][0] for each in site.effects(result.id, "on_retry")]
    assert kinds == ["KeyError", "ValueError"]
    assert whats(site, result.id, "on_failure", "on_success", "after_return") == ["on_failure", "after_return"]


def test_a_before_start_that_raises_fails_the_run(site: Site, worker: Process) -> None:
    """As an exception of the body does, after its retries: there is a row, and it says so."""
    result = site.tasks.usage.hooked.delay("bad start")
    with pytest.raises(RuntimeError, match="bad start"):
        get(site, result)
    assert site.run(result.id).state == "failed"
    assert whats(site, result.id, "before_start") == ["before_start"] * 2


def test_an_on_retry_that_raises_stops_nothing(site: Site, worker: Process) -> None:
    """The run is suspended already: it goes on."""
    assert get(site, site.tasks.usage.hooked.delay("bad hook")) == "bad hook"


def test_an_abortable_task_learns_of_abort_over_suspensions(site: Site, worker: Process) -> None:
    """Neither a suspension nor a resume writes over the state that says so."""
    usage = site.tasks.usage
    result = usage.abortable.delay()
    site.state(result.id, "waiting")
    usage.abortable.AsyncResult(result.id).abort()
    assert get(site, result) == "aborted"


def test_class_based_tasks_and_bases_that_keep_second_calls_out(site: Site, worker: Process) -> None:
    """``base_for`` with a ``run`` method; a base whose ``apply_async`` gives another result and unlocks at the end."""
    usage = site.tasks.usage
    classy, first = usage.classy.delay(1), usage.singleton.delay(1)
    assert usage.singleton.delay(1).id == "the-first"
    assert get(site, classy) == [1, classy.id, "Classy"]
    assert get(site, first) == 1
    site.reached(first.id, "unlocked")


def test_without_typing_a_call_is_checked_by_the_worker_alone(site: Site, worker: Process) -> None:
    """``typing=False``: the call goes out, the run fails."""
    with pytest.raises(PayloadError, match="too many"):
        site.tasks.usage.value.delay(1, 2)
    result = site.tasks.usage.singleton.delay(1, 2)
    with pytest.raises(TypeError):
        get(site, result)


def test_acks_late_off_and_a_rate_limit(site: Site, worker: Process) -> None:
    """Runs that exceed the rate are late, not lost, and each step runs once."""
    results = [site.tasks.usage.early.delay(number) for number in range(4)]
    assert [get(site, result) for result in results] == [0, 1, 2, 3]
    for result in results:
        assert whats(site, result.id) == ["end"]


def test_a_task_that_rejects_on_failure_ends_once(site: Site, worker: Process) -> None:
    """``acks_on_failure_or_timeout`` off and ``reject_on_worker_lost`` on don't run a failed run again."""
    result = site.tasks.usage.rejecting.delay()
    with pytest.raises(ValueError, match="expected"):
        get(site, result)
    until(lambda: site.row(result.id)["announced_at"], "the end is announced")
    assert whats(site, result.id) == ["ran", "ran"]
    assert "raised expected" in worker.text()


# --- states and results


def test_update_state_shows_until_the_next_change(site: Site, worker: Process) -> None:
    """In the body and in a step, with its meta."""
    result = site.tasks.usage.progress.delay()
    site.reached(result.id, "in the body")
    assert (result.state, result.info) == ("PROGRESS", {"done": 1})
    site.open(result.id, "in the body")
    site.reached(result.id, "after the step")
    assert (result.state, result.info) == ("FURTHER", {"done": 2})
    site.open(result.id, "after the step")
    assert get(site, result) == "done"
    assert (result.state, result.info) == ("SUCCESS", "done")


def test_what_a_body_calls_are_its_children(site: Site, worker: Process) -> None:
    """``AsyncResult.children`` of a run has what its steps called, before and after a suspension."""
    result = site.tasks.usage.calls.delay()
    assert get(site, result) == "calls"
    called = [step.result for step in site.run(result.id).steps if step.kind == "run"]
    assert [child.id for child in result.children] == called
    assert [value for _, value in result.collect()] == ["calls", 1, 2]


def test_an_ignored_result_is_not_stored(site: Site, worker: Process) -> None:
    """By the task's option and by the call's; the row has it."""
    silent = site.tasks.usage.silent.delay("fine")
    failing = site.tasks.usage.silent.delay("fails")
    for_once = site.tasks.usage.value.apply_async(("kept",), ignore_result=True)
    all_the_same = site.tasks.usage.silent.apply_async(("fine",), ignore_result=False)
    assert get(site, all_the_same) == "end"
    for run_id, state in ((silent.id, "completed"), (failing.id, "failed"), (for_once.id, "completed")):
        site.state(run_id, state)
        until(lambda run_id=run_id: site.row(run_id)["announced_at"], "the end is announced")  # type: ignore[misc]
        assert site.tasks.app.AsyncResult(run_id).state == "PENDING"
    assert site.run(for_once.id).result == "kept"


def test_errors_are_stored_even_if_results_are_ignored(site: Site, worker: Process) -> None:
    """Where the task says so: a failure and a cancellation."""
    app, silent = site.tasks.app, site.tasks.usage.silent_but_errors
    failing, cancelled = silent.delay(), silent.delay(600)
    until(lambda: app.AsyncResult(failing.id).state == "FAILURE", "the failure is stored")
    site.state(cancelled.id, "waiting")
    site.durable.cancel(cancelled.id)
    until(lambda: app.AsyncResult(cancelled.id).state == "REVOKED", "the cancellation is stored")


def test_forget_while_waiting_and_after(site: Site, worker: Process) -> None:
    """A forgotten result is PENDING; the run goes on and stores its end."""
    app = site.tasks.app
    result = site.tasks.usage.sleeper.delay(1.0)
    site.state(result.id, "waiting")
    app.AsyncResult(result.id).forget()
    assert app.AsyncResult(result.id).state == "PENDING"
    again = app.AsyncResult(result.id)
    assert get(site, again) == "end"
    again.forget()
    assert app.AsyncResult(result.id).state == "PENDING"
    assert site.run(result.id).result == "end"


def test_results_as_plain_data_and_back(site: Site, worker: Process) -> None:
    """``as_tuple``, ``result_from_tuple``, a saved group and its native join, of runs that suspend."""
    from celery.result import GroupResult, result_from_tuple  # noqa: PLC0415

    app, value = site.tasks.app, site.tasks.usage.value
    linked = chain(value.si(1), value.s()).apply_async()
    thawed = result_from_tuple(linked.as_tuple(), app=app)
    assert (get(site, thawed), get(site, thawed.parent)) == (1, 1)
    members = group(value.s(number) for number in range(3)).apply_async()
    members.save()
    restored = GroupResult.restore(members.id, app=app)
    assert restored.join_native(timeout=PATIENCE) == [0, 1, 2]
    assert restored.completed_count() == 3


# --- refused


@pytest.mark.parametrize("name", ["map", "starmap", "chunks"])
def test_a_durable_task_isn_t_mapped(site: Site, worker: Process, name: str) -> None:
    """At the call and, made by Celery's own constructors, in the worker: the error names what to use instead."""
    import celery  # noqa: PLC0415

    value = site.tasks.usage.value
    more: tuple[Any, ...] = (2,) if name == "chunks" else ()
    with pytest.raises(ConfigError, match=r"group\(value.s\(item\)"):
        getattr(value, name)([(1,), (2,)], *more)
    make = {"map": celery.xmap, "starmap": celery.xstarmap, "chunks": celery.chunks}[name]
    result = make(value.s(), [(1,), (2,)], *more, app=site.tasks.app).apply_async()
    with pytest.raises(Exception, match="outside of any run"):
        get(site, result)


def test_an_errback_of_the_old_kind_is_refused(site: Site, worker: Process) -> None:
    """Celery would call it inside of the failed task: the worker's log says what to do."""
    pairs = site.tasks.pairs
    result = pairs.plain_add.s(1, 1, tag="old", how="fail").on_error(pairs.errback_old.s()).apply_async()
    with pytest.raises(ValueError, match="fail"):
        get(site, result)
    until(lambda: "can't be an error callback that takes (request, exc, traceback)" in worker.text(), "it is said")
    assert site.effects(what="errback old") == []


# --- cancelled


def chorded(site: Site, tag: str) -> Any:
    """Return the results of a chord with a sleeping member, and of the one that sleeps."""
    usage, pairs = site.tasks.usage, site.tasks.pairs
    body = usage.value.s().on_error(pairs.failed.s(tag=tag))
    result = chord([usage.sleeper.si(600), usage.value.si(1)], body).apply_async()
    return result, result.parent.results[0]


@pytest.mark.parametrize("how", ["cancel", "revoke"])
def test_a_waiting_member_that_is_cancelled_fails_its_chord_at_once(site: Site, worker: Process, how: str) -> None:
    """The member is REVOKED, the body FAILURE, the body's error callback is called once."""
    result, member = chorded(site, how)
    site.state(member.id, "waiting")
    site.durable.cancel(member.id) if how == "cancel" else member.revoke()
    with pytest.raises(TaskRevokedError):
        get(site, result)
    assert site.state(member.id, "cancelled")
    assert member.state == "REVOKED"
    until(lambda: result.state == "FAILURE", "the body has failed")
    until(lambda: [each for each in site.effects(what="failed") if each["tag"] == how], "the error callback is called")
    until(lambda: site.row(member.id)["announced_at"], "the end is announced")
    assert len([each for each in site.effects(what="failed") if each["tag"] == how]) == 1
    assert site.done(result.id) == []


def test_a_chain_stops_where_a_run_is_revoked(site: Site, worker: Process) -> None:
    """What comes after it never starts, and waiting for the end raises what happened before."""
    usage = site.tasks.usage
    result = chain(usage.sleeper.si(600), usage.value.s()).apply_async()
    site.state(result.parent.id, "waiting")
    result.parent.revoke()
    with pytest.raises(TaskRevokedError):
        get(site, result)
    assert site.done(result.id) == []


def test_a_revoke_after_the_end_changes_nothing(site: Site, worker: Process) -> None:
    """The value stays."""
    result = site.tasks.usage.value.delay("kept")
    assert get(site, result) == "kept"
    result.revoke()
    site.tasks.app.control.ping(timeout=2.0)  # the worker has had the command
    assert (result.state, site.run(result.id).state) == ("SUCCESS", "completed")


def test_a_member_that_expires_fails_its_chord(site: Site, worker: Process) -> None:
    """As a plain one: REVOKED, never run."""
    usage = site.tasks.usage
    late = usage.value.si(1).set(countdown=0.5, expires=0.1)
    result = chord([late, usage.value.si(2)], usage.value.s()).apply_async()
    with pytest.raises(TaskRevokedError):
        get(site, result)
    assert site.done(result.parent.results[0].id) == []


def test_a_revoked_call_never_runs(site: Site, worker: Process) -> None:
    """Before any worker has seen it: the worker that gets it discards it, its chord fails."""
    usage = site.tasks.usage
    waits = usage.value.si(1).set(countdown=1.0)
    result = chord([waits, usage.value.si(2)], usage.value.s()).apply_async()
    result.parent.results[0].revoke()
    with pytest.raises(TaskRevokedError):
        get(site, result)
    assert site.done(result.parent.results[0].id) == []
    assert site.row(result.parent.results[0].id) is None


@pytest.mark.parametrize("terminate", [False, True])
def test_a_running_run_is_revoked(site: Site, worker: Process, terminate: bool) -> None:
    """Before its next step, or with its process if that is terminated: REVOKED, and not rescued."""
    result = site.tasks.gated.delay()
    site.reached(result.id, "held")
    result.revoke(terminate=terminate, signal="SIGKILL")
    if not terminate:
        until(lambda: site.row(result.id)["cancel_requested"], "the row says so")
        site.open(result.id)
    with pytest.raises(TaskRevokedError):
        get(site, result)
    assert site.state(result.id, "cancelled")
    until(lambda: site.row(result.id)["announced_at"], "the end is announced")
    assert site.done(result.id) == ["first", "held"]


def test_a_signature_of_another_application(site: Site, worker: Process) -> None:
    """By name alone, as members and body of a chord."""
    app = site.tasks.app
    by_name = [app.signature("value", args=(number,), immutable=True) for number in range(2)]
    assert get(site, chord(by_name, app.signature("value")).apply_async()) == [0, 1]
    with pytest.raises(NotRegistered):
        _ = app.signature("nobody").type
