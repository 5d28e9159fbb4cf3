"""storage_ladder: the ways to store and index a space's vectors, each with what it costs and what it finds."""

import dagster as dg
from pydantic import Field

from abo_pipeline.defs.history import made_for
from abo_pipeline.defs.metadata import picture, table
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.encoder import Encoder
from abo_pipeline.grids import thumbnail
from abo_pipeline.ladder import RUNGS, measure_ladder, write_ladder
from abo_pipeline.settings import Settings


class LadderConfig(dg.Config):
    """What a run may be told."""

    size: int | None = Field(
        default=None, description="MAX_IMAGES; unset for the largest size of the settings of which nothing is pending"
    )
    rungs: list[str] | None = Field(
        default=None, description=f"Only these of {', '.join(rung.name for rung in RUNGS)}; unset for all"
    )


# Nobody waits for it, and it takes minutes: no condition, and no job but its own.
@dg.asset(deps=["embedding_index"], group_name="search", kinds={"postgres", "matplotlib"}, owners=["team:search"])
def storage_ladder(
    config: LadderConfig,
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[None]:
    """The ways to store and index vectors, side by side: bytes, build seconds, recall@10, p50 and p95.

    Each is built on a scratch table with a copy of the vectors, which is dropped afterwards; the indexes in use are not
    touched. Ends with a recommendation, which nothing follows by itself.
    """
    with store.opened() as opened:
        space = opened.open_space(settings.space_name, encoder)
        ladder = measure_ladder(
            space, encoder, settings, size=config.size, rungs=config.rungs, progress=progress.building
        )
    files = write_ladder(ladder, settings.folder("reports", settings.catalogue, settings.space_name, "ladder"))
    advice = ladder.advice
    return dg.MaterializeResult(
        metadata={
            "recommendation": dg.MetadataValue.md(advice.words),
            "recommended": advice.rung or "none",
            "rungs": table([rung.as_row() for rung in ladder.rungs]),
            "left_out": table([{"rung": name, "why": reason} for name, reason in ladder.left_out.items()]),
            "recall_time_and_bytes": picture(thumbnail(files.plot), "recall against time, and bytes"),
            "plot_file": dg.MetadataValue.path(files.plot),
            "numbers_file": dg.MetadataValue.path(files.numbers),
            "size": ladder.size,
            "rows": ladder.rows,
            **made_for(settings),
        }
    )
