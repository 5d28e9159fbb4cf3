"""A fresh Dagster with the laptop's configuration, and everything that a person does in its UI on the first day."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import member_name
from abo_pipeline.hits import LikeQuery
from abo_pipeline.search import ImageSearch
from abo_pipeline_tests.conftest import NOTHING_IS_SKIPPED
from abo_pipeline_tests.e2e.harness import Backfill, GraphQLError, RunningDagster, running_dagster
from abo_pipeline_tests.e2e.pipeline import CATALOGUE, EMBEDDINGS, UNREADABLE, Pipeline
from abo_pipeline_tests.e2e.screenshots import Pages, browser, chromium

pytestmark = pytest.mark.slow

ASSETS = {*CATALOGUE, EMBEDDINGS, "embedding_index", "golden_queries", "search_report", "storage_ladder"}


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> Iterator[RunningDagster]:
    """Webserver and daemon; the configuration is the laptop's."""
    with running_dagster(tmp_path_factory.mktemp("home"), pipeline.environment) as dagster:
        yield dagster


@pytest.fixture(scope="module")
def filled(dagster: RunningDagster) -> Backfill:
    """ "Materialize all", from nothing, once it has ended."""
    return dagster.wait_for_backfill(dagster.launch_backfill(dagster.assets()))


@pytest.fixture(scope="module")
def pages(dagster: RunningDagster, filled: Backfill) -> Iterator[Pages]:
    """A browser that looks at it."""
    del filled
    if chromium() is None and not NOTHING_IS_SKIPPED:
        pytest.skip("there is no chromium on this machine")
    with browser(dagster.url) as pages:
        yield pages


def test_materialize_all_from_nothing_brings_every_asset_in_order(filled, pipeline):
    assert (filled.status, filled.error) == ("COMPLETED_SUCCESS", None)
    assert {(run.status, run.job) for run in filled.runs} == {("SUCCESS", "__ASSET_JOB")}

    # Each asset once, the embeddings once a partition, and none before what it builds on has ended.
    made = [(asset, run.partition) for run in filled.runs for asset in run.assets]
    assert sorted(made, key=str) == sorted(
        [(asset, None) for asset in ASSETS - {EMBEDDINGS}] + [(EMBEDDINGS, key) for key in pipeline.keys], key=str
    )
    (before,) = [run for run in filled.runs if "image_paths" in run.assets]
    (after,) = [run for run in filled.runs if "embedding_index" in run.assets]
    between = sorted((run for run in filled.runs if EMBEDDINGS in run.assets), key=lambda run: run.started)
    assert before.ended <= between[0].started
    assert max(run.ended for run in between) <= after.started
    # A run that embeds holds a model: from the very first on they are one at a time, in the order of the sample key.
    assert [run.partition for run in between] == pipeline.keys
    assert all(earlier.ended <= later.started for earlier, later in pairwise(between))

    pipeline.assert_complete()


def test_every_check_passed_but_for_a_warning_of_the_files_that_cannot_be_read(dagster, filled, pipeline):
    del filled
    latest = {}
    for asset in dagster.assets():
        for execution in dagster.check_executions(asset):
            latest.setdefault((execution.name, execution.partition), execution)

    assert {name for name, _ in latest} == {name for asset in ASSETS for name in dagster.checks(asset)}
    partitioned = [name for name, partition in latest if partition == pipeline.keys[0]]
    assert set(partitioned) == set(dagster.checks(EMBEDDINGS))
    assert {key for key in latest if key[1]} == {(name, key) for name in partitioned for key in pipeline.keys}
    not_passed = {key: execution for key, execution in latest.items() if execution.status != "SUCCEEDED"}
    assert {(name, execution.severity) for (name, _), execution in not_passed.items()} == {
        ("few_images_failed", "WARN")
    }
    assert sum(int(execution.description.split()[0]) for execution in not_passed.values()) == UNREADABLE


def test_the_indexes_are_valid_and_the_report_is_there(filled, pipeline):
    del filled
    assert pipeline.indexes() == dict.fromkeys(pipeline.settings.sizes, True)
    reports = pipeline.settings.state_dir / "reports" / "abo" / "small_clip"
    assert (reports / "index.html").is_file()
    assert len(list(reports.glob("*.png"))) == len(pipeline.settings.queries)


def test_the_launchpad_searches_by_text_by_a_picture_and_by_a_stored_image(
    dagster, filled, pipeline, encoder, tmp_path
):
    del filled
    config = dagster.default_config("search_job")
    op = config["ops"]["search_images"]["config"]
    assert op["k"] == 10

    stored, path = pipeline.catalogue.filter(image_id=next(iter(pipeline.rows()))).select("image_id", "path").row(0)
    with Archive.open(pipeline.sample.archive) as archive:
        (tmp_path / "photo.jpg").write_bytes(archive.read(member_name(path)))
    # As it opens there is a question in it that works; for the others its line is exchanged.
    asked = {
        "text": config,
        "image": {"ops": {"search_images": {"config": {"k": 10, "image": str(tmp_path / "photo.jpg")}}}},
        "like": {"ops": {"search_images": {"config": {"k": 10, "like": stored}}}},
    }
    launched = {name: dagster.launch_run("search_job", config=config) for name, config in asked.items()}
    outputs = {}
    for name, run_id in launched.items():
        run = dagster.wait_for_run(run_id)
        assert run.status == "SUCCESS", dagster.messages(run_id)
        outputs[name] = dagster.output(run_id)

    with pipeline.store() as store:
        search = ImageSearch(store, encoder, pipeline.settings)
        expected = {
            "text": search(op["text"], 10),
            "image": search(tmp_path / "photo.jpg", 10),
            "like": search(LikeQuery(stored), 10),
        }
    for name, output in outputs.items():
        assert [hit["image_id"] for hit in output["hits"]] == [hit.image_id for hit in expected[name]]
        assert output["count"] == 10
        assert output["pictures"].startswith("![")
        assert "](data:image/" in output["pictures"]
    for name in ("image", "like"):
        assert stored not in [hit["image_id"] for hit in outputs[name]["hits"]]


def test_a_launch_with_a_wrong_configuration_is_refused_with_the_reason(dagster):
    with pytest.raises(GraphQLError, match=r"RunConfigValidationInvalid: .*search_images:config:k.*\"ten\""):
        dagster.launch_run("search_job", config={"ops": {"search_images": {"config": {"k": "ten"}}}})


def test_schedules_ask_for_what_is_missing_in_order_and_for_nothing_when_all_is_there(dagster, filled, pipeline):
    del filled
    assert dagster.schedules() == ["fill_partitions", "renew_report", "run_checks"]
    assert dagster.dry_run_schedule("fill_partitions").skip_reason == "nothing is to do"
    assert dagster.dry_run_schedule("renew_report").skip_reason.startswith("nothing was embedded since the report of")
    assert len(dagster.dry_run_schedule("run_checks").requests) == 1

    before = pipeline.rows()
    first, last = pipeline.keys
    lost = [next(image for image in pipeline.images(key) if image in before) for key in (last, first)]
    pipeline.forget(*lost)
    tick = dagster.dry_run_schedule("fill_partitions")
    assert [tags["dagster/partition"] for _, tags in tick.requests] == [first, last]
    assert tick.skip_reason is None

    # What the tick asks for mends it, and touches nothing else.
    runs = [dagster.launch_run("embed_job", tags=tags) for _, tags in tick.requests]
    assert [dagster.wait_for_run(run).status for run in runs] == ["SUCCESS", "SUCCESS"]
    pipeline.assert_complete()
    after = pipeline.rows()
    assert {image for image in before if before[image] != after[image]} == set(lost)
    assert dagster.dry_run_schedule("fill_partitions").skip_reason == "nothing is to do"
    assert len(dagster.dry_run_schedule("renew_report").requests) == 1


def test_the_report_shows_a_grid_as_a_picture(pages, pipeline, tmp_path):
    picture = pages.report(pipeline.settings.queries[0])
    assert picture.evaluate_all("images => images.map(image => [image.complete, image.naturalWidth > 300])") == [
        [True, True]
    ]
    look_at(pages, tmp_path / "report.png")


def test_the_graph_shows_every_asset_with_its_group(pages, tmp_path):
    pages.asset_graph()
    shown = pages.page.inner_text("body")
    assert {asset for asset in ASSETS if asset not in shown} == set()
    assert {group for group in ("archive", "catalogue", "embeddings", "search") if group not in shown} == set()
    look_at(pages, tmp_path / "graph.png")


def test_a_partition_shows_what_came_of_it(pages, pipeline, tmp_path):
    key = pipeline.keys[0]
    pages.partition(key)
    shown = pages.page.inner_text("body")
    assert key in shown
    for number in ("kept", "embedded", "failed", "images_per_second", "fingerprint"):
        assert number in shown
    look_at(pages, tmp_path / "partition.png")


def test_the_checks_of_a_partition_are_shown(pages, tmp_path):
    pages.checks(EMBEDDINGS, "every_image_is_accounted_for")
    assert "vectors_have_unit_length" in pages.page.inner_text("body")
    look_at(pages, tmp_path / "checks.png")


def look_at(pages: Pages, path: Path) -> None:
    """Keep a picture of the page, for whoever wants to know why a test failed; it must show something."""
    pages.shoot(path)
    assert path.stat().st_size > 10_000
