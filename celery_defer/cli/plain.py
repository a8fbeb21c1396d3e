"""Runs as JSON data; the names are part of the public interface."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from celery_defer.words.records import Run

if TYPE_CHECKING:
    from celery_defer.worker.reading import RunPage

_DETAILS = ("steps", "deferrals", "children")


def plain_run(run: Run) -> dict[str, Any]:
    """Return a run with all its parts."""
    plain: dict[str, Any] = to_jsonable_python(
        run, fallback=repr, serialize_unknown=True, inf_nan_mode="strings", bytes_mode="base64"
    )
    return plain


def plain_page(page: RunPage) -> dict[str, Any]:
    """Return a page of runs without their parts, and the cursor of the next page."""
    kept = [field.name for field in fields(Run) if field.name not in _DETAILS]
    return {"runs": [{name: plain[name] for name in kept} for plain in map(plain_run, page)], "cursor": page.cursor}


def document(value: Any) -> str:
    """Return JSON text."""
    return json.dumps(value, indent=2)
