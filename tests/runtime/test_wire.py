"""Messages of the policy server: arrays survive, damage is refused, nothing is executed."""

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drift_policy.runtime.wire import DTYPES, WireError, pack, unpack


@given(array=hnp.arrays(st.sampled_from([np.dtype(name) for name in DTYPES]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_arrays_survive(array: np.ndarray) -> None:
    found = unpack(pack({"type": "predict", "obs": {"a": array}, "noise": None}))["obs"]["a"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_an_array_that_is_not_contiguous_survives() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(unpack(pack({"type": "x", "a": array}))["a"], array)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_a_map_with_a_type(data: bytes) -> None:
    try:
        message = unpack(data)
    except WireError:
        return
    assert isinstance(message["type"], str)


def array_message(**change: Any) -> bytes:
    packed: bytes = msgpack.packb({"type": "x", "a": {"dtype": "float32", "shape": [2], "data": bytes(8)} | change})
    return packed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", "must be binary"),
        (b"\xc1", "not msgpack"),
        (pack({"type": "x"})[:-1], "not msgpack"),
        (msgpack.packb([1, 2]), "map with a type"),
        (msgpack.packb({"kind": "x"}), "map with a type"),
        (msgpack.packb({"type": 3}), "map with a type"),
        (msgpack.packb({1: "x"}), "not msgpack"),
        (array_message(dtype="object"), "not 'object'"),
        (array_message(dtype="complex64"), "not 'complex64'"),
        (array_message(dtype=["float32"]), "An array must be bytes of"),
        (array_message(shape=[3]), r"shape \[3\] does not have 8 bytes"),
        (array_message(shape=[1]), r"shape \[1\] does not have 8 bytes"),
        (array_message(shape=[-2, -1]), r"cannot have the shape \[-2, -1\]"),
        (array_message(shape=[2.0]), r"cannot have the shape \[2.0\]"),
        (array_message(shape=[True, 2]), "cannot have the shape"),
        (array_message(shape=[1] * 9 + [2]), "cannot have the shape"),
        (array_message(shape="2"), "An array must be bytes of"),
        (array_message(data="12345678"), "An array must be bytes of"),
        (b"\x81\xa4type" + b"\x91" * 5000 + b"\x01", "not msgpack"),
    ],
)
def test_what_is_not_of_the_protocol_is_refused(data: bytes | str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unpack(data)


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(TypeError, match="complex|object|ndarray"):
        pack({"type": "x", "a": np.zeros(2, complex)})
    with pytest.raises(TypeError, match="set cannot be sent"):
        pack({"type": "x", "a": {1, 2}})
