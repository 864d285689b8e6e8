"""A policy that runs in a `PolicyServer`. Needs numpy, websockets and msgpack; no torch."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from numpy.typing import ArrayLike
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from drift_policy.errors import UserError
from drift_policy.runtime.array_policy import ArrayPolicy, Decided, Floats
from drift_policy.runtime.observations import Arrays
from drift_policy.runtime.spec import PolicySpec, spec_from_json
from drift_policy.runtime.wire import WireError, pack, unpack

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between attempts to connect; they double
_LARGEST_MESSAGE = 64 * 2**20  # bytes of an answer
_LONGEST_GOOD_BYE = 0.5  # seconds: where the network is gone, nobody answers it, and a robot waits meanwhile


class ServerError(UserError):
    """The server cannot be reached, refuses the client, or could not decide."""


class PolicyClient(ArrayPolicy):
    """A remote policy; `predict_action` and `select_action` are those of `ArrayPolicy`.

    When the connection breaks, a decision is asked for again on a new one: nothing is lost while the server restarts.
    Noise that no call gives is drawn by the server, for this client alone.

    Args:
        url: of the server, "ws://127.0.0.1:8765".
        token: that the server asks for.
        seed: of the noise; fresh entropy if absent. After a reconnection the noise goes on with other numbers.
        timeout_s: how long an answer may take.
        reconnect_s: how long to try to reach a server that is away, in the constructor too.

    Raises:
        ServerError: the server cannot be reached or refuses the client.
        CheckpointError: it serves a policy of another format version.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8765",
        *,
        token: str | None = None,
        seed: int | None = None,
        timeout_s: float = 10.0,
        reconnect_s: float = 30.0,
    ) -> None:
        self._url, self._timeout, self._reconnect = url, timeout_s, reconnect_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._connection: ClientConnection | None = None
        self._exit = ExitStack()  # of the connection
        self._served: PolicySpec | None = None
        self._seed, self._num_requests = seed, 0
        self.num_reconnects = 0
        description = self._ask({"type": "describe"})
        self._served = spec_from_json(str(description.get("spec")), url)
        super().__init__(self._served, seed)

    def server_facts(self) -> dict[str, Any]:
        """Return the server's version, uptime [s], number of clients, decisions and batches."""
        return dict(self._ask({"type": "describe"})["server"])

    def reset(self, seed: int | None = None) -> None:
        """Forget the observations and actions of the current episode; a seed also starts the noise anew."""
        super().reset()
        if seed is not None:
            self._seed, self._num_requests = seed, 0
            self._ask({"type": "reset", "seed": seed})

    def close(self) -> None:
        """Leave the server; a later call connects again."""
        self._connection = None
        self._exit.close()

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decide(
        self, observation: Arrays, features: Sequence[ArrayLike], noise: Floats | None, noise_scale: float
    ) -> Decided:
        self._num_requests += 1
        started = time.perf_counter()
        answer = self._ask(
            {
                "type": "predict",
                "id": self._num_requests,
                "obs": observation,
                "noise": noise,
                "noise_scale": float(noise_scale),
            }
        )
        prediction = answer["action_pred"]
        shape = (len(next(iter(observation.values()))), self.horizon, self.action_dim)
        if answer.get("id") != self._num_requests or prediction.shape != shape:
            raise ServerError(f"{self._url} answered with {prediction.shape} instead of {shape}: is it another policy?")
        timing = {f"server_{stage}": float(value) for stage, value in answer["timing"].items()}
        return Decided(prediction, timing | {"round_trip": (time.perf_counter() - started) * 1000})

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and return its answer, over as many connections as it takes."""
        deadline = time.monotonic() + self._reconnect
        data = pack(message)
        while True:
            connection = self._connected(deadline)
            try:
                connection.send(data)
                answer = unpack(connection.recv(self._timeout))
                break
            except TimeoutError as error:
                self.close()  # its late answer must not be taken for that of the next question
                raise ServerError(f"{self._url} did not answer within {self._timeout:g} s.") from error
            except ConnectionClosed as error:
                self.close()
                self._raise_if_final(error)
                if time.monotonic() > deadline:
                    raise ServerError(f"{self._url} closed the connection: {error}") from error
                time.sleep(_FIRST_PAUSE)  # a server that is full accepts and closes at once
            except WireError as error:
                self.close()
                raise ServerError(f"{self._url} is no policy server: {error}") from error
        if answer["type"] == "error":
            text = str(answer.get("message"))
            if answer.get("is_request_wrong"):
                raise ValueError(text)
            raise ServerError(f"{self._url}: {text}")
        return answer

    def _raise_if_final(self, error: ConnectionClosed) -> None:
        """Raise for what another attempt would not mend: a message that is too large or not understood."""
        received = error.rcvd
        if received is not None and received.code in (1003, 1007, 1009):
            raise ServerError(
                f"{self._url} refuses the message ({received.code} {received.reason}): is it larger than the server's "
                "max_message_mb?"
            ) from error

    def _connected(self, deadline: float) -> ClientConnection:
        """Return the connection, made anew if it broke."""
        pause = _FIRST_PAUSE
        while self._connection is None:
            try:
                self._connection = self._exit.enter_context(
                    connect(
                        self._url,
                        additional_headers=self._headers,
                        compression=None,
                        max_size=_LARGEST_MESSAGE,
                        open_timeout=self._timeout,
                        close_timeout=min(self._timeout, _LONGEST_GOOD_BYE),
                        proxy=None,
                    )
                )
                self._introduce(self._connection)
            except InvalidURI as error:
                raise ServerError(f"{self._url} is no address of a server: give ws://host:port.") from error
            except (WireError, UserError):
                self.close()
                raise
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
                self.close()
                if isinstance(error, InvalidStatus) and error.response.status_code == 401:
                    raise ServerError(f"{self._url} refuses this client: its token is missing or wrong.") from error
                if time.monotonic() + pause > deadline:
                    raise ServerError(
                        f"{self._url} cannot be reached ({error}): is python -m drift_policy.serve running there?"
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return self._connection

    def _introduce(self, connection: ClientConnection) -> None:
        """Seed the new session, and make sure that the policy is still the same."""
        if self._seed is not None:
            # The number of requests so far: a new session must not repeat the noise of the one before.
            seed = [self._seed, self._num_requests] if self._num_requests else self._seed
            connection.send(pack({"type": "reset", "seed": seed}))
            connection.recv(self._timeout)
        if self._served is not None:
            self.num_reconnects += 1
            connection.send(pack({"type": "describe"}))
            answer = unpack(connection.recv(self._timeout))
            if spec_from_json(str(answer.get("spec")), self._url) != self._served:
                raise ServerError(f"{self._url} serves another policy than before: make a new client.")
