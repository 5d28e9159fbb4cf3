"""How runs are started on one machine: Dagster's default launcher, made to notice that a run is gone.

For the daemon and the webserver, by ``dagster.yaml``. Workers on several machines are for ``celery_launcher``.

A run is a child of a code server, which reports it as failed if it dies. Nobody does when both die at once: at a power
cut, when a container is restarted, when the terminal of ``abo run`` is killed. Such a run would count as started for
ever, keep its place in the run queue and in the encoder's pool, and so hold up every other one. Here Dagster's run
monitoring is told of it, marks it as failed, and gives its place back.
"""

import json
import os
import socket
import time

import dagster as dg
import psutil
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

PROCESS_TAG = "abo_pipeline/process"
"""Of a run that is executed by the process that asked for it: which one that is."""

_ATTEMPTS = 4
_TIMEOUT = 10
"""A code server is asked so often, and waited for so many seconds each time: it may be busy. One that does not listen
any more is known at once, and asked again after a second."""


def this_process() -> str:
    """What a run's ``PROCESS_TAG`` says if this process executes it."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()})


class LocalRunLauncher(DefaultRunLauncher):
    """Starts runs through code servers, and knows which of them are still at work."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes; Dagster's own launcher cannot tell."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether somebody is at work on a run. Dagster calls this for runs that have started and not ended.

        To be wrong about a run that goes on is no disaster: it may then be started twice, and does nothing twice.
        """
        if GRPC_INFO_TAG in run.tags:
            return self._ask_code_server(run)
        if PROCESS_TAG in run.tags:
            return look_for_process(run.tags[PROCESS_TAG])
        return CheckRunHealthResult(WorkerStatus.RUNNING, "it was not started by this launcher")

    def _ask_code_server(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        client = DagsterGrpcClient(**json.loads(run.tags[GRPC_INFO_TAG]))
        for attempt in range(_ATTEMPTS):
            try:
                answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=_TIMEOUT)
            except DagsterUserCodeUnreachableError:
                if attempt + 1 < _ATTEMPTS:
                    time.sleep(1)
            else:
                if deserialize_value(answer, CanCancelExecutionResult).can_cancel:
                    return CheckRunHealthResult(WorkerStatus.RUNNING)
                return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its code server was started again since")
        return CheckRunHealthResult(WorkerStatus.FAILED, "its code server is gone")


def look_for_process(tag: str) -> CheckRunHealthResult:
    """Whether the process that a run's ``PROCESS_TAG`` names is still there."""
    process = json.loads(tag)
    if process["host"] != socket.gethostname():
        return CheckRunHealthResult(WorkerStatus.RUNNING, f"it is at work on {process['host']}, which cannot be asked")
    try:
        started = psutil.Process(process["pid"]).create_time()
    except psutil.NoSuchProcess:
        started = None
    # Another process may have the number by now. The time of the same one may be told a little differently.
    if started is None or abs(started - process["started"]) > 2:
        return CheckRunHealthResult(WorkerStatus.FAILED, f"process {process['pid']} that executed it is gone")
    return CheckRunHealthResult(WorkerStatus.RUNNING)
