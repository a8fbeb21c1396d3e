"""Settings as a project has them; Celery's and ours are read from here under the prefix ``CELERY_``."""

from __future__ import annotations

import json
import os
from pathlib import Path

_FOLDER = Path(os.environ["TEST_APP_FOLDER"])

SECRET_KEY = "not a secret"  # noqa: S105 - nobody logs in
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django_celery_results", "django_celery_beat"]
# A test's tables are made as they are now, not migration by migration.
MIGRATION_MODULES = {"django_celery_results": None, "django_celery_beat": None}
CONF = json.loads(os.environ["TEST_APP_CONF"])
_SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": str(_FOLDER / "django.db"),
    # Several processes write: take the lock at a transaction's begin, as Django's docs advise for that.
    "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL;"},
}
DATABASES = {"default": CONF.pop("tests_database", None) or _SQLITE}
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 0.5
globals().update({f"CELERY_{name.upper()}": value for name, value in CONF.items()})
