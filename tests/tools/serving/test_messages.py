"""Messages with arrays in msgpack: both clients' spellings, damaged bytes, and what would be dangerous to read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lerobot_policy_vla0.errors import ServingError

msgpack = pytest.importorskip("msgpack", reason="pip install 'lerobot_policy_vla0[serve]'")

from lerobot_policy_vla0.tools.serving.messages import pack_for_openpi, pack_for_vla_eval, unpack

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("pack", [pack_for_openpi, pack_for_vla_eval])
def test_what_is_packed_is_read_again(pack: Any) -> None:
    message = unpack(pack({"actions": ARRAY, "name": "push", "nested": {"n": 3, "on": True}}))
    np.testing.assert_array_equal(message.pop("actions"), ARRAY)
    assert message == {"name": "push", "nested": {"n": 3, "on": True}}


def test_a_compressed_picture_and_a_numpy_number_are_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format="PNG")
    image = {"__image__": True, "format": "png", "data": written.getvalue(), "shape": [5, 7, 3]}
    number = {b"__npgeneric__": True, b"data": 2.5, b"dtype": "<f4"}
    message = unpack(msgpack.packb({"picture": image, "number": number}))
    np.testing.assert_array_equal(message["picture"], pixels)
    assert message["number"] == 2.5


def array(**changes: Any) -> bytes:
    fields = {"__ndarray__": True, "data": ARRAY.tobytes(), "dtype": "<f4", "shape": [2, 3]} | changes
    return bytes(msgpack.packb({"x": fields}))


def huge_picture() -> bytes:
    written = io.BytesIO()
    Image.new("1", (5000, 5000)).save(written, format="PNG")
    return bytes(
        msgpack.packb(
            {"x": {"__image__": True, "format": "png", "data": written.getvalue(), "shape": [5000, 5000]}}
        )
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xc1garbage", "9|8 bytes cannot be read as msgpack"),
        (b"", "0 bytes cannot be read as msgpack"),
        (msgpack.packb([1, 2]), "the message is list, expected a mapping"),
        (msgpack.packb({1: 2}), "the message is dict, expected a mapping with names as keys"),
        (array(dtype="|O"), "an array of object was sent, expected booleans, integers or floats"),
        (array(dtype="|V4"), "expected booleans, integers or floats"),
        (array(shape=[2, 300]), r"an array of float32 \(2, 300\) was sent with 24 bytes"),
        (array(shape=[-1, -6]), r"an array of float32 \(-1, -6\) was sent"),
        (array(dtype="nothing"), "cannot be read as msgpack with arrays"),
        (array()[:-3], "cannot be read as msgpack with arrays"),
        (huge_picture(), "a picture of 5000 x 5000 pixels was sent"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ServingError, match=message):
        unpack(data)
