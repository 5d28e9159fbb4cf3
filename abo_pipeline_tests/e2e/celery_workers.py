"""Celery workers of the pipeline as processes, and what their logs tell about who did what."""

import re
from collections.abc import Sequence

from abo_pipeline_tests.e2e.harness import Process, RunningDagster, script, wait_until

# As docs/operations.md says; --hostname tells two workers of one machine apart.
COMMAND = ("--app", "abo_pipeline.worker", "worker", "--loglevel", "INFO")
TASK_TAG = "dagster-celery/task_id"


def start_worker(dagster: RunningDagster, name: str) -> Process:
    """Start a worker on the home of a running Dagster, and wait until it takes runs; it ends with the others.

    Raises:
        TimeoutError: it did not come up; the message has the end of its log.
    """
    worker = dagster.start(name, [script("celery"), *COMMAND, "--hostname", f"{name}@%h"])
    wait_until(lambda: " ready." in worker.log.read_text(), f"the worker {name}", details=worker.tail)
    return worker


def tasks(worker: Process) -> Sequence[str]:
    """The ids of the tasks that a worker has taken, in order; those of runs are in their tag ``TASK_TAG``."""
    return re.findall(r"Task execute_job\[([0-9a-f-]+)\] received", worker.log.read_text())


def models_loaded(worker: Process) -> int:
    """How often a worker has loaded a model."""
    return worker.log.read_text().count("Loaded the model ")
