"""The settings as values, and the pauses between attempts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_defer.words.settings import PUBLISH_AGAIN, PUBLISH_GRACE, RetryPolicy, Settings

SECONDS = st.floats(min_value=0, max_value=1e9, allow_nan=False)
ATTEMPTS = st.integers(0, 10_000)
POLICIES = st.builds(RetryPolicy, backoff=SECONDS, backoff_max=SECONDS, jitter=st.booleans())


@given(policy=POLICIES, attempt=ATTEMPTS)
def test_a_pause_lies_between_nothing_and_its_limits(policy, attempt):
    """Neither the doubling nor the jitter leads below zero or past the longest pause, however many attempts."""
    pause = policy.pause(attempt)
    assert 0 <= pause <= policy.backoff_max
    assert pause <= policy.backoff * 2 ** min(attempt, 60)


@given(backoff=SECONDS, longest=SECONDS, attempt=st.integers(0, 59))
def test_without_jitter_pauses_double_up_to_the_longest(backoff, longest, attempt):
    """The first is the backoff, each next one twice as long, none longer than the limit."""
    policy = RetryPolicy(backoff=backoff, backoff_max=longest, jitter=False)
    assert policy.pause(0) == min(backoff, longest)
    assert policy.pause(attempt + 1) == min(longest, policy.pause(attempt) * 2)


@given(policy=POLICIES, attempt=st.integers(0, 100))
def test_jitter_never_makes_a_pause_longer(policy, attempt):
    """It is drawn between nothing and what it would be without."""
    plain = RetryPolicy(policy.retries, policy.backoff, policy.backoff_max, jitter=False)
    assert policy.pause(attempt) <= plain.pause(attempt)


def test_jitter_uses_the_whole_span():
    """Full jitter: over many draws pauses come near both ends, so that workers don't retry in step."""
    random.seed(7)
    policy = RetryPolicy(backoff=1.0, backoff_max=600.0)
    drawn = [policy.pause(3) for _ in range(500)]
    assert min(drawn) < 0.4
    assert max(drawn) > 7.6
    assert len(set(drawn)) > 490


def test_the_defaults_are_those_of_the_documentation():
    """Four retries after 1, 2, 4 and 8 seconds at most, never more than ten minutes."""
    policy = RetryPolicy()
    assert (policy.retries, policy.backoff, policy.backoff_max, policy.jitter) == (4, 1.0, 600.0, True)
    plain = RetryPolicy(jitter=False)
    assert [plain.pause(attempt) for attempt in (0, 1, 2, 3, 9, 10, 500)] == [1, 2, 4, 8, 512, 600, 600]


@pytest.mark.parametrize(("lease", "expected"), [(1.0, PUBLISH_AGAIN), (30.0, PUBLISH_AGAIN), (90.0, 90.0)])
def test_an_unclaimed_message_is_published_again_after_a_lease_or_30_seconds(lease, expected):
    """Whichever is longer: a worker that prefetched it has had time to claim it."""
    assert Settings(lease=lease).publish_again == expected


def test_the_publisher_has_its_time_before_the_sweep_takes_it_for_dead():
    """The grace after a commit is shorter than the pause before a message is published again."""
    assert 0 < PUBLISH_GRACE < PUBLISH_AGAIN
