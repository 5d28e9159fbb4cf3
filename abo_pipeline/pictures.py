"""The photographs themselves, read out of the archive to be shown.

For people's eyes only: what the model sees is read by ``embedding``.
"""

import contextlib
from typing import Self

from PIL import Image

from abo_pipeline.archive import Archive
from abo_pipeline.catalog import member_name
from abo_pipeline.decoding import decode
from abo_pipeline.download import FetchedArchive, Progress, fetch
from abo_pipeline.errors import ArchiveError, ImageError
from abo_pipeline.settings import Settings


def fetch_images(settings: Settings, progress: Progress | None = None) -> FetchedArchive:
    """Make sure that the image archive which the settings name lies on this disk.

    Raises:
        ArchiveError: it cannot be had.
        SettingsError: the state folder cannot be written to.
    """
    return fetch(settings.archive, settings.folder("archives"), progress=progress)


def open_images(settings: Settings) -> Archive:
    """The image archive which the settings name, open for reading.

    Raises:
        ArchiveError: it cannot be had, or is no readable tar.
        SettingsError: the state folder cannot be written to.
    """
    return Archive.open(fetch_images(settings).path, settings.folder("archives"))


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
