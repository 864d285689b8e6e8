"""A policy for many robots over WebSocket; the messages are described in `drift_policy.runtime.wire`.

The server executes nothing that it receives, bounds the size of messages, the observations in them and the number of
clients, refuses web pages (which browsers let connect to loopback) and checks every observation against the policy's
shapes.
"""

import asyncio
import hmac
import http
import ipaddress
import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

import drift_policy
from drift_policy.errors import ConfigurationError, require
from drift_policy.runtime.array_policy import Floats
from drift_policy.runtime.batching import Batcher, Request
from drift_policy.runtime.observations import checked_noise, checked_observation
from drift_policy.runtime.spec import PolicySpec, describe_policy
from drift_policy.runtime.wire import WireError, pack, unpack

HEALTH_PATH = "/health"
_TRY_AGAIN_LATER, _GOING_AWAY, _UNSUPPORTED_DATA = 1013, 1001, 1003  # WebSocket close codes
_LARGEST_SEED = 2**63
# Clients' handshakes and rejected messages are their own business; websockets would log a traceback for each.
_LOGGER = logging.getLogger("drift_policy.server")
_LOGGER.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class ServerConfig:
    """Settings of the server.

    Raises:
        ConfigurationError: a value out of range, or an address beyond this machine without a token.
    """

    host: str = "127.0.0.1"  # where to listen
    port: int = 8765  # 0 takes a free one
    token: str | None = field(default=None, repr=False)  # what clients must show
    max_message_mb: float = 16.0  # size of the largest message that is read [MiB]
    max_clients: int = 64  # connections at the same time
    max_batch_size: int = 8  # observations of one decision; 1 switches micro-batching off
    batch_wait_ms: float = 0.0  # how long to wait for further requests to batch; 0 takes those that are there
    stop_timeout_s: float = 10.0  # how long a shutdown waits for decisions that are under way

    def __post_init__(self) -> None:
        require(0 <= self.port < 65536, f"port must be 0 to 65535, but is {self.port}.")
        require(
            self.token is None or self.token != "", "token is empty: leave it out, or give one that is hard to guess."
        )
        for name in ("max_message_mb", "max_clients", "max_batch_size"):
            require(0 < getattr(self, name) < math.inf, f"{name} must be positive, but is {getattr(self, name)}.")
        for name in ("batch_wait_ms", "stop_timeout_s"):
            require(0 <= getattr(self, name) < math.inf, f"{name} must be 0 or more, but is {getattr(self, name)}.")
        require(
            self.token is not None or _is_loopback(self.host),
            f"host={self.host} can be reached from other machines: set token=... (or the environment variable "
            "DRIFT_POLICY_TOKEN), and use a tunnel or TLS proxy on networks that you do not trust. Without a token the "
            "server listens on 127.0.0.1 alone.",
        )


class _Session:
    """What the server keeps of one client: the source of its noise."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng()

    def reset(self, seed: Any) -> None:
        """Start the noise anew; without a seed it goes on."""
        if seed is None:
            return
        numbers = seed if isinstance(seed, list) else [seed]
        if not numbers or not all(type(number) is int and 0 <= number < _LARGEST_SEED for number in numbers):
            raise ValueError(f"seed must be a number from 0 on, or a list of them, but is {seed!r}.")
        self.generator = np.random.default_rng(numbers)


class PolicyServer:
    """Serves one policy.

    Args:
        policy: a `Policy`, `TimedPolicy`, `GraphedPolicy` or `OnnxPolicy`; the server alone may use it. A graph
            that was captured for several observations answers as many clients at once.
        config: settings.
    """

    def __init__(self, policy: Any, config: ServerConfig) -> None:
        self.spec: PolicySpec = describe_policy(policy)
        self.config = config
        self.port: int | None = None  # where it listens, once it does
        self._batcher = Batcher(policy, self.spec, config.max_batch_size, config.batch_wait_ms / 1000)
        self._spec_json = self.spec.to_json()
        self._clients: set[ServerConnection] = set()
        self._busy: set[ServerConnection] = set()  # clients whose request is being answered
        self._stopping = asyncio.Event()
        self._started = time.monotonic()

    async def run(self, *, ready: Callable[[], None] = lambda: None, stop: asyncio.Event | None = None) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; then answer what is under way, and close.

        Args:
            ready: called when clients can connect; `port` is then known.
            stop: replaces the signals, which only the main thread can handle.

        Raises:
            ConfigurationError: the address cannot be used.
        """
        if stop is None:
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        decisions = asyncio.create_task(self._batcher.run())
        server = await self._listen()
        try:
            self.port = next(iter(server.sockets)).getsockname()[1]
            ready()
            await stop.wait()
        finally:
            await self._shut_down(server)
            decisions.cancel()

    async def _listen(self) -> Server:
        try:
            return await serve(
                self._handle,
                self.config.host,
                self.config.port,
                process_request=self._admit,
                origins=[None],  # browsers name the page that connects; robots name none
                max_size=int(self.config.max_message_mb * 2**20),
                max_queue=1,
                compression=None,  # numbers hardly shrink, and it costs latency
                logger=_LOGGER,
            )
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {self.config.host}:{self.config.port} ({error.strerror}): choose another port."
            ) from error

    async def _shut_down(self, server: Server) -> None:
        """Accept nobody, wait for the answers that are under way, close all connections."""
        self._stopping.set()
        server.close(close_connections=False)
        await _close(self._clients - self._busy)
        try:
            async with asyncio.timeout(self.config.stop_timeout_s):
                while self._busy:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pass  # the clients that still wait see the connection close
        await _close(self._clients)
        await server.wait_closed()

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answer health checks over plain HTTP, and refuse clients without the token."""
        if request.path == HEALTH_PATH:
            return connection.respond(http.HTTPStatus.OK, "ok\n")
        if self.config.token is not None:
            shown = request.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(shown, f"Bearer {self.config.token}".encode()):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "the token is missing or wrong\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        """Answer one client until it leaves."""
        if len(self._clients) >= self.config.max_clients or self._stopping.is_set():
            await connection.close(_TRY_AGAIN_LATER, f"the server has its {self.config.max_clients} clients")
            return
        self._clients.add(connection)
        session = _Session()
        try:
            async for data in connection:
                self._busy.add(connection)
                await connection.send(pack(await self._respond(session, data)))
                self._busy.discard(connection)
                if self._stopping.is_set():
                    await _close({connection})
        except WireError as error:
            await connection.close(_UNSUPPORTED_DATA, str(error)[:120])
        except ConnectionClosed:
            pass  # the client is gone; nobody else waits for its answer
        finally:
            self._busy.discard(connection)
            self._clients.discard(connection)

    async def _respond(self, session: _Session, data: bytes | str) -> dict[str, Any]:
        """Return the answer to a message.

        Raises:
            WireError: it is not of the protocol.
        """
        message = unpack(data)
        try:
            if message["type"] == "predict":
                return await self._predict(session, message)
            if message["type"] == "reset":
                session.reset(message.get("seed"))
                return {"type": "done"}
            if message["type"] == "describe":
                return {"type": "policy", "spec": self._spec_json, "server": self._facts()}
        except Exception as error:  # what goes wrong for one client must not end the server
            known = isinstance(error, ValueError)
            text = str(error) if known else f"the server could not decide: {type(error).__name__}: {error}"
            return {"type": "error", "id": message.get("id"), "is_request_wrong": known, "message": text}
        raise WireError(f"The message type {message['type']!r} is unknown.")

    async def _predict(self, session: _Session, message: dict[str, Any]) -> dict[str, Any]:
        observation = checked_observation(self.spec, message.get("obs"))
        self._batcher.check(observation)
        batch = len(next(iter(observation.values())))
        scale = message.get("noise_scale")
        if scale is None:
            scale = self.spec.noise_scale
        elif not isinstance(scale, (int, float)) or not 0 <= scale < math.inf:
            raise ValueError(f"noise_scale must be a number from 0 on, but is {scale!r}.")
        noise = _noise(self.spec, message.get("noise"), batch, session.generator)
        seeds = session.generator.integers(_LARGEST_SEED, size=batch).tolist() if self.spec.num_evaluations > 1 else []
        request = Request(observation, noise * np.float32(scale), seeds)
        prediction, timing = await self._batcher.decide(request)
        return {"type": "prediction", "id": message.get("id"), "action_pred": prediction, "timing": timing}

    def _facts(self) -> dict[str, Any]:
        return {
            "version": drift_policy.__version__,
            "uptime_s": time.monotonic() - self._started,
            "clients": len(self._clients),
            "decisions": self._batcher.num_decisions,
            "batches": self._batcher.num_batches,
        }


async def _close(clients: set[ServerConnection]) -> None:
    """Say good-bye to all at once: a client that is gone takes seconds to give up."""
    await asyncio.gather(*(client.close(_GOING_AWAY, "the server stops") for client in clients))


def _noise(spec: PolicySpec, given: Any, batch: int, generator: np.random.Generator) -> Floats:
    """Return the noise of a request: the given one, or that of all candidates from the session's generator."""
    if given is None:
        return generator.standard_normal((batch, *spec.noise_shape), dtype=np.float32)
    if not isinstance(given, np.ndarray):
        raise ValueError(f"noise must be an array of shape {[batch, *spec.noise_shape]}, but is {given!r:.100}.")
    return checked_noise(spec, given, batch)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may stand for any address
