"""Several machines: Redis hands runs to two Celery workers, and one of them may die. Processes are all real.

Two workers on one machine differ from two machines in what they share: here the state folder, of which ``ABO_ASSETS``
is what several machines need.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import dagster as dg
import psutil
import pytest
import redis
import yaml
from dagster._core.launcher import LaunchRunContext

from abo_pipeline.sample import Sample
from abo_pipeline.settings import PROJECT_ROOT
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline_tests.conftest import fresh_database
from abo_pipeline_tests.e2e.celery_workers import TASK_TAG, models_loaded, start_worker, tasks
from abo_pipeline_tests.e2e.harness import (
    Backfill,
    CheckExecution,
    Process,
    Run,
    RunningDagster,
    running_dagster,
    wait_until,
)
from abo_pipeline_tests.e2e.pipeline import CATALOGUE, EMBEDDINGS, Pipeline
from abo_pipeline_tests.e2e.redis_server import redis_server

pytestmark = pytest.mark.slow

CONFIGURATION = PROJECT_ROOT / "deploy" / "dagster-celery.yaml"


@dataclass(frozen=True)
class Machines:
    """Dagster, and the workers that take its runs from Redis."""

    dagster: RunningDagster
    pipeline: Pipeline
    queue: redis.Redis
    workers: tuple[Process, Process]

    def worker_of(self, run: Run) -> Process:
        """Who took a run."""
        (worker,) = [worker for worker in self.workers if run.tags[TASK_TAG] in tasks(worker)]
        return worker

    def done(self, backfill_id: str, seconds: float = 240) -> Backfill:
        """A backfill once it has ended well."""
        backfill = self.dagster.wait_for_backfill(backfill_id, seconds)
        failed = [run for run in backfill.runs if run.status != "SUCCESS"]
        said = "\n".join(message for run in failed for message in self.dagster.messages(run.id)[-8:])
        assert backfill.status == "COMPLETED_SUCCESS", f"{backfill.error}\n{said}"
        return backfill

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join([self.dagster.tails(), *(worker.tail() for worker in self.workers)])


Start = Callable[..., AbstractContextManager[Machines]]


@pytest.fixture(scope="module")
def start(server: EmbeddedServer, sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start all of it with the configuration as it is delivered, and two databases of its own."""

    @contextmanager
    def start(*, concurrent_runs: int = 2, **variables: str) -> Iterator[Machines]:
        folder = tmp_path_factory.mktemp("machines")
        configuration = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
        configuration["concurrency"]["runs"]["max_concurrent_runs"] = concurrent_runs
        # As delivered, a killed worker goes unnoticed for a minute and a half.
        configuration["run_launcher"]["config"]["worker_timeout_seconds"] = 6
        configuration["run_monitoring"]["poll_interval_seconds"] = 2
        (folder / "dagster.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
        with ExitStack() as stack:
            records = stack.enter_context(fresh_database(server, "template1"))
            database_url = stack.enter_context(fresh_database(server))
            pipeline = Pipeline.over(sample, folder, database_url, **variables)
            stack.callback(pipeline.close)
            broker = stack.enter_context(redis_server(folder / "redis"))
            environment = pipeline.environment | {
                "ABO_CELERY_BROKER": broker,
                "DAGSTER_POSTGRES_URL": records.replace("+psycopg:", "+psycopg2:"),
            }
            dagster = stack.enter_context(
                running_dagster(folder / "home", environment, configuration=folder / "dagster.yaml")
            )
            workers = (start_worker(dagster, "one"), start_worker(dagster, "two"))
            queue = stack.enter_context(redis.Redis.from_url(broker))
            yield Machines(dagster, pipeline, queue, workers)

    return start


@pytest.fixture(scope="module")
def machines(start: Start) -> Iterator[Machines]:
    """As many partitions as there are unless set otherwise."""
    with start(partitions="64") as machines:
        yield machines


def test_two_workers_share_a_backfill_of_64_partitions_and_load_the_model_once_each(machines):
    dagster, pipeline = machines.dagster, machines.pipeline

    backfill = machines.done(dagster.launch_backfill(dagster.assets()), seconds=400)

    assert {run.status for run in backfill.runs} == {"SUCCESS"}
    embedding = [run for run in backfill.runs if EMBEDDINGS in run.assets]
    assert sorted(run.partition or "" for run in embedding) == pipeline.keys
    # Each run was taken once, by one worker, and neither worker did it all.
    taken = Counter(task for worker in machines.workers for task in tasks(worker))
    assert taken == {run.tags[TASK_TAG]: 1 for run in backfill.runs}
    shares = Counter(machines.worker_of(run).log.stem for run in embedding)
    assert min(shares["one"], shares["two"]) >= 16, shares
    assert [models_loaded(worker) for worker in machines.workers] == [1, 1]
    pipeline.assert_complete()
    assert pipeline.indexes() == {20: True, 60: True, 120: True}
    checks = dagster.check_executions(EMBEDDINGS)
    assert {check.partition for check in checks} == set(pipeline.keys)
    assert not [check for check in checks if not as_it_should_be(check)]


def test_a_run_that_is_delivered_twice_is_run_once(machines, monkeypatch):
    dagster = machines.dagster
    machines.done(dagster.launch_backfill(CATALOGUE))
    run = dagster.wait_for_run(dagster.launch_run(assets=[EMBEDDINGS], partition="00of64"))
    before = machines.pipeline.rows()
    for name, value in dagster.environment.items():
        monkeypatch.setenv(name, value)

    with dg.DagsterInstance.get() as instance:
        again = instance.get_run_by_id(run.id)
        instance.run_launcher.launch_run(LaunchRunContext(dagster_run=again, workspace=None))

    said = "Ignoring a run worker that started after the run had already finished."
    wait_until(lambda: said in dagster.messages(run.id), "the second delivery", details=machines.tails)
    after = dagster.run(run.id)
    assert (after.status, after.started, after.ended) == ("SUCCESS", run.started, run.ended)
    assert machines.pipeline.rows() == before


def test_a_cancelled_run_ends_at_once_and_its_worker_goes_on_with_its_model(machines):
    dagster, pipeline = machines.dagster, machines.pipeline
    machines.done(dagster.launch_backfill(CATALOGUE))
    pipeline.empty()
    few = pipeline.keys[:8]
    first = next(key for key in few if pipeline.images(key))

    image = pipeline.images(first)[0]

    with pipeline.held(image):
        run_id = dagster.launch_run(assets=[EMBEDDINGS], partition=first)
        wait_until(lambda: pipeline.waiting() == 1, "a run that writes", details=machines.tails)
        committed = pipeline.rows()
        answer = dagster.query("mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)
        assert answer == {"terminateRun": {"__typename": "TerminateRunSuccess"}}
        cancelled = dagster.wait_for_run(run_id, 30)

    assert cancelled.status == "CANCELED", "\n".join(dagster.messages(run_id))
    # What it had committed is kept, and nothing has come since.
    assert pipeline.rows() == committed
    assert image not in committed
    backfill = machines.done(dagster.launch_backfill([EMBEDDINGS], few))
    assert sorted(run.partition or "" for run in backfill.runs) == few
    assert all(pipeline.accounts()[key].settled for key in few)
    # Nobody retried what somebody cancelled.
    assert not [run for run in dagster.runs() if run.tags.get("dagster/parent_run_id") == run_id]
    assert {models_loaded(worker) for worker in machines.workers} == {1}


def test_a_worker_that_is_asked_to_stop_ends_its_run_first_and_the_other_goes_on(machines):
    dagster, pipeline = machines.dagster, machines.pipeline
    machines.done(dagster.launch_backfill(CATALOGUE))
    pipeline.empty()
    key = next(key for key in pipeline.keys if pipeline.images(key))

    with pipeline.held(pipeline.images(key)[0]):
        run_id = dagster.launch_run(assets=[EMBEDDINGS], partition=key)
        wait_until(lambda: pipeline.waiting() == 1, "a run that writes", details=machines.tails)
        asked = machines.worker_of(dagster.run(run_id))
        os.kill(asked.pid, signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in asked.log.read_text(), "a worker that stops", details=machines.tails)
        assert dagster.run(run_id).status == "STARTED"

    assert dagster.wait_for_run(run_id).status == "SUCCESS"
    wait_until(lambda: not asked.running, "the end of the worker", details=machines.tails)
    assert asked.exit_code == 0
    (other,) = [worker for worker in machines.workers if worker is not asked]
    then = dagster.wait_for_run(dagster.launch_run(assets=[EMBEDDINGS], partition=key))
    assert (then.status, machines.worker_of(then)) == ("SUCCESS", other)


def test_workers_that_are_killed_in_a_run_lose_nothing_double_nothing_and_hold_nothing_up(start):
    # A run more than there are workers; a few images a batch, so that a partition has a middle.
    with start(concurrent_runs=3, partitions="4", batch_size="2") as machines, ExitStack() as held:
        dagster, pipeline = machines.dagster, machines.pipeline
        machines.done(dagster.launch_backfill(CATALOGUE))
        for key in pipeline.keys:
            held.enter_context(pipeline.held(pipeline.images(key)[8]))
        backfill_id = dagster.launch_backfill([EMBEDDINGS])
        wait_until(lambda: pipeline.waiting() == 2, "two workers in the middle of a run", 90, details=machines.tails)
        committed = pipeline.rows()
        killed = [run for run in dagster.runs() if run.status == "STARTED"]
        assert {machines.worker_of(run).log.stem for run in killed} == {"one", "two"}
        assert committed
        # The third run waits for whoever is free first; neither worker has taken it in reserve. Those that are being
        # run are no longer under way, so nobody can deliver them again, however long they take.
        wait_until(lambda: machines.queue.llen("dagster") == 1, "a run that waits for a worker", details=machines.tails)
        assert machines.queue.hlen("unacked") == 0

        # One machine is gone. On the other, memory ran out, and the process that ran something was killed; the one that
        # answers for it lives.
        gone, other = machines.workers
        (orphan,) = psutil.Process(gone.pid).children()
        (child,) = psutil.Process(other.pid).children()
        gone.kill()
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: not orphan.is_running(), "the end of what the killed worker ran", details=machines.tails)
        held.close()
        backfill = machines.done(backfill_id)

        outcomes = Counter((run.partition, run.status) for run in backfill.runs)
        assert outcomes == Counter(
            [*((key, "SUCCESS") for key in pipeline.keys), *((run.partition, "FAILURE") for run in killed)]
        )
        for run in killed:
            reasons = [message for message in dagster.messages(run.id) if "Marking run" in message]
            assert "1 Celery worker(s) answered, and none has the run in hand" in reasons[0]
        pipeline.assert_complete()
        # What was committed before is not written again.
        rows = pipeline.rows()
        assert {image: rows[image] for image in committed} == committed
        # Of each check, the execution in a killed run has failed; the latest, which counts, has not.
        latest = {(check.name, check.partition): check for check in reversed(dagster.check_executions(EMBEDDINGS))}
        assert {partition for _, partition in latest} == set(pipeline.keys)
        assert not [check for check in latest.values() if not as_it_should_be(check)]
        # The child that took the killed one's place has loaded the model for itself.
        assert other.running
        assert models_loaded(other) == 2


def as_it_should_be(check: CheckExecution) -> bool:
    """Whether a check passed, or warns of files that the drawn archive has for that."""
    return check.status == "SUCCEEDED" or (check.status, check.severity) == ("FAILED", "WARN")
