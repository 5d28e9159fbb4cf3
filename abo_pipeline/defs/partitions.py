"""How the embeddings are cut into partitions. What a partition holds is for ``sampling``."""

import dagster as dg

from abo_pipeline.sampling import partition_keys
from abo_pipeline.settings import Settings


def image_partitions(settings: Settings) -> dg.StaticPartitionsDefinition:
    """Ranges of the sample key, in its order: the first few are already a fair sample of the whole catalogue.

    Their number may change without touching what is stored, since rows carry the key itself; Dagster then shows the new
    partitions as missing until they have been run, which finds nothing to do.
    """
    return dg.StaticPartitionsDefinition(partition_keys(settings.partitions))
