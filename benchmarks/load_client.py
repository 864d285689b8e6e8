"""A client of benchmarks.server_load in a process of its own; imports no torch."""

import json
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.runtime.client import PolicyClient, ServerError
from drift_policy.runtime.warm_up import blank_observation

TOLERANCE = 1e-3  # relative; batches of other sizes round otherwise
PREPARE, READY = "prepare", "ready"


def main() -> None:
    """Do what the lines of stdin say until it ends: python -m benchmarks.load_client URL SEED.

    "prepare" makes one decision, so that the connection is there and the right answer known, and prints "ready". A
    number asks one decision after the other for so many seconds and prints the counts of `ask` as JSON.
    """
    url, seed = sys.argv[1], int(sys.argv[2])
    rng = np.random.default_rng(seed)
    with PolicyClient(url, seed=seed, reconnect_s=60.0) as client:
        observation = {
            key: rng.integers(256, size=value.shape, dtype=np.uint8)
            if value.dtype == np.uint8
            else rng.random(value.shape)
            for key, value in blank_observation(client.spec).items()
        }
        noise = rng.standard_normal((1, *client.spec.noise_shape))
        expected = client.predict_action(observation, noise=noise)["action_pred"]
        for line in sys.stdin:
            if line.strip() == PREPARE:
                client.predict_action(observation, noise=noise)
                print(READY, flush=True)
            else:
                print(json.dumps(ask(client, observation, noise, expected, float(line))), flush=True)


def ask(
    client: PolicyClient,
    observation: dict[str, NDArray[Any]],
    noise: NDArray[np.float64],
    expected: NDArray[np.float32],
    seconds: float,
) -> dict[str, Any]:
    """Ask for one decision after the other, always the same, so that every answer is known.

    Returns:
        {"asked", "wrong", "reconnects", "latencies", "batch_size"}; latencies are in seconds and of what was answered,
        the batch size is the mean of the batches in which the server did.
    """
    asked, wrong, latencies, rows = 0, 0, list[float](), list[float]()
    tolerance, reconnects = TOLERANCE * np.abs(expected).max(), client.num_reconnects
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        asked += 1
        begun = time.perf_counter()
        try:
            answer = client.predict_action(observation, noise=noise)
        except ServerError:
            continue  # lost: asked, but no latency
        latencies.append(time.perf_counter() - begun)
        rows.append(answer["timing"]["server_batch_size"])
        wrong += int(not np.allclose(answer["action_pred"], expected, rtol=TOLERANCE, atol=tolerance))
    return {
        "asked": asked,
        "wrong": wrong,
        "reconnects": client.num_reconnects - reconnects,
        "latencies": latencies,
        "batch_size": float(np.mean(rows)) if rows else 0.0,
    }


if __name__ == "__main__":
    main()
