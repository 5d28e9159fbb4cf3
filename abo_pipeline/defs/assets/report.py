"""search_report: the same queries at every size, as pictures."""

import dagster as dg

from abo_pipeline.defs.metadata import picture, table
from abo_pipeline.defs.resources import StoreResource
from abo_pipeline.encoder import Encoder
from abo_pipeline.grids import thumbnail
from abo_pipeline.report import write_report
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings


@dg.asset(
    deps=["embedding_index", "listings"],
    group_name="search",
    kinds={"matplotlib"},
    owners=["team:search"],
)
def search_report(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
) -> dg.MaterializeResult[None]:
    """For each query a grid: a row a size, the nearest pictures in it, with similarity and title.

    Says for each size how much of it is embedded. Everything is in one HTML page, and the numbers are in a JSON file
    beside it.
    """
    with store.opened() as opened:
        search = ImageSearch(opened, encoder, settings)
        folder = settings.folder("reports", settings.catalogue, settings.space_name)
        report = write_report(search, settings.queries, settings.sizes, settings.report_k, folder)
    for size in report.coverage:
        (context.log.info if size.complete else context.log.warning)(f"size {size.size:,}: {size}")
    query, grid = next(iter(report.grids.items()))
    return dg.MaterializeResult(
        metadata={
            "grid": picture(thumbnail(grid), query),
            "first_grid": dg.MetadataValue.path(grid),
            "page": dg.MetadataValue.path(report.page),
            "queries": len(report.grids),
            **{f"coverage_{size.size}": str(size) for size in report.coverage},
            "numbers": table(report.numbers),
        }
    )
