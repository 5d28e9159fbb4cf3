"""Searching as a Dagster job, configured as in the launchpad."""

import dagster as dg
import pytest
from pydantic import ValidationError

from abo_pipeline.defs.ops import SearchConfig
from abo_pipeline.errors import QueryError
from abo_pipeline_tests.archives import jpeg
from abo_pipeline_tests.defs.conftest import materialize_all


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


@pytest.mark.parametrize(
    ("config", "count"), [({}, 0), ({"text": "red", "like": "x"}, 2), ({"text": "a", "image": "b", "like": "c"}, 3)]
)
def test_exactly_one_kind_of_query_is_asked_for(config, count):
    with pytest.raises(QueryError) as caught:
        SearchConfig(**config).query()

    assert str(caught.value) == f"Give exactly one of a text, a picture and a stored image; {count} were given."


def test_a_wrong_type_is_refused_before_the_run(definitions, instance):
    job = definitions.resolve_job_def("search_job")

    with pytest.raises(dg.DagsterInvalidConfigError):
        job.execute_in_process(
            run_config={"ops": {"search_images": {"config": {"text": "red", "k": "many"}}}}, instance=instance
        )
    with pytest.raises(ValidationError):
        SearchConfig(text="red", k="many")
