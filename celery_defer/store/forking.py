"""No fork while another thread is inside a database driver.

A worker's main process sweeps in threads and forks pool children at any time. SQLite's library has mutexes of its
own: one that another thread holds at the moment of the fork stays locked in the child for ever, which then hangs in
its first ``sqlite3_open``. So a fork waits until no other thread is in the store.
"""

from __future__ import annotations

import os
import threading

# A thread that stays inside for longer (a user's long transaction) doesn't hold up the fork for ever, in seconds.
_PATIENCE = 5.0


class _Gate:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forking = False
        self._own = threading.local()

    def __enter__(self) -> None:
        own = getattr(self._own, "count", 0)
        with self._changed:
            # who is inside already is let through: the fork waits for it
            while self._forking and not own:
                self._changed.wait()
            self._inside += 1
        self._own.count = own + 1

    def __exit__(self, *_error: object) -> None:
        self._own.count -= 1
        with self._changed:
            self._inside -= 1
            if self._forking:
                self._changed.notify_all()

    def before_fork(self) -> None:
        self._changed.acquire()
        while self._forking:  # another thread's fork comes first
            self._changed.wait()
        # nobody enters from here on: threads that come back at once would starve the fork
        self._forking = True
        own = getattr(self._own, "count", 0)
        self._changed.wait_for(lambda: self._inside <= own, timeout=_PATIENCE)

    def after_in_parent(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def after_in_child(self) -> None:
        own = getattr(self._own, "count", 0)
        self._changed = threading.Condition()
        self._inside, self._forking = own, False
        self._own = threading.local()
        self._own.count = own


gate = _Gate()
os.register_at_fork(before=gate.before_fork, after_in_parent=gate.after_in_parent, after_in_child=gate.after_in_child)
