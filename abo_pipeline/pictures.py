"""The photographs themselves, read out of the archive to be shown.

For people's eyes only: what the model sees is read by ``embedding``.
"""

import contextlib
from typing import Self

import polars as pl
from PIL import Image

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import member_name
from abo_pipeline.decoding import decode
from abo_pipeline.download import FetchedArchive, Progress, fetch
from abo_pipeline.errors import ArchiveError, ImageError
from abo_pipeline.settings import Settings
from abo_pipeline.storage import is_local


def fetch_images(
    settings: Settings, progress: Progress | None = None, *, refresh: bool = False, sha256: str | None = None
) -> FetchedArchive:
    """Make sure that the image archive which the settings name lies on this disk.

    Args:
        settings: of the run.
        progress: told of what arrives.
        refresh: as ``fetch`` takes it.
        sha256: likewise.

    Raises:
        ArchiveError: it cannot be had.
        SettingsError: the state folder cannot be written to.
    """
    folder = settings.folder("archives")
    return fetch(settings.archive, folder, progress=progress, refresh=refresh, sha256=sha256)


def open_images(settings: Settings, catalogue: pl.DataFrame | None = None, *, sha256: str | None = None) -> Archive:
    """The image archive which the settings name, open for reading.

    Each machine has its own copy of an archive that comes from a URL, and one machine may have taken a newer version
    when the copy of another is still the old one. So whoever knows which version is wanted says so, by what was read
    from it or by its checksum, and a copy that is not that version is refreshed.

    Args:
        settings: of the run.
        catalogue: images that are expected in it, with the columns of ``catalog.SCHEMA``.
        sha256: as ``fetch`` takes it.

    Raises:
        ArchiveError: it cannot be had, or is no readable tar.
        SettingsError: the state folder cannot be written to.
    """
    folder = settings.folder("archives")
    archive = Archive.open(fetch_images(settings, sha256=sha256).path, folder)
    if catalogue is None or is_local(settings.archive) or _holds(archive, catalogue):
        return archive
    archive.close()
    return Archive.open(fetch_images(settings, refresh=True).path, folder)


def _holds(archive: Archive, catalogue: pl.DataFrame) -> bool:
    """Whether each image of the catalogue lies where, and is what, it was."""
    return catalogue.join(archive.index, on=["offset", "size", "digest"], how="anti").is_empty()


class Pictures:
    """Photographs by their path in the catalogue.

    Args:
        archive: an image archive.
        max_pixels: a larger picture is not unpacked.
    """

    def __init__(self, archive: Archive, *, max_pixels: int) -> None:
        self._archive = archive
        self._max_pixels = max_pixels

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The photographs of the archive which the settings name."""
        return cls(open_images(settings), max_pixels=settings.max_pixels)

    def get(self, path: str) -> Image.Image | None:
        """The photograph of a catalogue path; None if it is gone or broken, which a grid shows as a blank."""
        with contextlib.suppress(ArchiveError, ImageError):
            return decode(self._archive.read(member_name(path)), max_pixels=self._max_pixels)
        return None
