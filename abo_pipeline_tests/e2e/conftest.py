"""A pipeline with a database of its own for each module: starting Dagster takes long enough to do it once."""

from collections.abc import Iterator

import pytest

from abo_pipeline.sample import Sample
from abo_pipeline.store.embedded import EmbeddedServer
from abo_pipeline_tests.conftest import fresh_database
from abo_pipeline_tests.e2e.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, server: EmbeddedServer, sample: Sample) -> Iterator[Pipeline]:
    """One over the drawn archive, with nothing done yet."""
    with fresh_database(server) as database_url:
        pipeline = Pipeline.over(sample, tmp_path_factory.mktemp("pipeline"), database_url)
        try:
            yield pipeline
        finally:
            pipeline.close()
