"""golden_queries and search_report: the same queries at every size, as a record and as pictures."""

from pathlib import Path
from urllib.parse import quote

import dagster as dg

from abo_pipeline.defs.conditions import follow_condition, renew_condition
from abo_pipeline.defs.history import made_for
from abo_pipeline.defs.metadata import picture, table
from abo_pipeline.defs.resources import StoreResource
from abo_pipeline.encoder import Encoder
from abo_pipeline.golden import mean_overlap, watch
from abo_pipeline.grids import thumbnail
from abo_pipeline.report import write_report
from abo_pipeline.search import ImageSearch
from abo_pipeline.settings import Settings


@dg.asset(
    deps=["embedding_index"],
    group_name="search",
    kinds={"postgres"},
    owners=["team:search"],
    automation_condition=follow_condition(),
    metadata={"dagster/table_name": "golden_hits"},
)
def golden_queries(
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
) -> dg.MaterializeResult[None]:
    """The ten best hits of the fixed queries at each size, recorded, and compared with the recording before.

    overlap@10 is the share of the earlier hits that are found again. Few newcomers are what a growing catalogue
    brings; many at once are for a person to look at.
    """
    with store.opened() as opened:
        changes = watch(ImageSearch(opened, encoder, settings), settings.queries, settings.sizes)
    overlaps = {size: mean_overlap(changes, size) for size in settings.sizes}
    return dg.MaterializeResult(
        metadata={
            **made_for(settings),
            "changes": table([change.as_row() for change in changes]),
            "queries": len(settings.queries),
            "newcomers": sum(len(change.newcomers) for change in changes),
            **{f"overlap_at_10_{size}": round(overlap, 4) for size, overlap in overlaps.items() if overlap is not None},
        }
    )


def search_report_asset(settings: Settings) -> dg.AssetsDefinition:
    """The asset; see its own description."""

    @dg.asset(
        deps=["embedding_index", "listings"],
        group_name="search",
        kinds={"matplotlib"},
        owners=["team:search"],
        automation_condition=renew_condition(settings),
    )
    def search_report(
        context: dg.AssetExecutionContext,
        settings: dg.ResourceParam[Settings],
        encoder: dg.ResourceParam[Encoder],
        store: dg.ResourceParam[StoreResource],
    ) -> dg.MaterializeResult[None]:
        """For each query a grid: a row a size, the nearest pictures in it, with similarity and title.

        Says for each size how much of it is embedded. Everything is in one HTML page, and the numbers are in a JSON
        file beside it.
        """
        with store.opened() as opened:
            search = ImageSearch(opened, encoder, settings)
            # Asked before the report is made: what is embedded meanwhile may be missing from it.
            as_of = search.space.changed_at()
            folder = settings.folder("reports", settings.catalogue, settings.space_name)
            report = write_report(search, settings.queries, settings.sizes, settings.report_k, folder)
        for size in report.coverage:
            (context.log.info if size.complete else context.log.warning)(f"size {size.size:,}: {size}")
        return dg.MaterializeResult(
            metadata={
                "page": dg.MetadataValue.url(report_url(settings, report.page)),
                "page_file": dg.MetadataValue.path(report.page),
                **{f"grid: {query}": picture(thumbnail(grid), query) for query, grid in report.grids.items()},
                "first_grid": dg.MetadataValue.path(next(iter(report.grids.values()))),
                "queries": len(report.grids),
                **made_for(settings),
                "embeddings_as_of": dg.MetadataValue.timestamp(as_of),
                **{f"coverage_{size.size}": str(size) for size in report.coverage},
                **{f"embedded_{size.size}": size.embedded for size in report.coverage},
                "numbers": table(report.numbers),
            }
        )

    return search_report


def report_url(settings: Settings, page: Path) -> str:
    """Where a browser finds a page of the reports' folder."""
    if not settings.reports_url:
        return page.as_uri()
    below = page.relative_to(settings.state_dir / "reports").as_posix()
    return f"{settings.reports_url.rstrip('/')}/{quote(below)}"
