"""A code location for Dagster to load by its name: that of the pipeline, with colours for vectors."""

import dagster as dg

from abo_pipeline.definitions import build_definitions
from abo_pipeline_tests.fakes import ColourEncoder


def definitions() -> dg.Definitions:
    """What the variables say, when it is loaded."""
    return build_definitions(encoder=ColourEncoder())
