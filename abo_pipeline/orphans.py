"""Runs that nobody executes any more, although Dagster's records say so.

Dagster's default launcher has a run executed by a process of the code server. Where that server's container is ended
(replaced, out of memory, without power) its runs stay "started" for ever, and keep their places in the run queue and
in the encoder's pool, which would never be free again. So the server install starts this beside each new code server:
``python -m abo_pipeline.orphans``. What was launched before then lived in the container that is gone.

So does an ``abo run`` that was at work in that container; the new one must have the same host name to tell.

What happens to such a run afterwards is for Dagster's ``run_retries``. Runs of Celery are for ``celery_launcher``,
those of a laptop for ``local_launcher``.
"""

import json
import sys
import time
from typing import Any

import click
import dagster as dg
import psutil
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.client import DagsterGrpcClient

from abo_pipeline.local_launcher import PROCESS_TAG, look_for_process

_UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_PATIENCE_S = 600.0
_GRACE_S = 10.0
"""Daemon and webserver look about every second whether the code server is back. A retry that the daemon tries before
it has seen that is given up for good."""


def orphaned_runs(instance: dg.DagsterInstance, since: float) -> list[dg.DagsterRun]:
    """Unfinished runs that nobody executes: of a code server before this one, or of an ``abo run`` that is gone.

    Args:
        instance: whose records.
        since: when the present code server was started, as seconds since the epoch.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED))
    return [run for run in runs if _is_of_earlier_server(instance, run, since) or _is_of_dead_process(run)]


def _is_of_earlier_server(instance: dg.DagsterInstance, run: dg.DagsterRun, since: float) -> bool:
    return GRPC_INFO_TAG in run.tags and _launched(instance, run) < since


def _is_of_dead_process(run: dg.DagsterRun) -> bool:
    """Whether an ``abo run`` executed it in this container, or in one before of the same name, and does no more."""
    tag = run.tags.get(PROCESS_TAG)
    return tag is not None and look_for_process(tag).status is WorkerStatus.FAILED


def end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Record a run as ended: as cancelled if it was being cancelled, otherwise as failed."""
    message = "The process that executed this run is gone, and the run with it. What it committed is kept."
    if run.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message)
    else:
        instance.report_run_failed(run, message)


def main() -> None:
    """End the runs of the code server before this one, once this one answers; say which they were."""
    since = psutil.Process().create_time()
    with dg.DagsterInstance.get() as instance:
        found = orphaned_runs(instance, since)
        servers = [json.loads(run.tags[GRPC_INFO_TAG]) for run in found if GRPC_INFO_TAG in run.tags]
        if servers and not _wait_for_server(servers[0]):
            click.echo(f"The code server has not answered for {_PATIENCE_S:.0f} s: earlier runs are left as they are.")
            sys.exit(1)
        # Some may have been cancelled or queued again meanwhile.
        for run in orphaned_runs(instance, since) if found else ():
            end(instance, run)
            click.echo(f"Run {run.run_id} ended with the process that executed it.")


def _launched(instance: dg.DagsterInstance, run: dg.DagsterRun) -> float:
    return getattr(instance.get_run_stats(run.run_id), "launch_time", None) or float("inf")


def _wait_for_server(address: dict[str, Any]) -> bool:
    client = DagsterGrpcClient(**address)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            client.ping("")
        except DagsterUserCodeUnreachableError:
            time.sleep(0.5)
        else:
            time.sleep(_GRACE_S)
            return True
    return False


if __name__ == "__main__":
    main()
