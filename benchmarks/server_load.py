"""Load on the policy server over loopback: decisions/s and latency with many clients, and what failures cost.

    python -m benchmarks.server_load [--ckpt pretrained/pusht] [--output results/server_load.json]

Server and clients are processes of their own. Each client asks for one decision after the other, as fast as it gets
answers. Then, with clients that go on, one client is killed and the server is stopped and started again: every
question of the others must still get its right answer, at the latest from the new server.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from drift_policy.manifest import describe_run, write_json

HOST = "127.0.0.1"
START_TIMEOUT = 180.0  # seconds
FAULT_CLIENTS = 4


@dataclass(frozen=True)
class Load:
    """What is served, and how."""

    ckpt: str
    max_batch_size: int
    port: int

    def start(self) -> "subprocess.Popen[str]":
        """Start the server and wait until it listens."""
        command = ["drift_policy.serve", f"ckpt={self.ckpt}", f"host={HOST}", f"port={self.port}"]
        process = _python(*command, f"max_batch_size={self.max_batch_size}")
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SystemExit(f"The server ended with code {process.returncode}.")
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return process
            time.sleep(0.05)
        process.kill()
        raise SystemExit("The server does not listen.")


def _python(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def start_clients(load: Load, number: int, seconds: float) -> list["subprocess.Popen[str]"]:
    """Start clients and let them begin together when all are connected."""
    url = f"ws://{HOST}:{load.port}"
    clients = [_python("benchmarks.load_client", url, str(seed), str(seconds)) for seed in range(number)]
    for client in clients:
        assert client.stdout is not None
        if client.stdout.readline() != "ready\n":
            raise SystemExit("A client could not connect; its error is above.")
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    return clients


def finish(client: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a client and return what it counted."""
    output, _ = client.communicate(timeout=START_TIMEOUT)
    if client.returncode != 0:
        raise SystemExit(f"A client ended with code {client.returncode}; its error is above.")
    return dict(json.loads(output.splitlines()[-1]))


def stop(server: "subprocess.Popen[str]") -> float:
    """Send SIGTERM and return the seconds until the server has ended, with code 0."""
    begun = time.perf_counter()
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    if server.returncode != 0:
        raise SystemExit(f"The server ended with code {server.returncode} after SIGTERM.")
    return time.perf_counter() - begun


def measure_load(load: Load, number: int, seconds: float) -> dict[str, Any]:
    """Return rates and latencies with `number` clients."""
    server = load.start()
    results = [finish(client) for client in start_clients(load, number, seconds)]
    stop(server)
    times = 1000 * np.concatenate([result["latencies"] for result in results])
    return {
        "clients": number,
        "max_batch_size": load.max_batch_size,
        "decisions_per_s": len(times) / seconds,
        "p50_ms": float(np.median(times)),
        "p99_ms": float(np.percentile(times, 99)),
        "mean_batch_size": float(np.mean([result["batch_size"] for result in results])),
        "lost": sum(result["asked"] - len(result["latencies"]) for result in results),
        "wrong": sum(result["wrong"] for result in results),
    }


def measure_faults(load: Load, seconds: float) -> dict[str, Any]:
    """Kill a client, then restart the server, while the others go on."""
    server = load.start()
    victim, *survivors = start_clients(load, FAULT_CLIENTS, seconds)
    time.sleep(seconds / 4)
    victim.kill()
    victim.communicate()
    time.sleep(seconds / 4)
    away = time.perf_counter()
    stop_seconds = stop(server)
    server = load.start()
    away = time.perf_counter() - away
    results = [finish(client) for client in survivors]
    stop(server)
    return {
        "surviving_clients": len(results),
        "asked": sum(result["asked"] for result in results),
        "lost": sum(result["asked"] - len(result["latencies"]) for result in results),
        "wrong": sum(result["wrong"] for result in results),
        "reconnects": sum(result["reconnects"] for result in results),
        "server_stop_s": stop_seconds,
        "server_away_s": away,
        "longest_wait_s": max(max(result["latencies"]) for result in results),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="pretrained/pusht", help="checkpoint or .onnx file")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="values of max_batch_size")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    if min(*arguments.clients, *arguments.batch_sizes, arguments.seconds) <= 0:
        parser.error("--clients, --batch-sizes and --seconds must be positive.")

    console, before = Console(), os.getloadavg()[0]  # well above zero: other programs were running
    loads = []
    with console.status("measuring") as status:
        for size in arguments.batch_sizes:
            for number in arguments.clients:
                status.update(f"{number} clients, batches of up to {size}")
                loads.append(measure_load(Load(arguments.ckpt, size, free_port()), number, arguments.seconds))
        status.update("killing a client, restarting the server")
        faults = measure_faults(Load(arguments.ckpt, max(arguments.batch_sizes), free_port()), 2 * arguments.seconds)
    table = Table("clients", "largest batch", "decisions/s", "p50 [ms]", "p99 [ms]", "mean batch", "lost", "wrong")
    for row in loads:
        numbers = [f"{row[name]:.2f}" for name in ("decisions_per_s", "p50_ms", "p99_ms", "mean_batch_size")]
        table.add_row(str(row["clients"]), str(row["max_batch_size"]), *numbers, str(row["lost"]), str(row["wrong"]))
    console.print(table)
    console.print(
        f"a client killed and the server restarted: {faults['asked']} asked, {faults['lost']} lost, "
        f"{faults['wrong']} wrong, longest wait {faults['longest_wait_s']:.1f} s"
    )
    if arguments.output:
        facts = describe_run("-m benchmarks.server_load", sys.argv[1:])
        settings = {"ckpt": arguments.ckpt, "seconds": arguments.seconds, "load_average_before": before}
        write_json(arguments.output, {**facts, **settings, "loads": loads, "faults": faults})


if __name__ == "__main__":
    main()
