"""A Celery application that doesn't know this project: the memory of a worker is compared with its worker's."""

import os

from celery import Celery

app = Celery("benchmarks.plain", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.task_default_queue = os.environ["BENCH_QUEUE"]


@app.task
def nothing() -> None:
    return None
