"""A client of benchmarks.server_load in a process of its own; imports no torch."""

import json
import sys
import time

import numpy as np

from drift_policy.runtime.client import PolicyClient
from drift_policy.runtime.warm_up import blank_observation

TOLERANCE = 1e-3  # relative; batches of other sizes round otherwise


def main() -> None:
    """Ask one decision after the other for some seconds: python -m benchmarks.load_client URL SEED SECONDS.

    The same observation and noise are given every time, so that every answer is known after the first. Prints
    "ready", waits for a line on stdin, and then prints {"asked", "wrong", "reconnects", "start", "latencies",
    "batch_size"} as JSON; latencies are in seconds.
    """
    url, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    rng = np.random.default_rng(seed)
    with PolicyClient(url, seed=seed, reconnect_s=60.0) as client:
        observation = {
            key: rng.integers(256, size=value.shape, dtype=np.uint8)
            if value.dtype == np.uint8
            else rng.random(value.shape)
            for key, value in blank_observation(client.spec).items()
        }
        noise = rng.standard_normal((1, client.horizon, client.action_dim))
        expected = client.predict_action(observation, noise=noise)["action_pred"]
        print("ready", flush=True)
        sys.stdin.readline()
        asked, wrong, latencies, rows = 0, 0, list[float](), list[float]()
        started = time.time()
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            asked += 1
            begun = time.perf_counter()
            answer = client.predict_action(observation, noise=noise)
            latencies.append(time.perf_counter() - begun)
            rows.append(answer["timing"]["server_batch_size"])
            scale = np.abs(expected).max()
            wrong += int(not np.allclose(answer["action_pred"], expected, rtol=TOLERANCE, atol=TOLERANCE * scale))
        result = {
            "asked": asked,
            "wrong": wrong,
            "reconnects": client.num_reconnects,
            "start": started,
            "latencies": latencies,
            "batch_size": float(np.mean(rows)) if rows else 0.0,
        }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
