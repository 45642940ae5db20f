"""Sizes in generation: few, and never more than twice what is needed."""

from keras_encdec.generation import buckets


def test_lengths_are_few_and_large_enough():
    found = [buckets.length(needed) for needed in range(1, 4097)]
    assert sorted(set(found)) == [32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert all(n <= size < max(2 * n, 33) for n, size in enumerate(found, start=1))


def test_no_length_goes_beyond_the_largest_without_need():
    assert [buckets.length(n, 48) for n in (5, 33, 48, 49)] == [32, 48, 48, 49]
    assert buckets.length(3, 8) == 8
    assert [buckets.length(n, smallest=128) for n in (1, 128, 129)] == [128, 128, 256]


def test_what_is_read_often_has_sizes_between():
    found = [buckets.closer(needed) for needed in range(1, 1025)]
    assert sorted(set(found)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(n <= size < max(1.5 * n, 33) for n, size in enumerate(found, start=1))


def test_rows_are_few_and_a_multiple_of_the_replicas():
    found = [buckets.rows(needed) for needed in range(1, 33)]
    assert sorted(set(found)) == [1, 2, 4, 8, 16, 24, 32]
    assert all(size >= n for n, size in enumerate(found, start=1))
    assert [buckets.rows(n, 6) for n in (1, 6, 7)] == [6, 12, 12]
