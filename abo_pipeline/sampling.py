"""The order of the catalogue: sample keys, partitions of the key space, and sizes as prefixes.

Every image has a key drawn from its id alone, so any prefix of the catalogue sorted by key is a fair sample of it, a
longer prefix contains every shorter one, and an image's place never depends on which other images there are.
Nothing here knows of files, databases or Dagster.
"""

from hashlib import blake2b

import polars as pl

KEY_BITS = 63
"""Keys lie in [0, 2**63): they fit a signed 64-bit integer, which is what Postgres and parquet have."""

LAST_KEY = 2**KEY_BITS - 1
"""The largest key there is."""


def sample_key(image_id: str) -> int:
    """The key that gives an image its place: uniform in [0, 2**63), from the id alone.

    It is the first 8 bytes of BLAKE2b (RFC 7693, 64-byte digest) of the id in UTF-8, read big-endian and shifted
    right by one.
    """
    return int.from_bytes(blake2b(image_id.encode()).digest()[:8], "big") >> 1


def partition_keys(partitions: int) -> list[str]:
    """Names of the partitions in key order, such as ``00of64`` … ``63of64``."""
    width = max(2, len(str(partitions - 1)))
    return [f"{number:0{width}}of{partitions}" for number in range(partitions)]


def partition_range(partition_key: str) -> tuple[int, int]:
    """First and last sample key of a partition, both inclusive.

    The last key is inclusive because the end of the last range, 2**63, does not fit the column's type.
    """
    number, partitions = (int(part) for part in partition_key.split("of"))
    return _start(number, partitions), _start(number + 1, partitions) - 1


def partition_starts(partitions: int) -> list[int]:
    """The first sample key of each partition, ascending."""
    return [_start(number, partitions) for number in range(partitions)]


def _start(number: int, partitions: int) -> int:
    """The smallest key that is at least number/partitions of the way through the key space."""
    return -((-number << KEY_BITS) // partitions)


def cutoff(sample_keys: pl.Series, size: int) -> int:
    """The last sample key of a size: its images are those with ``sample_key <= cutoff``.

    Inclusive for the same reason as the partitions' ends. A size that the catalogue does not fill means all of it,
    now and after it has grown: the largest key there is.

    Args:
        sample_keys: keys of all kept images, ascending.
        size: number of images wanted, at least 1.
    """
    return int(sample_keys[size - 1]) if size <= len(sample_keys) else LAST_KEY
