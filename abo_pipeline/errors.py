"""What can go wrong, as one family of exceptions.

A message says what happened, to which thing, and what to do about it; it never holds a password.
The command line prints the message and ends with exit code 2; Dagster shows it as the step's error.

    AboError
    ├── SettingsError    a setting, or the state folder, that cannot be used
    ├── ArchiveError     an archive that cannot be fetched, read or trusted
    ├── StorageError     an object store that cannot be reached, or not with what is installed here
    ├── CatalogError     an images.csv.gz that is no ABO catalogue, or of which nothing is kept
    ├── ListingsError    a listings archive that cannot be read
    ├── ImageError       one image that cannot become pixels; costs that image only
    ├── ModelError       a model that cannot be loaded or does not embed images and texts
    ├── FailuresError    more images of a partition failed than can be accidents
    ├── StoreError       a database that does not answer, or cannot hold what it is asked to
    │   └── DamagedIndexError    an index that Postgres cannot read; without it, the search can be answered
    ├── PortableError    an export that cannot be written, or a file that must not be imported
    ├── CheckError       a check that did not pass, so that what builds on its asset was not made
    └── QueryError       a search that cannot be answered as asked
"""


class AboError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingsError(AboError):
    """A setting, or the state folder, that cannot be used."""


class ArchiveError(AboError):
    """An archive that cannot be fetched, read or trusted."""


class StorageError(AboError):
    """An object store that cannot be reached, or not with what is installed here."""


class CatalogError(AboError):
    """An images.csv.gz that is no ABO catalogue, or of which nothing is kept."""


class ListingsError(AboError):
    """A listings archive that cannot be read."""


class ImageError(AboError):
    """One image that cannot become pixels. It costs that image only, and is recorded with its reason."""


class ModelError(AboError):
    """A model that cannot be loaded, or that does not embed both images and texts."""


class FailuresError(AboError):
    """More images of a partition failed than can be accidents: something is wrong with the archive or with us."""


class StoreError(AboError):
    """A database that does not answer, or that cannot hold what it is asked to hold."""


class DamagedIndexError(StoreError):
    """A vector index that Postgres cannot read. Without it, the search can be answered.

    Attributes:
        said: by Postgres.
    """

    def __init__(self, which: str, said: str) -> None:
        super().__init__(f"{which} cannot be read: {said}. `abo index --rebuild` builds it anew.")
        self.said = said


class PortableError(AboError):
    """An export of vectors that cannot be written, or a file that must not be imported."""


class CheckError(AboError):
    """A blocking check that did not pass, so that what builds on its asset was not made."""


class QueryError(AboError):
    """A search that cannot be answered as asked."""
