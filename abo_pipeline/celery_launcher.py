"""How runs reach workers on several machines: Dagster's Celery launcher, made to notice that a worker is gone.

For the daemon and the webserver, by ``deploy/dagster-celery.yaml``; the other end of the queue is ``worker``. Needs the
extra ``celery``. What a run does is no business of either.

Dagster's records say what has been run; Celery only hands a run over, once. So a task is acknowledged when a worker
begins with it, not when it has ended: with ``task_acks_late`` it would be delivered again after Redis's visibility
timeout, an hour unless set, to a second worker while the first is still at it. What early acknowledgement costs is that
nobody delivers the run of a killed worker again; for that Dagster's run monitoring asks the launcher whether a run's
worker is alive, marks the run as failed if it is not, and starts it anew.
"""

import os
import time
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._serdes import ConfigurableClassData
from dagster_celery import launcher as stock
from dagster_celery.config import DEFAULT_CONFIG
from dagster_celery.defaults import broker_transport_options, task_default_queue
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

from abo_pipeline.errors import SettingsError
from abo_pipeline.local_launcher import PROCESS_TAG, look_for_process

BROKER_VARIABLE = "ABO_CELERY_BROKER"
BACKEND_VARIABLE = "ABO_CELERY_BACKEND"

WORKER_TIMEOUT_SECONDS = 60
"""How long workers are asked about a run before it is taken for abandoned, unless dagster.yaml says otherwise. Longer
than Celery waits before it tries again to reach a Redis that was away (30 s): a run that is not abandoned would be run
twice."""


def celery_settings(variables: Mapping[str, str], broker: str | None = None) -> dict[str, Any]:
    """What both ends of the queue must agree on, as ``dagster_celery.make_app`` takes it.

    Args:
        variables: of this process.
        broker: address of the Redis server; by default that in ``ABO_CELERY_BROKER``.

    Raises:
        SettingsError: no address is set, or it is not one of Redis.
    """
    broker = broker or variables.get(BROKER_VARIABLE, "")
    if not broker:
        raise SettingsError(
            f"{BROKER_VARIABLE} is not set. Give the address of the Redis server through which runs reach the workers, "
            "such as redis://HOST:6379/0."
        )
    # The settings below lean on what Celery does with Redis and with no other broker.
    if urlsplit(broker).scheme not in ("redis", "rediss", "sentinel"):
        raise SettingsError(f"{BROKER_VARIABLE} is no address of a Redis server, such as redis://HOST:6379/0.")
    return {
        "broker": broker,
        # In the broker's own database unless told otherwise: the keys do not meet, and some servers have only one.
        "backend": variables.get(BACKEND_VARIABLE) or broker,
        "config_source": {
            **DEFAULT_CONFIG,
            # See the module's docstring. A task that a worker took and had not begun with when it was killed is
            # delivered again after the visibility timeout; no task of a run is, however long it takes.
            "task_acks_late": False,
            "broker_transport_options": {**broker_transport_options, "visibility_timeout": 60},
            # One run at a time, and none in reserve: it would wait behind a long run while another worker is idle.
            "worker_concurrency": 1,
            "worker_prefetch_multiplier": 1,
            "worker_disable_prefetch": True,
            # Runs are in a child that is kept, and with it the model; the parent answers when asked about a run, takes
            # the child with it when it is killed, and reports a child that was. `solo` and `threads` can do neither.
            "worker_pool": "prefork",
            "worker_max_tasks_per_child": None,
            "broker_connection_retry_on_startup": True,
        },
    }


class CeleryRunLauncher(stock.CeleryRunLauncher):
    """Puts runs into the queue in Redis, and knows which of them still have a worker.

    The stock launcher goes by the task's last state in Redis. That is STARTED for ever if the worker was killed, and
    so the run would be.
    """

    def __init__(self, *, worker_timeout_seconds: int = WORKER_TIMEOUT_SECONDS, **stock_arguments: Any) -> None:
        self._worker_timeout = worker_timeout_seconds
        super().__init__(**stock_arguments)

    @classmethod
    def config_type(cls) -> Any:
        """Dagster's schema for ``run_launcher: config:`` in dagster.yaml."""
        return {
            "broker": dg.Field(dg.StringSource, description="Address of the Redis server."),
            "worker_timeout_seconds": dg.Field(
                dg.IntSource,
                default_value=WORKER_TIMEOUT_SECONDS,
                description="A worker that does not answer for so long is taken for dead.",
            ),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Called by Dagster when it reads dagster.yaml."""
        return cls(
            **celery_settings(os.environ, config_value["broker"]),
            worker_timeout_seconds=config_value["worker_timeout_seconds"],
            default_queue=task_default_queue,
            inst_data=inst_data,
        )

    def terminate(self, run_id: str) -> bool:
        """Ask a run's worker to end it; whether it was asked.

        The worker's child is interrupted and goes on with the next run. The stock launcher leaves out the first step,
        without which Dagster takes the interruption for a crash, and retries the run that somebody cancelled.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        return super().terminate(run_id)

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether a worker has the run in hand, by asking them all.

        Dagster calls this for runs that have started and not ended, so a task that nobody holds means a worker that was
        killed or cut off; a run that ended in this moment Dagster notices by itself.
        """
        if DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            if PROCESS_TAG in run.tags:
                return look_for_process(run.tags[PROCESS_TAG])
            return CheckRunHealthResult(WorkerStatus.RUNNING, "it was not started by this launcher")
        task = run.tags[DAGSTER_CELERY_TASK_ID_TAG]
        deadline = time.monotonic() + self._worker_timeout
        # An idle machine answers in milliseconds; one whose cores all embed may take a second.
        patience = 1.0
        while True:
            answers = self.celery.control.inspect(timeout=patience).query_task(task) or {}
            if any(task in held for held in answers.values()):
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            if time.monotonic() > deadline:
                break
            patience = min(2 * patience, 8.0)
        found = f"{len(answers)} Celery worker(s) answered, and none has the run in hand"
        return CheckRunHealthResult(WorkerStatus.FAILED, found)
