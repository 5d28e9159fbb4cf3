"""Runs and the daemon, killed in the middle of a partition: nothing is lost, doubled, skipped, or waits for ever.

A middle lasts as long as a test needs it: the run waits for a row that the test keeps from it (``Pipeline.held``).
"""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
import yaml

from abo_pipeline.encoder import ClipEncoder
from abo_pipeline.settings import PROJECT_ROOT
from abo_pipeline_tests.e2e.harness import (
    RUN_ENDED,
    Run,
    RunningDagster,
    running_dagster,
    script,
    wait_until,
)
from abo_pipeline_tests.e2e.pipeline import CATALOGUE, EMBEDDINGS, Pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dagster(
    tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline, encoder: ClipEncoder
) -> Iterator[RunningDagster]:
    """Webserver and daemon with the laptop's configuration, in a hurry, and without second attempts.

    One for all tests here: what one leaves behind must not harm the next.
    """
    configuration = yaml.safe_load((PROJECT_ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    configuration["run_monitoring"] |= {"poll_interval_seconds": 1, "free_slots_after_run_end_seconds": 1}
    configuration["run_retries"] = {"enabled": False}
    # Two runs may embed at once: what keeps them from doing harm to one another has to be the rows, not the pool.
    configuration["concurrency"]["pools"]["default_limit"] = 2
    folder = tmp_path_factory.mktemp("dagster")
    path = folder / "dagster.yaml"
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    with running_dagster(folder / "home", pipeline.environment, configuration=path) as dagster:
        run = dagster.wait_for_run(dagster.launch_run(assets=CATALOGUE))
        assert run.status == "SUCCESS", dagster.messages(run.id)
        with pipeline.store() as store:
            store.open_space(pipeline.settings.space_name, encoder)
        yield dagster


@pytest.fixture(autouse=True)
def nothing_embedded(dagster: RunningDagster, pipeline: Pipeline) -> Iterator[None]:
    """Each test begins without vectors, and leaves no run behind that has not ended."""
    pipeline.empty()
    yield
    assert [run for run in dagster.runs() if run.status not in RUN_ENDED] == []


def test_the_partition_of_a_killed_run_fails_alone_and_the_next_backfill_finishes_it(dagster, pipeline):
    first, *others = pipeline.keys
    with pipeline.held(pipeline.images(first)[-1]):
        backfill = dagster.launch_backfill([EMBEDDINGS])
        run = run_of(dagster, backfill, first)
        wait_until(lambda: pipeline.waiting() == 1, "the run at the last batch of its partition", details=dagster.tails)
        before = {image: row for image, row in pipeline.rows().items() if image in pipeline.images(first)}
        assert 0 < len(before) < len(pipeline.images(first)) - 1
        os.kill(wait_until(lambda: dagster.pid(run.id), "the pid of the run"), signal.SIGKILL)
        assert dagster.wait_for_run(run.id).status == "FAILURE"

    ended = dagster.wait_for_backfill(backfill)
    assert ended.status == "COMPLETED_FAILED"
    assert outcome(ended.runs) == {first: ["FAILURE"]} | {key: ["SUCCESS"] for key in others}
    accounts = pipeline.accounts()
    assert accounts[first].pending > 0
    assert [accounts[key].settled for key in others] == [True] * len(others)

    # The schedule asks for that one and no other; so does a person.
    tick = dagster.dry_run_schedule("fill_partitions")
    assert [tags["dagster/partition"] for _, tags in tick.requests] == [first]
    after_kill = pipeline.rows()
    assert before.items() <= after_kill.items()
    again = dagster.wait_for_backfill(dagster.launch_backfill([EMBEDDINGS], [first]))
    assert (again.status, outcome(again.runs)) == ("COMPLETED_SUCCESS", {first: ["SUCCESS"]})
    pipeline.assert_complete()
    assert after_kill.items() <= pipeline.rows().items()


def test_a_backfill_goes_on_when_the_daemon_comes_back_after_everything_was_killed(dagster, pipeline):
    first = pipeline.keys[0]
    with pipeline.held(pipeline.images(first)[-1]):
        backfill = dagster.launch_backfill([EMBEDDINGS])
        run = run_of(dagster, backfill, first)
        wait_until(lambda: pipeline.waiting() >= 1, "the run at the last batch of its partition", details=dagster.tails)
        pid = wait_until(lambda: dagster.pid(run.id), "the pid of the run")
        # As at a power cut: the daemon, its code server and the runs, and nobody is left to write down that they ended.
        dagster.daemon.kill_group()
        wait_until(lambda: not psutil.pid_exists(pid), "the end of the run's process")
    before = pipeline.rows()
    assert before
    assert dagster.run(run.id).status == "STARTED"

    dagster.start_daemon()
    assert dagster.wait_for_run(run.id).status == "FAILURE"
    assert any("its code server is gone" in message for message in dagster.messages(run.id))
    ended = dagster.wait_for_backfill(backfill)
    # A run that had not come to its last batch yet was killed with it.
    assert outcome(ended.runs).keys() == set(pipeline.keys)
    lost = [key for key, statuses in outcome(ended.runs).items() if statuses == ["FAILURE"]]
    assert first in lost
    assert {key for key, account in pipeline.accounts().items() if account.pending} <= set(lost)
    assert ended.status == "COMPLETED_FAILED"

    again = dagster.wait_for_backfill(dagster.launch_backfill([EMBEDDINGS], lost))
    assert again.status == "COMPLETED_SUCCESS"
    pipeline.assert_complete()
    assert before.items() <= pipeline.rows().items()


def test_runs_outlive_a_daemon_that_is_killed_alone_and_the_backfill_ends_well(dagster, pipeline):
    first = pipeline.keys[0]
    with pipeline.held(pipeline.images(first)[-1]):
        backfill = dagster.launch_backfill([EMBEDDINGS])
        run = run_of(dagster, backfill, first)
        wait_until(lambda: pipeline.waiting() >= 1, "the run at the last batch of its partition", details=dagster.tails)
        dagster.daemon.kill()
        before = pipeline.rows()
        dagster.start_daemon()
    ended = dagster.wait_for_backfill(backfill)

    assert (ended.status, outcome(ended.runs)) == ("COMPLETED_SUCCESS", {key: ["SUCCESS"] for key in pipeline.keys})
    assert run.id in {run.id for run in ended.runs}
    pipeline.assert_complete()
    assert before.items() <= pipeline.rows().items()


def test_two_backfills_of_the_same_partition_at_the_same_time_do_its_work_once(dagster, pipeline):
    first = pipeline.keys[0]
    middle = pipeline.images(first)[len(pipeline.images(first)) // 2]
    with pipeline.held(middle):
        backfills = [dagster.launch_backfill([EMBEDDINGS], [first]) for _ in range(2)]
        runs = [run_of(dagster, backfill, first) for backfill in backfills]
        wait_until(lambda: pipeline.waiting() == 2, "both runs at the same batch", details=dagster.tails)
        before = pipeline.rows()
    ended = [dagster.wait_for_backfill(backfill) for backfill in backfills]

    assert [(one.status, outcome(one.runs)) for one in ended] == [("COMPLETED_SUCCESS", {first: ["SUCCESS"]})] * 2
    assert len({run.id for run in runs}) == 2
    assert pipeline.accounts()[first].settled
    assert set(pipeline.images(first)) == pipeline.rows().keys() | pipeline.failed()
    assert not pipeline.rows().keys() & pipeline.failed()
    assert before.items() <= pipeline.rows().items()


def test_a_killed_abo_run_does_not_stand_in_the_way_of_the_daemon(dagster, pipeline):
    first = pipeline.keys[0]
    with pipeline.held(pipeline.images(first)[-1]), dagster.start("abo", [script("abo"), "run"]) as abo:
        wait_until(lambda: pipeline.waiting() == 1 or not abo.running, "the run at the last batch", details=abo.tail)
        assert abo.running, abo.tail()
        (orphan,) = [run for run in dagster.runs() if run.status == "STARTED"]
        # As long as it lives it is left alone.
        look = f"Checking run {orphan.id}"
        wait_until(lambda: dagster.daemon.log.read_text().count(look) > 1, "two looks of the monitor")
        assert dagster.run(orphan.id).status == "STARTED"
        abo.kill()
    before = pipeline.rows()
    assert before
    assert dagster.wait_for_run(orphan.id).status == "FAILURE"
    assert any("that executed it is gone" in message for message in dagster.messages(orphan.id))

    ended = dagster.wait_for_backfill(dagster.launch_backfill([EMBEDDINGS]))
    assert ended.status == "COMPLETED_SUCCESS"
    pipeline.assert_complete()
    assert before.items() <= pipeline.rows().items()


def run_of(dagster: RunningDagster, backfill: str, partition: str) -> Run:
    """The run that a backfill made for a partition, once it has started."""

    def started() -> Run | None:
        runs = [run for run in dagster.backfill(backfill).runs if run.partition == partition and run.started]
        return runs[0] if runs else None

    return wait_until(started, f"a run of {partition}", details=dagster.tails)


def outcome(runs: tuple[Run, ...]) -> dict[str | None, list[str]]:
    """How the runs of each partition ended."""
    found: dict[str | None, list[str]] = {}
    for run in runs:
        found.setdefault(run.partition, []).append(run.status)
    return found
