"""Keys, partitions and sizes: fixed by the id alone, without gap or overlap, nested."""

import random
from bisect import bisect_right
from fractions import Fraction
from hashlib import blake2b
from itertools import pairwise

import polars as pl
import pytest

from abo_pipeline.sampling import (
    KEY_BITS,
    LAST_KEY,
    cutoff,
    partition_keys,
    partition_range,
    partition_starts,
    sample_key,
)

PARTITIONS = [1, 2, 3, 7, 64, 1000]


def keys_of(image_ids: list[str]) -> pl.Series:
    return pl.Series(sorted(sample_key(image_id) for image_id in image_ids), dtype=pl.Int64)


# --- Keys ---


@pytest.mark.parametrize(
    ("image_id", "b2sum"),
    [
        # The first 16 hex digits that `printf '%s' ID | b2sum` of GNU coreutils prints.
        ("", "786a02f742015903"),
        ("a", "333fcb4ee1aa7c11"),
        ("41++65Gq75L", "b5428940948e3970"),
        ("010-mllS7JL", "42efdf6295ed9e14"),
        ("ü", "53741fc17e026c2e"),
    ],
)
def test_a_key_is_half_of_the_first_eight_bytes_of_blake2b(image_id, b2sum):
    assert sample_key(image_id) == int(b2sum, 16) // 2


def test_keys_stay_what_they_were_when_rows_were_stored_with_them():
    image_ids = ["a", "41++65Gq75L", "010-mllS7JL", "ü"]

    assert [sample_key(image_id) for image_id in image_ids] == [
        1846446879560515080,
        6530576389895560376,
        2411659670226128650,
        3006733159174845975,
    ]


def test_keys_fit_the_signed_64_bits_of_postgres_and_parquet():
    keys = [sample_key(str(number)) for number in range(20_000)]

    assert pl.select(pl.Int64.max()).item() == LAST_KEY
    assert min(keys) >= 0
    assert max(keys) <= LAST_KEY
    assert len(set(keys)) == len(keys)


def test_keys_are_spread_evenly_over_partitions():
    image_ids = [f"{number:011d}" for number in range(64_000)]
    starts = partition_starts(64)

    counts = [0] * 64
    for image_id in image_ids:
        counts[bisect_right(starts, sample_key(image_id)) - 1] += 1

    # 1,000 each are expected; with 63 degrees of freedom chi-squared is over 104 once in a thousand draws.
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 104


def test_each_bit_of_the_keys_is_set_in_half_of_them():
    keys = [sample_key(f"B{number:05x}") for number in range(10_000)]

    shares = [sum(key >> bit & 1 for key in keys) / len(keys) for bit in range(KEY_BITS)]

    # A fair coin thrown 10,000 times lands within 0.5 ± 0.02 (four standard deviations), nearly always.
    assert [share for share in shares if abs(share - 0.5) > 0.02] == []


# --- Partitions ---


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_partitions_tile_the_key_space_without_gap_or_overlap(partitions):
    ranges = [partition_range(key) for key in partition_keys(partitions)]

    assert len(ranges) == partitions
    assert ranges[0][0] == 0
    assert ranges[-1][1] == LAST_KEY
    assert [first for first, _ in ranges[1:]] == [last + 1 for _, last in ranges[:-1]]


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_partitions_are_equally_long_to_the_key(partitions):
    lengths = {last - first + 1 for first, last in map(partition_range, partition_keys(partitions))}

    assert lengths <= {2**63 // partitions, -(-(2**63) // partitions)}


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_a_random_key_lies_in_the_partition_that_its_fraction_says(partitions):
    draw = random.Random(partitions)  # noqa: S311 - no secret
    keys = [draw.randrange(2**63) for _ in range(500)]
    names = partition_keys(partitions)

    for key in [0, LAST_KEY, *keys]:
        number = int(Fraction(key, 2**63) * partitions)
        first, last = partition_range(names[number])
        assert first <= key <= last


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_the_starts_are_the_beginnings_of_the_ranges(partitions):
    starts = partition_starts(partitions)

    assert starts == [partition_range(key)[0] for key in partition_keys(partitions)]


@pytest.mark.parametrize(
    ("partitions", "first_and_last"),
    [
        (1, ("00of1", "00of1")),
        (2, ("00of2", "01of2")),
        (64, ("00of64", "63of64")),
        (100, ("00of100", "99of100")),
        (101, ("000of101", "100of101")),
        (1000, ("000of1000", "999of1000")),
        (10_000, ("0000of10000", "9999of10000")),
    ],
)
def test_partition_names_say_the_number_and_how_many_there_are(partitions, first_and_last):
    names = partition_keys(partitions)

    assert (names[0], names[-1]) == first_and_last
    assert len(set(names)) == partitions


@pytest.mark.parametrize("partitions", [*PARTITIONS, 10_000])
def test_partition_names_sort_in_the_order_of_their_keys(partitions):
    names = partition_keys(partitions)

    assert sorted(names) == names


# --- Sizes ---


def test_a_size_holds_exactly_as_many_images_as_it_says():
    keys = keys_of([f"image{number}" for number in range(500)])

    assert [int((keys <= cutoff(keys, size)).sum()) for size in (1, 2, 250, 499, 500)] == [1, 2, 250, 499, 500]


def test_the_cutoff_is_the_last_key_of_the_size():
    keys = pl.Series([3, 5, 8, 13], dtype=pl.Int64)

    assert [cutoff(keys, size) for size in (1, 2, 3, 4)] == [3, 5, 8, 13]


@pytest.mark.parametrize("size", [5, 100_000])
def test_a_size_beyond_the_catalogue_means_all_of_it_also_after_it_has_grown(size):
    keys = pl.Series([3, 5, 8, 13], dtype=pl.Int64)

    assert cutoff(keys, size) == LAST_KEY


def test_the_cutoff_of_an_empty_catalogue_is_the_largest_key():
    assert cutoff(pl.Series([], dtype=pl.Int64), 1) == LAST_KEY


def test_a_larger_size_contains_every_smaller_one():
    image_ids = [f"image{number}" for number in range(300)]
    keys = keys_of(image_ids)

    members = [{i for i in image_ids if sample_key(i) <= cutoff(keys, size)} for size in (10, 100, 299, 1000)]

    assert [len(of_size) for of_size in members] == [10, 100, 299, 300]
    assert all(smaller < larger for smaller, larger in pairwise(members))


def test_a_size_is_a_fair_sample_of_what_the_ids_know_nothing_of():
    colours = {f"image{number}": number % 4 for number in range(8_000)}
    last = cutoff(keys_of(list(colours)), 2_000)

    chosen = [colour for image_id, colour in colours.items() if sample_key(image_id) <= last]

    # Of 2,000 drawn without replacement 500 ± 17 have each colour; four standard deviations are allowed.
    assert [abs(chosen.count(colour) - 500) < 68 for colour in range(4)] == [True] * 4


# --- What never moves ---


def test_changing_the_number_of_partitions_moves_no_image_between_prefixes():
    image_ids = [f"image{number}" for number in range(1_000)]
    by_key = sorted(image_ids, key=sample_key)

    for partitions in PARTITIONS:
        starts = partition_starts(partitions)
        members: list[list[str]] = [[] for _ in starts]
        for image_id in image_ids:
            members[bisect_right(starts, sample_key(image_id)) - 1].append(image_id)
        walked = [image_id for part in members for image_id in sorted(part, key=sample_key)]
        assert walked == by_key


def test_images_that_are_added_move_no_other():
    before = [f"image{number}" for number in range(500)]
    after = [*before, *(f"new{number}" for number in range(500))]

    ordered = sorted(after, key=sample_key)

    assert [image_id for image_id in ordered if image_id.startswith("image")] == sorted(before, key=sample_key)


def test_a_partition_only_gains_from_images_that_are_added():
    before = {f"image{number}" for number in range(500)}
    after = before | {f"new{number}" for number in range(500)}

    for first, last in map(partition_range, partition_keys(7)):
        inside = {image_id for image_id in after if first <= sample_key(image_id) <= last}
        assert inside & before == {image_id for image_id in before if first <= sample_key(image_id) <= last}


def test_the_digest_is_the_full_one_cut_and_not_a_short_one():
    # BLAKE2b with digest_size=8 is another function: its length is part of what is hashed.
    assert sample_key("a") != int.from_bytes(blake2b(b"a", digest_size=8).digest(), "big") >> 1
