"""Run-length codes against pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from concordet.data.rle import decode_rle, encode_rle


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_codes_equal_pycocotools(height, width, share, seed):
    random = np.random.default_rng(seed)
    mask = (random.random((height, width)) < share).astype(np.uint8)
    mask = np.kron(mask, np.ones((3, 5), np.uint8)) if seed % 2 else mask
    expected = coco_mask.encode(np.asfortranarray(mask))
    code = encode_rle(mask)
    assert code["size"] == expected["size"]
    assert code["counts"] == expected["counts"].decode()
    np.testing.assert_array_equal(decode_rle(code), mask)
    np.testing.assert_array_equal(decode_rle(expected), mask)


def test_uncompressed_counts():
    np.testing.assert_array_equal(decode_rle({"size": [2, 3], "counts": [1, 2, 3]}), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("counts", [[1, 2], [7], "22"])
def test_counts_that_do_not_fit(counts):
    with pytest.raises(ValueError, match=r"instead of 2 x 3"):
        decode_rle({"size": [2, 3], "counts": counts})
