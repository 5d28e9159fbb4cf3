"""raw_archive: the images' tar on this disk, checked and indexed."""

from functools import partial

import dagster as dg

from abo_pipeline.archive import Archive
from abo_pipeline.defs.history import last_metadata
from abo_pipeline.defs.resources import Progress
from abo_pipeline.download import fetched_stamp, local_path
from abo_pipeline.pictures import fetch_images
from abo_pipeline.settings import Settings
from abo_pipeline.storage import is_local, public_url

UNKNOWN_VERSION = "unknown"


class ArchiveConfig(dg.Config):
    """What a run may be told."""

    refresh: bool = False
    """Take what is at the archive's URL now, unless that is what was fetched. A file is always taken as it is."""


@dg.asset(group_name="archive", kinds={"tar"}, owners=["team:search"])
def raw_archive(
    context: dg.AssetExecutionContext,
    config: ArchiveConfig,
    settings: dg.ResourceParam[Settings],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[None]:
    """The image archive: fetched if it is not here, checked, and indexed by byte offset; never unpacked.

    A download goes on where it was cut off. What was fetched stays in use, even if the original is changed later: a run
    with ``refresh`` goes over to the new version, and image_paths then says how many images are new, changed or gone.
    The index, a parquet file beside the tar, is made anew only when the tar changed.
    """
    folder = settings.folder("archives")
    name = local_path(settings.archive, folder).name
    fetched = fetch_images(settings, partial(progress.download, name), refresh=config.refresh)
    context.log.info(f"{fetched.path}: {'fetched' if fetched.fetched else 'already here'}, {fetched.bytes:,} bytes")
    with Archive.open(
        fetched.path,
        folder,
        progress=partial(progress.indexing, name),
    ) as archive:
        return dg.MaterializeResult(
            metadata={
                "source": fetched.source,
                "path": dg.MetadataValue.path(fetched.path),
                "fetched": fetched.fetched,
                "bytes": fetched.bytes,
                "sha256": fetched.sha256,
                # The sensor archive_changed compares it with what is at the source.
                "version": fetched_stamp(settings.archive, folder) or UNKNOWN_VERSION,
                "index": dg.MetadataValue.path(archive.index_path),
                "members": len(archive.index),
                "left_out": dg.MetadataValue.json(archive.skipped),
            },
            data_version=dg.DataVersion(fetched.sha256),
        )


def source_of(settings: Settings) -> str:
    """Where the archive comes from, as ``raw_archive`` says it: a path, or a URL without what may be secret."""
    if is_local(settings.archive):
        return str(local_path(settings.archive, settings.folder("archives")))
    return public_url(settings.archive)


def taken_archive(instance: dg.DagsterInstance) -> dict[str, str]:
    """Metadata that say of which version of which archive something was made; empty if raw_archive was never made."""
    taken = last_metadata(instance, "raw_archive")
    return {"archive": taken["source"], "archive_version": taken["version"]} if taken else {}


def taken_sha256(instance: dg.DagsterInstance, settings: Settings) -> str | None:
    """The SHA-256 of what raw_archive was last materialized as, maybe on another machine.

    None where it makes no difference: it was never materialized, or from another place, or the archive is a file, which
    is always taken as it is.
    """
    if is_local(settings.archive):
        return None
    taken = last_metadata(instance, "raw_archive")
    return taken["sha256"] if taken.get("source") == source_of(settings) else None
