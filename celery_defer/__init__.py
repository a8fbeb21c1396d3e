"""Durable steps, ``defer()`` and more for Celery tasks."""

from celery_defer.durable import Durable
from celery_defer.engine.async_steps import astep
from celery_defer.engine.current import ReplayFilter, current_run
from celery_defer.engine.steps import step
from celery_defer.errors import (
    ConfigError,
    CrashLoopError,
    DurableError,
    InvalidArgumentError,
    InvalidExpressionError,
    InvokeTimeoutError,
    LimitExceededError,
    NestedStepError,
    NonRetriableError,
    NotInRunError,
    PayloadError,
    RetryAfterError,
    RunCancelledError,
    SchemaError,
    StepError,
    StepTimeoutError,
    UnknownRunError,
)
from celery_defer.events import Event, EventType, RunEnded, run_cancelled, run_completed, run_failed
from celery_defer.triggers import Cron, On
from celery_defer.words.records import DeferralRecord, ParentRef, Run, Step
from celery_defer.worker.deferring import Deferral, defer
from celery_defer.worker.reading import RunPage
from celery_defer.worker.registration import shared_durable_task
from celery_defer.worker.typed import DurableTask, TaskResult, TaskSignature

__all__ = [
    "ConfigError",
    "CrashLoopError",
    "Cron",
    "Deferral",
    "DeferralRecord",
    "Durable",
    "DurableError",
    "DurableTask",
    "Event",
    "EventType",
    "InvalidArgumentError",
    "InvalidExpressionError",
    "InvokeTimeoutError",
    "LimitExceededError",
    "NestedStepError",
    "NonRetriableError",
    "NotInRunError",
    "On",
    "ParentRef",
    "PayloadError",
    "ReplayFilter",
    "RetryAfterError",
    "Run",
    "RunCancelledError",
    "RunEnded",
    "RunPage",
    "SchemaError",
    "Step",
    "StepError",
    "StepTimeoutError",
    "TaskResult",
    "TaskSignature",
    "UnknownRunError",
    "astep",
    "current_run",
    "defer",
    "run_cancelled",
    "run_completed",
    "run_failed",
    "shared_durable_task",
    "step",
]
