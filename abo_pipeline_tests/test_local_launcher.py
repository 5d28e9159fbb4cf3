"""Whether a run is still at work; with a daemon and real kills it is in e2e/test_daemon_faults.py."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.server import GrpcServerProcess

from abo_pipeline import local_launcher
from abo_pipeline.local_launcher import PROCESS_TAG, LocalRunLauncher, this_process
from abo_pipeline.settings import PROJECT_ROOT


def health(**tags: str) -> tuple[WorkerStatus, str | None]:
    found = LocalRunLauncher().check_run_worker_health(
        dg.DagsterRun(
            "a_job",
            run_id="0" * 32,
            tags={PROCESS_TAG if name == "process" else name: value for name, value in tags.items()},
        )
    )
    return found.status, found.msg


def executed_by(pid: int, started: float, host: str | None = None) -> str:
    return json.dumps({"host": host or socket.gethostname(), "pid": pid, "started": started})


def test_the_laptops_configuration_names_it(tmp_path):
    (tmp_path / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert type(instance.run_launcher) is LocalRunLauncher
        assert instance.run_monitoring_enabled


def test_a_run_of_a_process_is_at_work_as_long_as_that_process_is():
    assert health(process=this_process()) == (WorkerStatus.RUNNING, None)

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tag = executed_by(process.pid, psutil.Process(process.pid).create_time())
    assert health(process=tag) == (WorkerStatus.RUNNING, None)
    process.communicate(b"\n")
    assert health(process=tag) == (WorkerStatus.FAILED, f"process {process.pid} that executed it is gone")


def test_another_process_with_the_same_number_is_not_taken_for_it():
    started = psutil.Process().create_time()
    assert health(process=executed_by(os.getpid(), started - 60))[0] is WorkerStatus.FAILED


def test_nothing_is_said_of_runs_that_cannot_be_asked_about():
    assert health(process=executed_by(1, 0.0, host="another")) == (
        WorkerStatus.RUNNING,
        "it is at work on another, which cannot be asked",
    )
    assert health() == (WorkerStatus.RUNNING, "it was not started by this launcher")


def test_a_run_whose_code_server_is_gone_is_not_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(local_launcher.time, "sleep", waits.append)
    gone = json.dumps({"host": "localhost", "socket": str(tmp_path / "socket")})

    assert health(**{GRPC_INFO_TAG: gone}) == (WorkerStatus.FAILED, "its code server is gone")
    # It is asked again before it is given up: it may have been busy.
    assert waits == [1, 1, 1]


@pytest.mark.slow
def test_a_code_server_that_was_started_again_knows_nothing_of_the_run():
    with (
        dg.instance_for_test() as instance,
        GrpcServerProcess(instance_ref=instance.get_ref(), wait_on_exit=True) as server,
    ):
        client = server.create_client()
        address = {"host": client.host, **({"socket": client.socket} if client.socket else {"port": client.port})}
        assert health(**{GRPC_INFO_TAG: json.dumps(address)}) == (
            WorkerStatus.NOT_FOUND,
            "its code server was started again since",
        )
