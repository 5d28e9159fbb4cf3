"""Where data frames lie between assets: one parquet file an asset. Vectors do not pass here; they go to Postgres.

The place is ``ABO_ASSETS``, a folder or an object store that the machines which run the pipeline share; how an object
store is reached is in ``storage``.
"""

import io
from pathlib import Path
from typing import Self

import dagster as dg
import polars as pl

from abo_pipeline.download import write_parquet
from abo_pipeline.errors import SettingsError, StorageError
from abo_pipeline.settings import Settings
from abo_pipeline.storage import file_system, is_local, public_url, translated

_REMEDY = "Check ABO_ASSETS, and what this machine may do there."


class ParquetIOManager(dg.IOManager):
    """Keeps an unpartitioned data frame as ``<place>/<asset>.parquet``, replaced as a whole.

    No ``ConfigurableIOManager``: Dagster shows the fields of one in the UI, and a URL may hold a password.

    Args:
        place: a folder, or a URL that fsspec knows. Object stores show a new file only when it is whole; other file
            systems that fsspec reaches, such as sftp, may not.
    """

    def __init__(self, place: str) -> None:
        self._place = place.rstrip("/")

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The frames of the catalogue that the settings name: each catalogue has a folder of its own."""
        return cls(settings.frames)

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        """Write the frame, so that no reader meets half a file.

        Raises:
            SettingsError: the folder cannot be written to; the frame before it, if any, is still there.
            StorageError: the object store cannot be written to; likewise.
        """
        place = self._file(context.asset_key)
        if is_local(place):
            size = _write_here(Path(place), obj)
            uri = Path(place).as_uri()
        else:
            size = _write_there(place, obj)
            uri = public_url(place)
        context.add_output_metadata({"dagster/uri": uri, "bytes": size})

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        """Read the frame.

        Raises:
            Failure: the asset has not been materialized yet, or not where this machine looks.
            StorageError: the object store cannot be read.
        """
        place = self._file(context.asset_key)
        shown = place if is_local(place) else public_url(place)
        try:
            if is_local(place):
                return pl.read_parquet(place, glob=False)
            with translated(f"{shown} cannot be read", _REMEDY):
                system, path = file_system(place)
                return pl.read_parquet(io.BytesIO(system.cat_file(path)))
        except FileNotFoundError:
            raise dg.Failure(
                f"{context.asset_key.to_user_string()} has not been materialized here yet: {shown} is missing. "
                "Materialize it first or, if another machine did, set ABO_ASSETS to a place that both can reach.",
                allow_retries=False,
            ) from None

    def _file(self, asset: dg.AssetKey) -> str:
        return "/".join((self._place, *asset.path)) + ".parquet"


def _write_here(path: Path, frame: pl.DataFrame) -> int:
    try:
        write_parquet(path, frame)
        return path.stat().st_size
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror or error}. Make room on that disk, or set ABO_STATE_DIR (or "
            "ABO_ASSETS) to a folder that can be written to, and materialize it again."
        ) from error


def _write_there(url: str, frame: pl.DataFrame) -> int:
    """Put it with one call, which an object store carries out wholly or not at all."""
    content = io.BytesIO()
    frame.write_parquet(content)
    shown = public_url(url)
    with translated(f"{shown} cannot be written", _REMEDY):
        system, path = file_system(url)
        try:
            system.pipe_file(path, content.getvalue())
        except FileNotFoundError:
            raise StorageError(
                f"{shown} cannot be written: its bucket or folder does not exist. Create it, or set ABO_ASSETS to "
                "another place."
            ) from None
    return content.tell()
