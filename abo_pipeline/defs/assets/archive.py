"""raw_archive: the images' tar on this disk, checked and indexed."""

from functools import partial

import dagster as dg

from abo_pipeline.archive import Archive
from abo_pipeline.defs.resources import Progress
from abo_pipeline.download import local_path
from abo_pipeline.pictures import fetch_images
from abo_pipeline.settings import Settings


@dg.asset(group_name="archive", kinds={"tar"}, owners=["team:search"])
def raw_archive(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[None]:
    """The image archive: fetched if it is not here, checked, and indexed by byte offset; never unpacked.

    A download goes on where it was cut off. The index, a parquet file beside the tar, is made anew only when the tar
    changed.
    """
    name = local_path(settings.archive, settings.folder("archives")).name
    fetched = fetch_images(settings, partial(progress.download, name))
    context.log.info(f"{fetched.path}: {'fetched' if fetched.fetched else 'already here'}, {fetched.bytes:,} bytes")
    with Archive.open(
        fetched.path,
        settings.folder("archives"),
        progress=partial(progress.indexing, name),
    ) as archive:
        return dg.MaterializeResult(
            metadata={
                "source": fetched.source,
                "path": dg.MetadataValue.path(fetched.path),
                "fetched": fetched.fetched,
                "bytes": fetched.bytes,
                "sha256": fetched.sha256,
                "index": dg.MetadataValue.path(archive.index_path),
                "members": len(archive.index),
                "left_out": dg.MetadataValue.json(archive.skipped),
            },
            data_version=dg.DataVersion(fetched.sha256),
        )
