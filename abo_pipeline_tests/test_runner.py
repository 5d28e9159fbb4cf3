"""A whole run in this process: what it tells, what it skips, and how it ends when something is wrong."""

import signal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from abo_pipeline import store as store_module
from abo_pipeline.defs.history import last_metadata, past_speed
from abo_pipeline.embedding import Tally
from abo_pipeline.errors import AboError, CatalogError, CheckError, FailuresError, SettingsError, StoreError
from abo_pipeline.evaluation import SizeMeasures
from abo_pipeline.runner import (
    build_indexes,
    dagster_instance,
    plan_run,
    retry_failures,
    run_pipeline,
    space_searched_instead,
)
from abo_pipeline.settings import Settings
from abo_pipeline.store import open_store, opened_store, roster
from abo_pipeline.store.golden import last_recording
from abo_pipeline.store.nearest import scope
from abo_pipeline.store.spaces import Account
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.fakes import ColourEncoder

pytestmark = pytest.mark.slow

SQUARES = {f"aa/{n:02}.jpg": jpeg((n * 8, 100, 0)) for n in range(30)} | {"bb/bad.jpg": b"bad"}


class Recorder:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.assets: dict[str, dict[str, Any]] = {}
        self.to_embed = -1
        self.chosen: list[str] = []
        self.batches: list[tuple[str, int]] = []

    def download(self, name: str, done: int, total: int | None) -> None: ...

    def indexing(self, name: str, done: int, total: int | None) -> None: ...

    def embedding(self, partition_key: str, tally: Tally) -> None:
        self.batches.append((partition_key, tally.done))

    def choosing(self, words: str) -> None:
        self.chosen.append(words)

    def building(self, words: str) -> None: ...

    def pending(self, images: int) -> None:
        self.to_embed = images

    def finished(self, asset: str, metadata: dict[str, Any]) -> None:
        self.assets[asset] = metadata


@pytest.fixture
def settings(tmp_path, database_url) -> Settings:
    return Settings.read(
        archive=str(write_images(tmp_path / "squares.tar", SQUARES)),
        database_url=database_url,
        space="colours",
        sizes="10,20",
        exact_below=0,
        partitions=4,
        queries=("red",),
    )


def run(settings: Settings, **options: Any) -> Recorder:
    recorder = Recorder()
    run_pipeline(settings, recorder, encoder=ColourEncoder(), **options)
    return recorder


def test_every_asset_is_reported_in_order_and_the_sums_are_right(settings):
    told = run(settings)

    assert list(told.assets) == [
        "raw_archive",
        "listings",
        "image_paths",
        "image_embeddings",
        "embedding_index",
        "golden_queries",
        "search_report",
    ]
    assert told.chosen == ["float32 is taken, because there is no other"]
    assert told.to_embed == 31
    assert told.assets["image_embeddings"] == {
        "embedded": 30,
        "skipped": 0,
        "failed": 1,
        "failed_before": 0,
        "removed": 0,
        "partitions_run": 4,
        "precision": "float32",
        "kept": 31,
        "total_embedded": 30,
        "total_failed": 1,
    }
    assert {key for key, _ in told.batches} == {"00of4", "01of4", "02of4", "03of4"}


def test_a_second_run_runs_no_partition(settings):
    run(settings)

    told = run(settings)

    assert (told.to_embed, told.batches) == (0, [])
    assert told.assets["image_embeddings"] == {
        "embedded": 0,
        "skipped": 30,
        "failed": 0,
        "failed_before": 1,
        "removed": 0,
        "partitions_run": 0,
        "precision": "",
        "kept": 31,
        "total_embedded": 30,
        "total_failed": 1,
    }


def test_only_partitions_with_something_to_do_are_run(settings, tmp_path):
    run(settings)
    write_images(tmp_path / "squares.tar", {**SQUARES, "cc/new.jpg": jpeg("lime")})

    told = run(settings)

    totals = told.assets["image_embeddings"]
    assert (told.to_embed, totals["partitions_run"], totals["embedded"], totals["skipped"]) == (1, 1, 1, 30)


def test_a_retry_runs_the_partitions_that_have_failures(settings):
    run(settings)

    told = run(settings, retry_failures=True)

    totals = told.assets["image_embeddings"]
    assert (told.to_embed, totals["partitions_run"], totals["failed"], totals["failed_before"]) == (1, 1, 1, 0)


def test_partitions_cut_anew_are_materialized_and_find_nothing_to_do(settings):
    run(settings)

    told = run(settings.model_copy(update={"partitions": 3}))

    totals = told.assets["image_embeddings"]
    assert (told.to_embed, totals["partitions_run"], totals["embedded"], totals["skipped"]) == (0, 3, 0, 30)


def test_dagster_knows_of_everything_that_was_run(settings):
    run(settings)

    with dagster_instance(settings) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("image_embeddings")) == {
            "00of4",
            "01of4",
            "02of4",
            "03of4",
        }
        assert instance.get_latest_materialization_event(dg.AssetKey("search_report")) is not None


def test_settings_are_remembered_once_archive_and_catalogue_have_proved_good(settings):
    run(settings)

    assert Settings.last().sizes == (10, 20)


def test_an_assets_error_is_raised_as_it_is_and_nothing_is_remembered(settings):
    with pytest.raises(CatalogError, match="None of the 31 images in squares"):
        run(settings.model_copy(update={"min_side": 5000}))

    assert Settings.last().sizes == (1_000, 10_000, 100_000)


def test_a_check_that_does_not_pass_is_an_error_in_its_own_words(settings, monkeypatch):
    from abo_pipeline import catalog
    from abo_pipeline.defs import checks

    wrong = catalog.Audit(rows=31, too_small=1, kept=31, smallest_side=10, problems=("all 31 images were kept",))
    monkeypatch.setattr(checks, "audit", lambda *_, **__: wrong)

    with pytest.raises(CheckError) as caught:
        run(settings)

    assert str(caught.value) == "image_paths did not pass its check filter_is_sound: all 31 images were kept."


def test_ctrl_c_ends_the_run_and_the_next_one_goes_on(settings):
    class Interrupted(ColourEncoder):
        def encode_images(self, images):
            if len(self.batches) == 2:
                signal.raise_signal(signal.SIGINT)
            return super().encode_images(images)

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(settings, Recorder(), encoder=Interrupted())

    totals = run(settings).assets["image_embeddings"]
    assert totals["embedded"] > 0
    assert totals["skipped"] > 0
    assert totals["total_embedded"] == 30


def test_a_space_of_another_model_stops_the_run_before_anything_is_written(settings, tmp_path):
    run(settings)
    write_images(tmp_path / "squares.tar", {"cc/other.jpg": jpeg()})
    other = ColourEncoder(model="other", fingerprint="0dd0dd0dd0dd0dd0")

    with pytest.raises(StoreError, match="Space colours holds vectors of mean-colour"):
        run_pipeline(settings.model_copy(update={"sizes": (5,)}), Recorder(), encoder=other)

    assert Settings.last().sizes == (10, 20)
    store = open_store(settings)
    (account,) = store.accounts("colours", [0])
    store.engine.dispose()
    assert (account.kept, account.embedded, account.departed) == (31, 30, 0)


OTHER = ColourEncoder(model="other", fingerprint="0dd0dd0dd0dd0dd0")


def test_a_run_into_a_space_beside_another_does_everything_there_and_nothing_to_the_first(settings):
    beside = settings.model_copy(update={"space": "beside"})
    first = run(settings).assets
    told = Recorder()

    run_pipeline(beside, told, encoder=OTHER)

    # Dagster knows each partition as materialized; what counts is that nothing is embedded in this space.
    assert told.to_embed == 31
    assert {key for key, _ in told.batches} == {"00of4", "01of4", "02of4", "03of4"}
    assert told.assets["image_embeddings"] == first["image_embeddings"]
    assert told.assets["embedding_index"]["built"] == 2
    # Its fixed queries are not compared with those of the other space.
    assert [name for name in told.assets["golden_queries"] if name.startswith("overlap")] == []
    made = [{name: told.assets[asset][name] for name in ("catalogue", "space")} for asset in MADE_FOR_A_SPACE]
    assert made == [{"catalogue": "abo", "space": "beside"}] * len(MADE_FOR_A_SPACE)
    with opened_store(settings) as store, dagster_instance(settings) as instance:
        spaces = [store.find_space(name) for name in ("colours", "beside")]
        accounts = [space.account() for space in spaces]
        recorded = [last_recording(space).answers for space in spaces]
        reports = [last_metadata(instance, "search_report", each) for each in (settings, beside)]
        speeds = [past_speed(instance, model).runs for model in ("mean-colour", "other")]
        stored = store.spaces()
    assert accounts == [Account(kept=31, embedded=30, failed=1, pending=0, departed=0)] * 2
    assert recorded[0] == recorded[1]
    assert [Path(report["page_file"]).parent.name for report in reports] == ["colours", "beside"]
    assert all(Path(report["page_file"]).is_file() for report in reports)
    assert speeds == [4, 4]
    assert [(space.name, space.model, space.sizes, space.is_default) for space in stored] == [
        ("colours", "mean-colour", (10, 20), True),
        ("beside", "other", (10, 20), False),
    ]

    again = [run(settings), Recorder()]
    run_pipeline(beside, again[1], encoder=OTHER)
    assert [(each.to_embed, each.assets["image_embeddings"]["partitions_run"]) for each in again] == [(0, 0)] * 2
    assert [each.assets["embedding_index"]["built"] for each in again] == [0, 0]


MADE_FOR_A_SPACE = ("embedding_index", "golden_queries", "search_report")


def test_a_run_into_another_space_says_what_searches_use_until_they_are_switched(settings, monkeypatch):
    beside = settings.model_copy(update={"space": "beside"})
    run(settings)
    run_pipeline(beside, Recorder(), encoder=OTHER)

    def instead() -> list[str | None]:
        return [space_searched_instead(each) for each in (settings, beside)]

    after_the_run = instead()
    with opened_store(settings) as store:
        store.switch_default("beside")
    after_the_switch = instead()
    monkeypatch.setenv("ABO_SPACE", "colours")
    with_the_variable = instead()

    assert [after_the_run, after_the_switch, with_the_variable] == [
        [None, "colours"],
        ["beside", None],
        [None, "colours"],
    ]


def test_a_space_is_not_dropped_under_a_run_that_embeds_into_it(settings, monkeypatch):
    monkeypatch.setattr(roster, "_PATIENCE_SECONDS", 0.1)
    run(settings)

    class Intruder(Recorder):
        refused: str | None = None

        def embedding(self, partition_key: str, tally: Tally) -> None:
            super().embedding(partition_key, tally)
            if self.refused is None:
                with opened_store(settings) as store, pytest.raises(StoreError) as refused:
                    store.drop_space("beside")
                self.refused = str(refused.value)

    intruder = Intruder()
    run_pipeline(settings.model_copy(update={"space": "beside"}), intruder, encoder=OTHER)

    assert intruder.refused == "A run is writing into space beside. Try again when it has ended."
    assert intruder.assets["image_embeddings"]["total_embedded"] == 30
    with opened_store(settings) as store:
        store.drop_space("beside")
        assert store.space_names() == ["colours"]


def test_a_space_that_was_dropped_is_embedded_anew_although_dagster_knows_its_partitions_as_done(settings):
    beside = settings.model_copy(update={"space": "beside"})
    run(settings)
    run_pipeline(beside, Recorder(), encoder=OTHER)
    with opened_store(settings) as store:
        store.drop_space("beside")
    told = Recorder()

    run_pipeline(beside, told, encoder=OTHER)

    assert (told.to_embed, told.assets["image_embeddings"]["embedded"]) == (31, 30)
    assert told.assets["embedding_index"]["built"] == 2


def test_a_second_run_on_the_same_state_is_refused_in_words(settings):
    class Intruder(Recorder):
        def pending(self, images: int) -> None:
            super().pending(images)
            with pytest.raises(SettingsError) as caught:
                run(settings)
            self.message = str(caught.value)

    intruder = Intruder()
    run_pipeline(settings, intruder, encoder=ColourEncoder())

    assert intruder.message == (
        f"Another run is at work on the state folder {settings.state_dir}. Wait for it, or set ABO_STATE_DIR to "
        "another folder."
    )


def test_the_password_in_an_archives_url_is_in_no_event(settings):
    with pytest.raises(AboError):
        run(settings.model_copy(update={"listings": "http://me:s3cret@127.0.0.1:9/l.tar?sig=t0ken"}))

    stored = b"".join(path.read_bytes() for path in (settings.state_dir / "dagster").rglob("*") if path.is_file())
    assert b"image_paths" in stored or b"raw_archive" in stored
    assert b"s3cret" not in stored
    assert b"t0ken" not in stored


def test_another_archive_in_the_same_catalogue_is_refused_and_in_another_one_leaves_the_first_alone(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(store_module, "_FEW_REMOVED", 3)
    run(settings)
    other = {f"cc/x{n:02}.jpg": jpeg((0, 0, n * 8)) for n in range(30)}
    elsewhere = settings.model_copy(update={"archive": str(write_images(tmp_path / "other.tar", other))})

    with pytest.raises(StoreError) as caught:
        run(elsewhere)
    run(elsewhere.model_copy(update={"catalogue": "other"}))
    again = run(settings).assets["image_embeddings"]
    meant = run(elsewhere, allow_removal=True).assets["image_embeddings"]

    assert str(caught.value) == (
        "31 of the catalogue's 31 images are not in this archive, or not kept any more, and their vectors would be "
        "removed. If this is another archive, give it a catalogue of its own with --catalogue NAME (ABO_CATALOGUE); "
        "if they are meant to go, use --allow-removal."
    )
    assert (again["embedded"], again["skipped"], again["kept"]) == (0, 30, 31)
    assert (meant["embedded"], meant["removed"], meant["kept"]) == (30, 31, 30)


def test_a_run_until_the_catalogue_embeds_nothing_and_a_plan_says_what_is_left(settings):
    told = run(settings, until="image_paths")

    plan = plan_run(settings)

    assert list(told.assets) == ["raw_archive", "listings", "image_paths"]
    assert (plan.kept, plan.embedded, plan.pending, plan.partitions, plan.minutes) == (31, 0, 31, 4, None)


def test_a_plan_goes_by_the_speed_of_past_runs_on_this_machine(settings, tmp_path):
    run(settings)
    write_images(tmp_path / "squares.tar", {**SQUARES, "cc/new.jpg": jpeg("lime")})
    run(settings, until="image_paths")

    plan = plan_run(settings)

    assert (plan.pending, plan.partitions) == (1, 1)
    assert (plan.speed.images, plan.speed.runs) == (31, 4)
    assert plan.minutes == pytest.approx(1 / plan.speed.images_per_second / 60)


def test_without_a_catalogue_there_is_no_plan(settings):
    with pytest.raises(CatalogError) as refused:
        plan_run(settings)

    assert str(refused.value) == (
        "The catalogue abo is empty so far. `abo run --until image_paths` fetches the archive and reads it, without "
        "embedding anything; then ask for the plan again."
    )


def test_retrying_failures_tries_these_and_nothing_else_and_renews_what_is_built_on_them(settings):
    run(settings)
    store = open_store(settings)
    space = store.find_space("colours")
    # An image that is merely pending is not this command's business.
    space.remove(["00"])
    store.engine.dispose()
    told = Recorder()

    retry_failures(settings, told, encoder=ColourEncoder())

    assert told.to_embed == 1
    assert list(told.assets) == ["image_embeddings"]
    found = told.assets["image_embeddings"]
    assert (found["partitions"], found["embedded"], found["failed"]) == (1, 0, 1)
    assert (found["kept"], found["total_embedded"], found["total_failed"]) == (31, 29, 1)


def test_a_retried_image_that_can_be_read_now_becomes_a_vector(settings):
    small = settings.model_copy(update={"max_file_bytes": 20})
    run(small.model_copy(update={"max_failed_share": 1.0}), until="image_embeddings")
    told = Recorder()

    retry_failures(settings, told, encoder=ColourEncoder())

    found = told.assets["image_embeddings"]
    assert (told.to_embed, found["embedded"], found["failed"]) == (31, 30, 1)
    assert list(told.assets) == ["image_embeddings", "embedding_index", "golden_queries", "search_report"]


def test_a_partition_of_which_too_many_failed_is_refused_by_every_run_and_not_just_the_first(settings):
    small = settings.model_copy(update={"max_file_bytes": 20, "partitions": 1})

    for _ in range(2):
        with pytest.raises(FailuresError, match="31 of the 31 images of partition 00of1 failed"):
            run(small)


# --- Indexes by themselves ---


def rebuilt(settings: Settings, **options: Any) -> tuple[Recorder, dict[str, Any]]:
    recorder = Recorder()
    return recorder, build_indexes(settings, recorder, encoder=ColourEncoder(), **options)


def test_indexes_are_built_by_another_strategy_and_nothing_else_is_done(settings):
    settings = settings.model_copy(update={"exact_below": 0})
    run(settings)
    other = settings.model_copy(update={"strategy": "ivfflat"})

    told, metadata = rebuilt(other)

    assert list(told.assets) == ["embedding_index"]
    assert told.assets["embedding_index"] == metadata
    rows = [(row["size"], row["strategy"], row["built"], row["effort_at_10"]) for row in metadata["indexes"]]
    assert rows == [(10, "ivfflat", True, 1), (20, "ivfflat", True, 1)]
    assert Settings.last().strategy == "ivfflat"
    with opened_store(settings) as store:
        space = store.find_space("colours")
        assert [scope(space, size).strategy for size in (10, 20)] == ["ivfflat"] * 2
    assert rebuilt(other)[1]["built"] == 0


def test_only_the_sizes_that_are_named_are_built_and_the_others_stay(settings):
    settings = settings.model_copy(update={"exact_below": 0})
    run(settings)

    _, metadata = rebuilt(settings, sizes=[20], rebuild=True)
    _, other = rebuilt(settings.model_copy(update={"strategy": "bit"}), sizes=[10])

    assert [(row["size"], row["built"]) for row in metadata["indexes"]] == [(20, True)]
    assert [(row["size"], row["strategy"]) for row in other["indexes"]] == [(10, "bit")]
    with opened_store(settings) as store:
        space = store.find_space("colours")
        assert [scope(space, size).strategy for size in (10, 20)] == ["bit", "hnsw"]


def test_a_size_that_is_none_of_the_settings_is_refused_and_nothing_is_remembered(settings):
    run(settings)

    with pytest.raises(SettingsError) as refused:
        rebuilt(settings.model_copy(update={"strategy": "bit"}), sizes=[10, 11])

    assert str(refused.value) == (
        "11 is none of the sizes 10, 20. To have it beside them: ABO_SIZES=10,11,20, or abo run --sizes 10,11,20."
    )
    assert Settings.last().strategy == "hnsw"


def test_an_index_that_misses_the_target_is_an_error_with_the_remedy_and_is_not_remembered(settings, monkeypatch):
    run(settings)
    monkeypatch.setattr(SizeMeasures, "meets", lambda _, target: target > 1)

    with pytest.raises(CheckError) as failed:
        rebuilt(settings.model_copy(update={"strategy": "bit"}))

    assert str(failed.value) == (
        "embedding_index did not pass its check recall_meets_target: below 0.99 at size(s) [10, 20] with the largest "
        "effort there is: choose another strategy (`abo index --strategy NAME`, ABO_STRATEGY; exact finds "
        "everything), or a lower ABO_RECALL_TARGET."
    )
    assert Settings.last().strategy == "hnsw"
