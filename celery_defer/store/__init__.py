"""SQL, the only truth: tables, their migrations and one module of statements per table.

Functions take the open connection first and never commit; `Store.transaction` and `Store.autocommit` do.
"""

from celery_defer.store.store import Store, StoreAwayError

__all__ = ["Store", "StoreAwayError"]
