"""The physics engine pybullet, without what it prints."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def silent() -> Iterator[None]:
    """Discard what C code prints: pybullet greets on import and on every connection, in every worker process."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    sys.stderr.flush()
    flush(None)
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nothing, descriptor)
        yield
    finally:
        flush(None)  # what C code has buffered would otherwise come out later
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
        for descriptor in (*kept, nothing):
            os.close(descriptor)


with silent():
    import pybullet
    import pybullet_data
    from pybullet_utils.bullet_client import BulletClient

DATA_FOLDER: str = pybullet_data.getDataPath()  # models that come with pybullet, among them the xArm


def connect() -> Any:
    """Return a physics server inside this process: pybullet's functions as methods, and its constants."""
    with silent():
        client: Any = BulletClient(pybullet.DIRECT)
    client.setAdditionalSearchPath(DATA_FOLDER)
    return client
