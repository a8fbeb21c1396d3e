"""Django reads its settings once per process; a test's process sees several projects."""

from __future__ import annotations

import sys
from contextlib import suppress

from django.conf import settings
from django.db import connections
from django.utils.functional import empty


def forget() -> None:
    """Have Django read settings and databases anew."""
    if not settings.configured:
        return
    connections.close_all()
    with suppress(AttributeError):
        del connections["default"]
    connections.__dict__.pop("settings", None)
    connections._settings = None
    settings.__dict__.clear()
    settings.__dict__["_wrapped"] = empty
    sys.modules.pop("tests.worker.django_project.settings", None)
