"""DBOS in a process of its own: reads ``workload count repeats`` lines and answers with seconds."""

import os
import random
import sys
import time

from dbos import DBOS

DBOS(config={"name": "bench", "system_database_url": os.environ["BENCH_DBOS"], "log_level": "ERROR"})


@DBOS.step()
def identity(value: int) -> int:
    return value


@DBOS.workflow()
def steps(count: int) -> int:
    for number in range(count):
        identity(number)
    return count


@DBOS.workflow()
def stamp() -> float:
    return time.time()


@DBOS.workflow()
def sleeper(seconds: float) -> float:
    wanted = time.time() + seconds
    DBOS.sleep(seconds)
    return time.time() - wanted


@DBOS.workflow()
def waiter() -> float:
    DBOS.recv("paid", timeout_seconds=60)
    return time.time()


def throughput(count: int, repeats: int) -> float:
    begun = time.perf_counter()
    handles = [DBOS.start_workflow(steps, count) for _ in range(repeats)]
    for handle in handles:
        handle.get_result()
    return time.perf_counter() - begun


def latencies(repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        sent = time.time()
        found.append(DBOS.start_workflow(stamp).get_result() - sent)
    return found


def events(repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        handle = DBOS.start_workflow(waiter)
        time.sleep(random.uniform(0.05, 0.07))  # until it waits
        sent = time.time()
        DBOS.send(handle.get_workflow_id(), "an event", topic="paid")
        found.append(handle.get_result() - sent)
    return found


def main() -> None:
    DBOS.launch()
    print("ready", flush=True)
    for line in sys.stdin:
        workload, count, repeats = line.split()
        if workload == "steps":
            print(throughput(int(count), int(repeats)), flush=True)
        elif workload == "latency":
            print(*latencies(int(repeats)), flush=True)
        elif workload == "event":
            print(*events(int(repeats)), flush=True)
        else:
            print(*(DBOS.start_workflow(sleeper, float(count)).get_result() for _ in range(int(repeats))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
