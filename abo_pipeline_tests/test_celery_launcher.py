"""The Celery profile as far as it goes without a server; with all of them it is in e2e/test_celery.py."""

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus

from abo_pipeline.celery_launcher import CeleryRunLauncher, celery_settings
from abo_pipeline.errors import SettingsError
from abo_pipeline.local_launcher import PROCESS_TAG, this_process


@pytest.mark.parametrize(
    ("variables", "backend"),
    [
        ({"ABO_CELERY_BROKER": "redis://host/0"}, "redis://host/0"),
        ({"ABO_CELERY_BROKER": "redis://host/0", "ABO_CELERY_BACKEND": ""}, "redis://host/0"),
        ({"ABO_CELERY_BROKER": "redis://host/0", "ABO_CELERY_BACKEND": "redis://host/1"}, "redis://host/1"),
    ],
)
def test_results_go_to_the_broker_unless_another_place_is_named(variables, backend):
    settings = celery_settings(variables)

    assert (settings["broker"], settings["backend"]) == ("redis://host/0", backend)


@pytest.mark.parametrize("broker", ["amqp://user:secret@host//", "host:6379", "http://host"])
def test_a_broker_that_is_not_redis_is_refused_without_its_password(broker):
    with pytest.raises(SettingsError, match=r"^ABO_CELERY_BROKER is no address of a Redis server, such as ") as refused:
        celery_settings({"ABO_CELERY_BROKER": broker})

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ({PROCESS_TAG: this_process()}, WorkerStatus.RUNNING),
        ({PROCESS_TAG: json.dumps(json.loads(this_process()) | {"started": 1.0})}, WorkerStatus.FAILED),
        ({}, WorkerStatus.RUNNING),
    ],
    ids=["at work", "killed", "of somebody else"],
)
def test_a_run_that_no_worker_was_asked_for_is_looked_for_where_it_is(tags, status):
    # Nobody listens there, and nobody has to.
    launcher = CeleryRunLauncher.from_config_value(
        None, {"broker": "redis://127.0.0.1:1/0", "worker_timeout_seconds": 1}
    )

    health = launcher.check_run_worker_health(dg.DagsterRun(job_name="any", tags=tags))

    assert health.status is status


def test_a_worker_without_a_broker_says_so_in_a_sentence():
    code, said = worker({})

    assert code == 1
    assert said == (
        "ABO_CELERY_BROKER is not set. Give the address of the Redis server through which runs reach the workers, "
        "such as redis://HOST:6379/0.\n"
    )


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_worker_that_could_not_answer_during_a_run_does_not_start(pool):
    # Nobody listens there: the worker gives up before it looks for its broker.
    code, said = worker({"ABO_CELERY_BROKER": "redis://127.0.0.1:1/0"}, "--pool", pool)

    assert code == 1
    assert said.endswith(
        "This worker must run with Celery's prefork pool: with another it gives no sign of life during a run. "
        "Leave out --pool.\n"
    )


def worker(environment: dict[str, str], *words: str) -> tuple[int, str]:
    celery = Path(sys.executable).with_name("celery")
    done = subprocess.run(
        [celery, "--app", "abo_pipeline.worker", "worker", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr
