"""Celery's side: the task's base class, messages, the heartbeat, the sweeper and what a worker process does."""
