"""Decisions for many clients: one at a time, those that wait together in one batch.

Shape letters: B observations, N candidates for each, Tp predicted steps (horizon), Da action size.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drift_policy.runtime.array_policy import Floats
from drift_policy.runtime.observations import Arrays, to_array
from drift_policy.runtime.spec import PolicySpec
from drift_policy.runtime.warm_up import on_the_way

LARGEST_REQUEST = 1024  # observations: each has N candidates, so that a small message could ask for gigabytes


@dataclass
class Request:
    """A decision that a client waits for."""

    observation: Arrays  # checked, {key: [B, To, ...]}
    noise: Floats  # scaled, [B, Tp, Da] of one candidate or [B, N, Tp, Da] of those that the policy draws
    seeds: list[int]  # of the noise that an iterative head draws on the way, one an observation
    received: float = field(default_factory=time.perf_counter)
    answer: "asyncio.Future[tuple[Floats, dict[str, float]]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def rows(self) -> int:
        """B."""
        return len(self.noise)


class Batcher:
    """Runs a policy in a thread and answers the requests in the order of their arrival.

    Args:
        policy: anything with `predict_action`.
        spec: of it.
        max_batch_size: observations of one decision; 1 takes every request alone. A request that is larger is taken
            alone. Those with noise of one candidate and those of a policy's N candidates do not share a decision.
            A policy with a `batch_size`, as a `GraphedPolicy` has, is never asked for more, and decisions for fewer are
            filled up with copies that nobody gets.
        batch_wait: seconds to wait for more requests when one has come; without, a batch is what came in during the
            decision before.
    """

    def __init__(self, policy: Any, spec: PolicySpec, max_batch_size: int, batch_wait: float) -> None:
        self._policy, self._spec = policy, spec
        self._captured: int | None = getattr(policy, "batch_size", None)
        self._max_batch_size = min(max_batch_size, self._captured or max_batch_size)
        self._batch_wait = batch_wait
        self._waiting: asyncio.Queue[Request] = asyncio.Queue()
        self._left_over: Request | None = None  # did not fit into the batch before
        self._worker = ThreadPoolExecutor(1, "policy")
        self.num_decisions = 0  # answered observations
        self.num_batches = 0  # calls of the policy

    def check(self, observation: Arrays) -> None:
        """Refuse a checked observation for which no decision can be made, before it shares one with others.

        Raises:
            ValueError: no observation, more than are taken at once, or float images for a policy captured for bytes.
        """
        batch, largest = len(next(iter(observation.values()))), self._captured or LARGEST_REQUEST
        if batch == 0:
            raise ValueError("obs holds no observation: its batch size is 0.")
        if batch > largest:
            raise ValueError(f"obs holds {batch} observations: send at most {largest} at once.")
        for key, spec in self._spec.observations.items():
            if self._captured and spec.kind == "image" and observation[key].dtype != np.uint8:
                raise ValueError(f"obs[{key!r}] is a float image, but this policy was captured for uint8 (0..255).")

    async def decide(self, request: Request) -> tuple[Floats, dict[str, float]]:
        """Return predictions [B, Tp, Da] and the milliseconds of their stages.

        Raises:
            Exception: what the policy raised.
        """
        self._waiting.put_nowait(request)
        return await request.answer

    async def run(self) -> None:
        """Answer requests until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = await self._gather()
                try:
                    predictions, timing = await loop.run_in_executor(self._worker, self._call, batch)
                except Exception as error:  # whatever a policy raises goes to those who asked, not to all clients
                    _fail(batch, error)
                else:
                    self._answer(batch, predictions, timing)
        finally:
            self._worker.shutdown(wait=False)

    async def _gather(self) -> list[Request]:
        """Wait for a request and take those with it that are there and fit, of clients that still wait."""
        batch = [self._left_over or await self._waiting.get()]
        self._left_over = None
        if self._batch_wait > 0 and batch[0].rows < self._max_batch_size:
            await asyncio.sleep(self._batch_wait)
        rows = batch[0].rows
        while rows < self._max_batch_size and not self._waiting.empty():
            request = self._waiting.get_nowait()
            if request.answer.done():  # its client is gone
                continue
            rows += request.rows
            if rows > self._max_batch_size or request.noise.shape[1:] != batch[0].noise.shape[1:]:
                self._left_over = request
                break
            batch.append(request)
        return batch

    def _call(self, batch: list[Request]) -> tuple[Floats, dict[str, float]]:
        """Decide for a batch; runs in the thread."""
        started = time.perf_counter()
        observation = {key: _joined([request.observation[key] for request in batch]) for key in self._spec.observations}
        noise = np.concatenate([request.noise for request in batch])
        seeds = [seed for request in batch for seed in request.seeds]
        missing = (self._captured or len(noise)) - len(noise)
        if missing > 0:
            observation = {key: _filled(value, missing) for key, value in observation.items()}
            noise, seeds = _filled(noise, missing), seeds + seeds[-1:] * missing
        options = on_the_way(self._policy, self._spec, seeds)
        answer = self._policy.predict_action(observation, noise=noise, noise_scale=1.0, **options)
        timing = {str(stage): float(value) for stage, value in answer.get("timing", {}).items() if stage != "total"}
        predictions = to_array(answer["action_pred"]).astype(np.float32, copy=False)
        return predictions, timing | {"decision": (time.perf_counter() - started) * 1000}

    def _answer(self, batch: list[Request], predictions: Floats, timing: dict[str, float]) -> None:
        now, first = time.perf_counter(), 0
        rows = sum(request.rows for request in batch)
        self.num_batches += 1
        self.num_decisions += rows
        for request in batch:
            mine, first = predictions[first : first + request.rows], first + request.rows
            if request.answer.done():
                continue
            if not np.isfinite(mine).all():
                request.answer.set_exception(FloatingPointError("the policy predicted NaN or infinity"))
                continue
            total = (now - request.received) * 1000
            waited = {"wait": max(total - timing["decision"], 0.0), "total": total, "batch_size": float(rows)}
            request.answer.set_result((mine, timing | waited))


def _joined(values: list[np.ndarray]) -> np.ndarray:
    """Concatenate the values of one key; images of bytes and of floats in 0..1 become floats together."""
    if len({value.dtype for value in values}) > 1:
        values = [value / np.float32(255) if value.dtype == np.uint8 else value for value in values]
    return np.concatenate(values)


def _filled(values: np.ndarray, missing: int) -> np.ndarray:
    """Append so many copies of the last row."""
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])


def _fail(batch: list[Request], error: Exception) -> None:
    for request in batch:
        if not request.answer.done():
            request.answer.set_exception(error)
