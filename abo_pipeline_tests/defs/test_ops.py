"""Searching, and replaying failures, as Dagster jobs."""

from pathlib import Path

import dagster as dg
import pytest
from pydantic import ValidationError

from abo_pipeline.definitions import build_definitions
from abo_pipeline.defs.history import EMBEDDINGS
from abo_pipeline.defs.ops import SearchConfig
from abo_pipeline.errors import FailuresError, QueryError
from abo_pipeline.filters import NO_FILTER, PRODUCT_FIELDS, Filters
from abo_pipeline.hits import Match
from abo_pipeline.settings import Settings
from abo_pipeline.store import opened_store
from abo_pipeline_tests.archives import jpeg, write_images
from abo_pipeline_tests.defs.conftest import materialize, materialize_all
from abo_pipeline_tests.fakes import ColourEncoder


@pytest.fixture
def search(definitions, instance):
    """Everything is materialized; call it with the op's config, get its answer and the metadata it shows."""
    materialize_all(definitions, instance)
    job = definitions.resolve_job_def("search_job")

    def search(**config):
        result = job.execute_in_process(run_config={"ops": {"search_images": {"config": config}}}, instance=instance)
        (output,) = [event for event in result.all_node_events if event.is_successful_output]
        return result.output_for_node("search_images"), output.event_specific_data.metadata

    return search


def ids(answer: dict) -> list[str]:
    return [hit["image_id"] for hit in answer["hits"]]


def test_a_text_gives_a_table_of_hits_and_a_picture(search):
    answer, shown = search(text="red", k=3)

    assert len(ids(answer)) == 3
    assert all(image_id.startswith("red-") for image_id in ids(answer))
    assert [record.data["image_id"] for record in shown["hits"].records] == ids(answer)
    assert shown["pictures"].value.startswith("![red](data:image/png;base64,")
    assert shown["count"].value == 3


def test_a_picture_and_a_stored_image_can_be_searched_by(search, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(jpeg("blue"))

    by_picture, _ = search(image=str(tmp_path / "mine.jpg"), k=2)
    first = ids(by_picture)[0]
    by_id, _ = search(like=first, k=2, size=40)

    assert all(image_id.startswith("blue-") for image_id in ids(by_picture) + ids(by_id))
    assert first not in ids(by_id)


def test_the_space_that_searches_use_is_searched_whichever_this_code_location_embeds_into(
    search, colours, instance, encoder, monkeypatch
):
    beside = Settings.read(**colours.model_dump() | {"space": "clip"})
    materialize_all(build_definitions(beside, encoder=encoder), instance)

    with opened_store(colours) as store:
        by_default, shown = search(text="red", k=3)
        asked, _ = search(text="red", k=3, space="clip")
        store.switch_default("clip")
        after_the_switch, _ = search(text="red", k=3)
        monkeypatch.setenv("ABO_SPACE", "colours")
        by_variable, _ = search(text="red", k=3)

    assert [answer["space"] for answer in (by_default, asked, after_the_switch, by_variable)] == [
        *("colours", "clip", "clip", "colours")
    ]
    assert shown["space"].value == "colours"
    assert asked == after_the_switch
    assert by_variable == by_default


def test_a_space_that_is_not_there_is_refused_with_those_that_are(search):
    with pytest.raises(QueryError, match=r"into space nope yet\. This catalogue has colours\."):
        search(text="red", space="nope")


def test_a_mix_can_be_written_as_the_text_and_a_text_that_is_none_is_pointed_out(search):
    answer, shown = search(text='"red" + "blue" - "red"', k=3)
    one_text, _ = search(text='"red" - blue', k=3)

    assert answer["query"] == '"red" + "blue" - "red"'
    assert all(image_id.startswith("blue-") for image_id in ids(answer))
    assert shown["pictures"].value.startswith('!["red" + "blue" - "red"](data:image/png;base64,')
    assert one_text["warnings"] == [
        'The query was read as one text. A mix is written like this: "red shoe" + like:ID - 0.5*"heel".'
    ]


def test_several_fields_are_a_mix():
    config = SearchConfig(text="red", image="a b.jpg", url="https://example.org/a", like="x", plus=["y"], minus=["z"])

    assert str(config.query()) == ('"red" + image:"a b.jpg" + like:x + url:https://example.org/a + "y" - "z"')


def test_pages_folds_and_filters_are_asked_for_as_at_the_command_line(search):
    first, _ = search(text="red", k=4)
    second, shown = search(text="red", k=4, page=2)
    both, _ = search(text="red", k=8)
    # Squares of neighbouring shades look the same.
    folded, _ = search(text="red", k=2, size=40, fold=True)
    narrow, _ = search(text="red", k=2, filters={"max_width": 1199})

    assert ids(first) + ids(second) == ids(both)
    assert [record.data["rank"] for record in shown["hits"].records] == [5, 6, 7, 8]
    assert (second["page"], shown["count"].value) == (2, 4)
    assert [hit["rank"] for hit in folded["hits"]] == [1, 2]
    alike = folded["hits"][0]["folded"]
    assert alike == tuple(f"red-{n}" for n in range(1, 1 + len(alike)))
    assert len(alike) > 2
    assert (ids(narrow), narrow["filters"]) == ([], {"max_width": 1199})
    assert narrow["warnings"] == ["No image that is searched passes the filter max_width 1199."]


def test_how_good_the_match_is_stands_beside_the_hits(search):
    answer, shown = search(text="red", k=1)
    _, of_none = search(text="red", k=1, filters={"color": ["no such"]})

    assert answer["match"]["kind"] == "text"
    assert shown["match"].value == str(Match(**{name: answer["match"][name] for name in ("kind", "percentile")}))
    assert of_none["match"].value == "not measured"


def test_every_filter_of_a_search_can_be_asked_for_in_the_launchpad():
    asked = {name: ["a", "b"] for name in PRODUCT_FIELDS} | {"min_width": 1, "max_width": 2, "min_height": 3}

    config = SearchConfig(text="red", filters=asked | {"max_height": 4})

    assert config.filters.filters() == Filters(
        **dict.fromkeys(PRODUCT_FIELDS, ("a", "b")), min_width=1, max_width=2, min_height=3, max_height=4
    )
    assert SearchConfig(text="red").filters.filters() == NO_FILTER


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"page": 0}, "The page is 0; the first one is 1."),
        ({"k": 0}, "k is 0; ask for at least 1 hit."),
        ({"filters": {"min_width": -1}}, "The filter min_width is -1; a side has 0 to 2,147,483,647 pixels."),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(search, config, message):
    with pytest.raises(QueryError) as refused:
        search(text="red", **config)

    assert str(refused.value) == message


def test_nothing_to_search_by_is_refused():
    with pytest.raises(QueryError) as caught:
        SearchConfig().query()

    assert str(caught.value) == ("Nothing is asked for. Give a text, a picture, a URL or a stored image to search by.")


def test_a_wrong_type_is_refused_before_the_run(definitions, instance):
    job = definitions.resolve_job_def("search_job")

    with pytest.raises(dg.DagsterInvalidConfigError):
        job.execute_in_process(
            run_config={"ops": {"search_images": {"config": {"text": "red", "k": "many"}}}}, instance=instance
        )
    with pytest.raises(ValidationError):
        SearchConfig(text="red", k="many")


def test_failures_are_replayed_in_one_run_and_their_partitions_say_so(colours, instance):
    write_images(Path(colours.archive), {f"aa/bad-{n}.jpg": b"bad" for n in range(4)} | {"bb/good.jpg": jpeg()})
    definitions = build_definitions(colours, encoder=ColourEncoder())
    materialize(definitions, instance, "raw_archive", "image_paths")
    for key in ("00of2", "01of2"):
        materialize(definitions, instance, "image_embeddings", partition_key=key)
    failing = {
        row.partition_key: row.asset_materialization.metadata["failed"].value
        for row in instance.fetch_materializations(EMBEDDINGS, limit=10).records
        if row.asset_materialization.metadata["failed"].value
    }

    result = definitions.resolve_job_def("retry_failures_job").execute_in_process(instance=instance)

    assert result.output_for_node("replay_failures") == {"partitions": len(failing), "embedded": 0, "failed": 4}
    replayed = instance.fetch_materializations(EMBEDDINGS, limit=len(failing)).records
    assert {row.partition_key: row.asset_materialization.metadata["failed"].value for row in replayed} == failing


def test_with_nothing_that_failed_there_is_nothing_to_replay(definitions, instance):
    materialize_all(definitions, instance)

    result = definitions.resolve_job_def("retry_failures_job").execute_in_process(instance=instance)

    assert result.output_for_node("replay_failures") == {"partitions": 0, "embedded": 0, "failed": 0}


def test_a_replay_mends_what_the_check_says_of_a_partition(colours, instance):
    write_images(Path(colours.archive), {"aa/red.jpg": jpeg("red", (300, 300)), "bb/blue.jpg": jpeg("blue")})
    tight = Settings.read(**colours.model_dump() | {"max_pixels": 300 * 300 - 1, "partitions": 1})
    definitions = build_definitions(tight, encoder=ColourEncoder())
    materialize(definitions, instance, "raw_archive", "image_paths")
    materialize(definitions, instance, "image_embeddings", partition_key="00of1")

    def latest() -> tuple[str, bool]:
        key = dg.AssetCheckKey(EMBEDDINGS, "few_images_failed")
        (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        return record.partition, record.event.dagster_event.asset_check_evaluation_data.passed

    assert latest() == ("00of1", False)

    wide = build_definitions(Settings.read(**colours.model_dump() | {"partitions": 1}), encoder=ColourEncoder())
    result = wide.resolve_job_def("retry_failures_job").execute_in_process(instance=instance)

    assert result.output_for_node("replay_failures") == {"partitions": 1, "embedded": 1, "failed": 0}
    assert latest() == ("00of1", True)


def test_a_replay_does_not_make_a_refused_partition_look_done(colours, instance):
    bad = {f"aa/bad-{n}.jpg": b"bad" for n in range(12)}
    write_images(Path(colours.archive), bad | {"bb/good.jpg": jpeg()})
    definitions = build_definitions(Settings.read(**colours.model_dump() | {"partitions": 1}), encoder=ColourEncoder())
    materialize(definitions, instance, "raw_archive", "image_paths")
    materialize(definitions, instance, "image_embeddings", partition_key="00of1", raise_on_error=False)

    with pytest.raises(FailuresError, match="12 of the 13 images of partition 00of1 failed"):
        definitions.resolve_job_def("retry_failures_job").execute_in_process(instance=instance)

    assert instance.get_materialized_partitions(EMBEDDINGS) == set()
