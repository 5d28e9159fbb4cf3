"""Jobs: what can be launched besides materializing assets one by one."""

import dagster as dg

from abo_pipeline.defs.assets.catalog import image_paths
from abo_pipeline.defs.checks import WHOLE_CHECKS
from abo_pipeline.defs.ops import SearchConfig, replay_failures, search_images


# The launchpad opens with this question in it; another one is a change of a line.
@dg.job(config=dg.RunConfig(ops={"search_images": SearchConfig(text="red leather office chair")}))
def search_job() -> None:
    """Search the embedded images by a text, a picture, a stored image or a mix; the output's metadata has the hits."""
    search_images()


@dg.job
def retry_failures_job() -> None:
    """Try the failed images again, of all partitions in one run; nothing else is embedded."""
    replay_failures(image_paths.to_source_asset())


refresh_job = dg.define_asset_job(
    "refresh_job",
    selection=["raw_archive", "listings", "image_paths"],
    config={"ops": {asset: {"config": {"refresh": True}} for asset in ("raw_archive", "listings")}},
    description="Fetch the archives if they changed, and read the catalogue again. What is new is pending afterwards.",
)

embed_job = dg.define_asset_job(
    "embed_job",
    selection=["image_embeddings"],
    description="Embed what is pending in a partition.",
)

report_job = dg.define_asset_job(
    "report_job",
    selection=["embedding_index", "golden_queries", "search_report"],
    description="Renew the indexes, the watch over the fixed queries, and the report.",
)

ladder_job = dg.define_asset_job(
    "ladder_job",
    selection=["storage_ladder"],
    description="Measure the ways to store and index the vectors. Takes minutes; nothing else depends on it.",
)

checks_job = dg.define_asset_job(
    "checks_job",
    selection=dg.AssetSelection.checks(*WHOLE_CHECKS),
    description="Look whether index, sizes, fixed queries and report are still as they should be.",
)

JOBS = (search_job, retry_failures_job, refresh_job, embed_job, report_job, ladder_job, checks_job)
