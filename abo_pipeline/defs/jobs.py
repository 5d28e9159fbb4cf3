"""Jobs: what can be launched besides materializing assets."""

import dagster as dg

from abo_pipeline.defs.ops import search_images


@dg.job
def search_job() -> None:
    """Search the embedded images by a text, a picture or a stored image; the hits are in the op's output metadata."""
    search_images()
