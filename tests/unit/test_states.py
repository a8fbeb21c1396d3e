"""The state tables, and all that is made from them."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import CheckConstraint

from celery_defer.store.tables import Tables
from celery_defer.words.states import (
    DEFERRAL,
    RUN,
    STARTED_BY,
    TERMINAL,
    WAIT,
    DeferralState,
    RunState,
    StepState,
    Trigger,
    WaitingFor,
    WaitStatus,
    When,
    drawing,
    sources,
    target,
)

MACHINES = {"run": RUN, "deferral": DEFERRAL, "wait": WAIT}
WORDS = {"run": RunState, "deferral": DeferralState, "wait": WaitStatus}
PAIRS = [
    pytest.param(machine, state, move, id=f"{name}-{state}-{move}")
    for name, machine in MACHINES.items()
    for state in machine
    for move in sorted({move for moves in machine.values() for move in moves})
]
DOCS = Path(__file__).parents[2] / "docs" / "states.md"


@pytest.mark.parametrize(("machine", "state", "move"), PAIRS)
def test_sources_and_target_say_what_the_table_says(machine, state, move):
    """For every state and every move: it is a source of the move if, and only if, the table has the pair."""
    allowed = move in machine[state]
    assert (state in sources(machine, move)) == allowed
    if allowed:
        assert target(machine, move) == machine[state][move]


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_move_that_the_table_does_not_have_is_an_error(machine):
    """A typing error in a statement is found when the statement is built."""
    with pytest.raises(KeyError):
        sources(machine, "pause")
    with pytest.raises(ValueError, match="unpack"):
        target(machine, "pause")


def test_a_move_that_leads_to_two_states_is_an_error():
    """A statement sets one state: a table that doesn't say which can't be used."""
    with pytest.raises(ValueError, match="unpack"):
        target({"a": {"go": "b"}, "b": {"go": "a"}}, "go")


@pytest.mark.parametrize("name", MACHINES)
def test_a_table_is_closed(name):
    """Its states are exactly the words for them, and every move leads to one of them."""
    machine = MACHINES[name]
    assert list(machine) == list(WORDS[name])
    assert {after for moves in machine.values() for after in moves.values()} <= set(machine)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@given(data=st.data())
def test_every_walk_can_reach_an_end(machine, data):
    """From the first state any sequence of moves leaves a way to a state without moves: nothing is stuck."""
    state = next(iter(machine))
    for _ in range(data.draw(st.integers(0, 12))):
        if not machine[state]:
            break
        state = machine[state][data.draw(st.sampled_from(sorted(machine[state])))]
    seen, left = set(), {str(state)}
    while left:
        here = left.pop()
        seen.add(here)
        left |= set(machine[here].values()) - seen
    assert any(not machine[each] for each in seen)


def test_the_ends_of_a_run_have_no_moves():
    """A terminal run's outcome never changes (I10)."""
    assert set(TERMINAL) == {"completed", "failed", "cancelled"}
    assert all(not RUN[state] for state in TERMINAL)


def test_every_run_that_is_not_over_can_be_cancelled():
    """There is no state in which a user has to wait to get rid of a run."""
    assert set(sources(RUN, "cancel")) == set(RUN) - set(TERMINAL)


def test_every_end_starts_its_deferrals():
    """Each end says which deferrals it starts, and each word but `now` is started by an end."""
    assert set(STARTED_BY) == set(TERMINAL)
    assert {on for started in STARTED_BY.values() for on in started} == set(When) - {When.NOW}


@pytest.mark.parametrize(
    ("table", "constraint", "words"),
    [
        ("run", "run_state", RUN),
        ("run", "run_waiting_for", WaitingFor),
        ("run", "run_trigger", Trigger),
        ("step", "step_state", StepState),
        ("wait", "wait_kind", WaitingFor),
        ("deferral", "deferral_state", DEFERRAL),
        ("deferral", "deferral_start_on", When),
        ("events.event_wait", "event_wait_status", WAIT),
    ],
)
def test_check_constraints_list_the_words_of_the_tables(table, constraint, words):
    """The database accepts exactly the words that the code has."""
    (found,) = _checks(table, constraint)
    assert re.findall(r"'(\w+)'", found) == [str(word) for word in words]


def test_the_end_of_a_run_is_constrained_by_the_table():
    """A run has an end time if, and only if, it is in a state without moves."""
    (found,) = _checks("run", "run_finished")
    assert re.findall(r"'(\w+)'", found) == list(TERMINAL)


def _checks(table, constraint):
    checks = (each for each in attrgetter(table)(Tables("x")).constraints if isinstance(each, CheckConstraint))
    found = [each.sqltext for each in checks if each.name == f"x_{constraint}"]
    return [str(each.compile(compile_kwargs={"literal_binds": True})) for each in found]


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_drawing_has_every_arrow_of_its_table(machine):
    """Each state and move once, the first state's beginning, and an end for each state without moves."""
    arrows = re.findall(r"^    (\S+) --> (\S+?)(?:: (\w+))?$", drawing(machine), flags=re.MULTILINE)
    moves = {(state, after, move) for state, moves in machine.items() for move, after in moves.items()}
    ends = {(state, "[*]", "") for state, moves in machine.items() if not moves}
    assert len(arrows) == len(set(arrows))
    assert set(arrows) == {("[*]", next(iter(machine)), "")} | moves | ends


def test_the_docs_show_the_tables():
    """The drawings in docs/states.md are those of the tables, in their order."""
    drawings = re.findall(r"```mermaid\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert drawings == [drawing(machine) for machine in MACHINES.values()]


def test_the_docs_explain_every_state_and_every_move():
    """Each word of the tables is written as code in docs/states.md outside of the drawings."""
    prose = re.sub(r"```.*?```", "", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = {str(word) for machine in MACHINES.values() for state, moves in machine.items() for word in (state, *moves)}
    assert {word for word in words if f"`{word}`" not in prose} == set()
