"""Messages between server and client: msgpack maps with arrays as {dtype, shape, data}. Nothing is executed.

Every message is a map with a "type". From the client:

- {"type": "describe"}: answered by {"type": "policy", "spec": JSON, "server": facts}
- {"type": "reset", "seed": number or list of numbers, optional}: starts the session's noise anew; {"type": "done"}
- {"type": "predict", "id", "obs": {key: array}, "noise": array or nil, "noise_scale": number or nil}: answered by
  {"type": "prediction", "id", "action_pred": array, "timing": {stage: ms}}; noise is [B, N, Tp, Da] of the candidates
  that the spec says, or [B, Tp, Da] of one

What cannot be answered is answered by {"type": "error", "id", "message"}.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

DTYPES = ("uint8", "float32", "float64")
_LARGEST_RANK = 8


class WireError(ValueError):
    """A message that is not of the protocol."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Return a message as bytes; arrays may be anywhere in it."""
    packed: bytes = msgpack.packb(message, default=_encode)
    return packed


def unpack(data: bytes | str) -> dict[str, Any]:
    """Return the message in `data`, with its arrays.

    Raises:
        WireError: it is not msgpack, no map with a type, or holds an array that is damaged.
    """
    if isinstance(data, str):
        raise WireError("A message must be binary (msgpack), not text.")
    try:
        # Sizes are bounded by the size of the message, which the connection bounds.
        message = msgpack.unpackb(data, object_hook=_decode, strict_map_key=True)
    except WireError:
        raise
    except Exception as error:  # msgpack's errors share no base class but ValueError and Exception
        raise WireError(f"A message is not msgpack: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WireError("A message must be a map with a type.")
    return message


def _encode(value: Any) -> dict[str, Any]:
    if isinstance(value, np.ndarray) and value.dtype.name in DTYPES:
        return {"dtype": value.dtype.name, "shape": list(value.shape), "data": np.ascontiguousarray(value).tobytes()}
    raise TypeError(f"{type(value).__name__} cannot be sent: arrays of {', '.join(DTYPES)} can.")


def _decode(value: dict[str, Any]) -> dict[str, Any] | NDArray[Any]:
    if value.keys() != {"dtype", "shape", "data"}:
        return value
    dtype, shape, data = value["dtype"], value["shape"], value["data"]
    if dtype not in DTYPES or not isinstance(data, bytes) or not isinstance(shape, list):
        raise WireError(f"An array must be bytes of {', '.join(DTYPES)}, not {dtype!r}.")
    if len(shape) > _LARGEST_RANK or not all(type(size) is int and size >= 0 for size in shape):
        raise WireError(f"An array cannot have the shape {shape}.")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise WireError(f"An array of {dtype} and shape {shape} does not have {len(data)} bytes.")
    return np.frombuffer(data, dtype).reshape(shape)
