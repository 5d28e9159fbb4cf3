"""Which runs count as gone with their code server, and what becomes of them; the rest is in ``deploy``."""

import json
import time

import dagster as dg
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG

from abo_pipeline.local_launcher import PROCESS_TAG, this_process
from abo_pipeline.orphans import end, orphaned_runs

SERVER = {GRPC_INFO_TAG: json.dumps({"host": "code", "port": 4000})}
STATUSES = {
    dg.DagsterEventType.PIPELINE_STARTING: dg.DagsterRunStatus.STARTING,
    dg.DagsterEventType.PIPELINE_START: dg.DagsterRunStatus.STARTED,
    dg.DagsterEventType.PIPELINE_CANCELING: dg.DagsterRunStatus.CANCELING,
    dg.DagsterEventType.PIPELINE_SUCCESS: dg.DagsterRunStatus.SUCCESS,
}


@dg.job
def nothing() -> None:
    """A job without a step."""


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def launched(instance: dg.DagsterInstance, *then: dg.DagsterEventType, tags: dict[str, str] = SERVER) -> str:
    """A run that has come so far."""
    run = instance.create_run_for_job(nothing, tags=tags)
    for kind in (dg.DagsterEventType.PIPELINE_STARTING, *then):
        event = dg.DagsterEvent(kind.value, nothing.name)
        instance.report_dagster_event(event, run.run_id)
    found = instance.get_run_by_id(run.run_id)
    assert found.status is STATUSES[then[-1] if then else dg.DagsterEventType.PIPELINE_STARTING]
    return run.run_id


def orphans(instance: dg.DagsterInstance, since: float) -> set[str]:
    return {run.run_id for run in orphaned_runs(instance, since)}


def test_unfinished_runs_of_an_earlier_code_server_are_orphans(instance):
    starting = launched(instance)
    started = launched(instance, dg.DagsterEventType.PIPELINE_START)
    cancelling = launched(instance, dg.DagsterEventType.PIPELINE_START, dg.DagsterEventType.PIPELINE_CANCELING)

    assert orphans(instance, time.time() + 1) == {starting, started, cancelling}


def test_a_run_that_was_launched_since_is_none(instance):
    since = time.time() - 1
    launched(instance, dg.DagsterEventType.PIPELINE_START)

    assert orphans(instance, since) == set()


def test_a_run_that_has_ended_or_has_no_code_server_is_none(instance):
    launched(instance, dg.DagsterEventType.PIPELINE_START, dg.DagsterEventType.PIPELINE_SUCCESS)
    launched(instance, dg.DagsterEventType.PIPELINE_START, tags={})

    assert orphans(instance, time.time() + 1) == set()


def test_one_that_was_being_cancelled_is_cancelled_and_any_other_has_failed(instance):
    started = launched(instance, dg.DagsterEventType.PIPELINE_START)
    cancelling = launched(instance, dg.DagsterEventType.PIPELINE_START, dg.DagsterEventType.PIPELINE_CANCELING)

    for run in orphaned_runs(instance, time.time() + 1):
        end(instance, run)

    assert instance.get_run_by_id(started).status is dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(cancelling).status is dg.DagsterRunStatus.CANCELED
    assert orphans(instance, time.time() + 1) == set()


def process(**changes: object) -> dict[str, str]:
    """The tag of a run that this process executes, or of one like it."""
    return {PROCESS_TAG: json.dumps(json.loads(this_process()) | changes)}


def test_a_run_of_the_command_line_is_gone_with_its_process_and_not_before(instance):
    alive = launched(instance, dg.DagsterEventType.PIPELINE_START, tags=process())
    dead = launched(instance, dg.DagsterEventType.PIPELINE_START, tags=process(started=1.0))
    elsewhere = launched(instance, dg.DagsterEventType.PIPELINE_START, tags=process(started=1.0, host="another"))

    found = {run.run_id for run in orphaned_runs(instance, time.time() + 60)}

    assert dead in found
    assert not found & {alive, elsewhere}
