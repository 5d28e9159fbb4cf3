"""Where data frames lie between assets: one parquet file an asset. Vectors do not pass here; they go to Postgres."""

from pathlib import Path

import dagster as dg
import polars as pl

from abo_pipeline.download import write_whole


class ParquetIOManager(dg.ConfigurableIOManager):
    """Keeps an unpartitioned data frame as ``<folder>/<asset>.parquet``, replaced as a whole."""

    folder: str

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        """Write the frame beside its place and move it there, so that no reader meets half a file."""
        path = self._path(context)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, obj.write_parquet)
        context.add_output_metadata({"dagster/uri": path.as_uri(), "bytes": path.stat().st_size})

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        """Read the frame.

        Raises:
            Failure: the asset has not been materialized yet.
        """
        path = self._path(context)
        if not path.is_file():
            raise dg.Failure(
                f"{context.asset_key.to_user_string()} has not been materialized here yet: {path} is missing. "
                "Materialize it first.",
                allow_retries=False,
            )
        return pl.read_parquet(path)

    def _path(self, context: dg.OutputContext | dg.InputContext) -> Path:
        return Path(self.folder).joinpath(*context.asset_key.path).with_suffix(".parquet")
