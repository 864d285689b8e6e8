"""A policy server in a thread of the test's own process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drift_policy.runtime.server import PolicyServer, ServerConfig


class RunningServer:
    """A server that listens; `stop` shuts it down as SIGTERM does.

    Args:
        policy: what it serves.
        settings: fields of `ServerConfig`; the port is free by default.
    """

    def __init__(self, policy: Any, **settings: Any) -> None:
        self.server = PolicyServer(policy, ServerConfig(**({"port": 0} | settings)))
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(20), "the server does not listen"

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.server.port}"

    @property
    def port(self) -> int:
        assert self.server.port is not None
        return self.server.port

    def begin_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.begin_stop()
            self._thread.join(20)
            assert not self._thread.is_alive(), "the server does not stop"

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self.server.run(ready=self._ready.set, stop=self._stop)
        finally:
            self._ready.set()


@contextmanager
def running_server(policy: Any, **settings: Any) -> Iterator[RunningServer]:
    """Give a server that is stopped at the end."""
    server = RunningServer(policy, **settings)
    try:
        yield server
    finally:
        server.stop()
