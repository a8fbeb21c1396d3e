"""``celery -A shop defer …``: look at runs, cancel them, send events, bring the tables up to date.

Exit codes: 0, 1 if what was asked for can't be done (one line on stderr says why), 2 if it was asked for wrongly.
With ``--json`` one JSON document is written to stdout: the names are those of `celery_defer.Run` and its parts,
times are ISO-8601 in UTC.
"""

from __future__ import annotations

from celery_defer.cli.commands import defer

__all__ = ["defer"]
