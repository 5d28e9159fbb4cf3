"""embedding_index: how each size is searched, and how well."""

from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from abo_pipeline.defs.conditions import follow_condition
from abo_pipeline.defs.history import made_for
from abo_pipeline.defs.metadata import picture, table
from abo_pipeline.defs.resources import Progress, StoreResource
from abo_pipeline.encoder import Encoder
from abo_pipeline.errors import SettingsError
from abo_pipeline.evaluation import KS, SizeMeasures, measure_sizes
from abo_pipeline.grids import thumbnail
from abo_pipeline.plots import recall_figure
from abo_pipeline.sampling import cutoff
from abo_pipeline.settings import Settings
from abo_pipeline.store.indexes import IndexStatus, build_index, drop_lost_indexes, drop_sizes_but
from abo_pipeline.store.strategies import NAMES


class IndexConfig(dg.Config):
    """What a run may be told."""

    strategy: str | None = Field(
        default=None, description=f"One of {', '.join(NAMES)}; unset for what ABO_STRATEGY says"
    )
    sizes: list[int] | None = Field(default=None, description="Only these of the sizes; unset for all")
    rebuild: bool = Field(default=False, description="Build anew what is there, as after damage or an upgrade")

    def chosen(self, settings: Settings) -> tuple[str, list[int]]:
        """The strategy, and the sizes to build.

        Raises:
            SettingsError: there is no such strategy or size.
        """
        strategy, sizes = self.strategy or settings.strategy, self.sizes or list(settings.sizes)
        if strategy not in NAMES:
            raise SettingsError(f"There is no index strategy {strategy!r}. There are {', '.join(NAMES)}.")
        if unknown := sorted(set(sizes) - set(settings.sizes)):
            every = ",".join(map(str, sorted({*settings.sizes, *unknown})))
            raise SettingsError(
                f"{unknown[0]:,} is none of the sizes {', '.join(f'{size:,}' for size in settings.sizes)}. "
                f"To have it beside them: ABO_SIZES={every}, or abo run --sizes {every}."
            )
        return strategy, sizes


@dg.asset(
    deps=[dg.AssetDep("image_embeddings", partition_mapping=dg.AllPartitionMapping())],
    group_name="embeddings",
    kinds={"postgres"},
    owners=["team:search"],
    automation_condition=follow_condition(),
)
def embedding_index(
    config: IndexConfig,
    image_paths: pl.DataFrame,
    settings: dg.ResourceParam[Settings],
    encoder: dg.ResourceParam[Encoder],
    store: dg.ResourceParam[StoreResource],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[None]:
    """How each size is searched: by an index over the images up to the size's last sample key, or exactly.

    Not built over vectors of another model or length. An index that is there and valid is kept; one that is replaced
    serves until the new one is valid. Recall is measured against exact search, for pictures and for texts, and the
    effort of searches raised until it is as high as it is to be; few vectors are searched exactly.
    """
    strategy, sizes = config.chosen(settings)
    with store.opened() as opened:
        space = opened.open_space(settings.space_name, encoder)
        drop_lost_indexes(space, progress.building)
        # The partitions' own checks block nothing here: partitions and index are never made by the same run.
        space.require_sound()
        statuses = [
            build_index(
                space,
                size,
                cutoff(image_paths["sample_key"], size),
                memory_mb=settings.index_memory_mb,
                strategy=strategy,
                exact_below=settings.exact_below,
                rebuild=config.rebuild,
                progress=progress.building,
            )
            for size in sizes
        ]
        # Who asks for some sizes has said nothing of the others.
        forgotten = [] if config.sizes else drop_sizes_but(space, list(settings.sizes), progress.building)
        measures = {found.size: found for found in measure_sizes(space, encoder, settings, progress.building)}
    return dg.MaterializeResult(
        metadata={
            **made_for(settings),
            "indexes": table([_row(status, measures.get(status.size)) for status in statuses]),
            "sizes_dropped": ", ".join(map(str, forgotten)),
            "built": sum(status.built for status in statuses),
            "bytes": sum(status.bytes for status in statuses),
            "seconds": round(sum(status.seconds for status in statuses), 2),
            **{f"rows_{status.size}": status.rows for status in statuses},
            **{f"strategy_{status.size}": status.strategy for status in statuses},
            **_measured(list(measures.values())),
        }
    )


def _row(status: IndexStatus, measures: SizeMeasures | None) -> dict[str, Any]:
    """A size's index as a row of the table."""
    efforts = measures.efforts if measures else {}
    return {
        "size": status.size,
        "rows": status.rows,
        "strategy": status.strategy,
        "why": status.reason,
        **{f"effort_at_{k}": efforts.get(k) for k in KS},
        **(_recalls(measures) if measures else {}),
        "built": status.built,
        "seconds": round(status.seconds, 2),
        "bytes": status.bytes,
        "valid": status.valid,
        "ready": status.ready,
        "name": status.name or "none",
    }


def _recalls(measures: SizeMeasures) -> dict[str, float]:
    return {f"{kind}_recall_at_{k}": round(recall, 4) for (kind, k), recall in measures.recalls().items()}


def _measured(measures: list[SizeMeasures]) -> dict[str, Any]:
    """What was measured, as numbers by themselves, which Dagster plots over time, and as a picture."""
    if not measures:
        return {}
    numbers = {f"{name}_{found.size}": recall for found in measures for name, recall in _recalls(found).items()}
    return numbers | {"recall_and_latency": picture(thumbnail(recall_figure(measures)), "recall against latency")}
