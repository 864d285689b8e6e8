"""Load on the policy server over loopback: decisions/s and latency with many clients, and what failures cost.

    python -m benchmarks.server_load [--ckpt pretrained/pusht] [--output results/server_load.json]

Server and clients are processes of their own. Each client asks for one decision after the other, as fast as it gets
answers. Then, with clients that go on, one client is killed and the server is stopped and started again: every
question of the others must still get its right answer, at the latest from the new server.

Half a minute by default, most of which is processes that start; --seconds 10 gives steadier percentiles.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.load_client import PREPARE, READY
from drift_policy.manifest import describe_run, write_json

HOST = "127.0.0.1"
START_TIMEOUT = 180.0  # seconds
FAULT_CLIENTS = 4
FAULT_PHASES = 4  # parts of the time of the faults: undisturbed, a client dies, the server restarts, undisturbed

Process = subprocess.Popen[str]


class Server:
    """The policy server in a process of its own, which ends with the block.

    Args:
        ckpt: what is served.
        max_batch_size: observations of one decision.
        port: where it listens.
    """

    def __init__(self, ckpt: str, max_batch_size: int, port: int) -> None:
        self.max_batch_size, self.port = max_batch_size, port
        settings = (f"ckpt={ckpt}", f"host={HOST}", f"port={port}", f"max_batch_size={max_batch_size}")
        self._command = ("drift_policy.serve", *settings)
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        process = self._process = _python(*self._command)
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SystemExit(f"The server ended with code {process.returncode}.")
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit("The server does not listen.")

    def stop(self) -> float:
        """Send SIGTERM and return the seconds until it has ended, with code 0."""
        assert self._process is not None
        begun = time.perf_counter()
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            raise SystemExit(f"The server ended with code {self._process.returncode} after SIGTERM.")
        return time.perf_counter() - begun

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def _python(*arguments: str) -> Process:
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def clients_of(port: int, number: int) -> Iterator[list[Process]]:
    """Start clients, which wait for a server on the port, and end them at last."""
    clients = [_python("benchmarks.load_client", f"ws://{HOST}:{port}", str(seed)) for seed in range(number)]
    try:
        yield clients
    finally:
        for client in clients:
            client.kill()
            client.communicate()


def _tell(client: Process, line: str) -> None:
    assert client.stdin is not None
    client.stdin.write(f"{line}\n")
    client.stdin.flush()


def _read(client: Process) -> str:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise SystemExit(f"A client ended with code {client.wait()}; its error is above.")
    return line.strip()


def begin(clients: Sequence[Process], seconds: float) -> None:
    """Let clients ask for so many seconds, together from when all of them are connected."""
    for client in clients:
        _tell(client, PREPARE)
    for client in clients:
        if _read(client) != READY:
            raise SystemExit("A client is not ready.")
    for client in clients:
        _tell(client, str(seconds))


def finish(clients: Sequence[Process]) -> list[dict[str, Any]]:
    """Wait for clients and return what each counted."""
    return [dict(json.loads(_read(client))) for client in clients]


def latencies_of(results: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Return the seconds of all answers.

    Raises:
        SystemExit: there was none.
    """
    latencies = np.concatenate([np.asarray(result["latencies"], dtype=np.float64) for result in results])
    if len(latencies) == 0:
        raise SystemExit("The server answered nothing.")
    return latencies


def measure_load(server: Server, clients: Sequence[Process], seconds: float) -> dict[str, Any]:
    """Return rates and latencies with so many clients."""
    begin(clients, seconds)
    results = finish(clients)
    times = 1000 * latencies_of(results)
    return {
        "clients": len(clients),
        "max_batch_size": server.max_batch_size,
        "decisions_per_s": len(times) / seconds,
        "p50_ms": float(np.median(times)),
        "p99_ms": float(np.percentile(times, 99)),
        "mean_batch_size": float(np.mean([result["batch_size"] for result in results])),
        "lost": sum(result["asked"] - len(result["latencies"]) for result in results),
        "wrong": sum(result["wrong"] for result in results),
    }


def measure_faults(server: Server, clients: Sequence[Process], seconds: float) -> dict[str, Any]:
    """Kill a client, then restart the server, while the others go on."""
    victim, *survivors = clients
    begin(clients, seconds)
    time.sleep(seconds / 4)
    victim.kill()
    victim.wait()
    time.sleep(seconds / 4)
    away = time.perf_counter()
    stop_seconds = server.stop()
    server.start()
    away = time.perf_counter() - away
    results = finish(survivors)
    return {
        "surviving_clients": len(results),
        "asked": sum(result["asked"] for result in results),
        "lost": sum(result["asked"] - len(result["latencies"]) for result in results),
        "wrong": sum(result["wrong"] for result in results),
        "reconnects": sum(result["reconnects"] for result in results),
        "server_stop_s": stop_seconds,
        "server_away_s": away,
        "longest_wait_s": float(latencies_of(results).max()),
    }


def measure(arguments: argparse.Namespace, progress: Progress) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the loads, and the faults, which end them."""
    port, loads = free_port(), []
    task = progress.add_task("starting", total=len(arguments.batch_sizes) * len(arguments.clients) + 1)
    with clients_of(port, max(*arguments.clients, FAULT_CLIENTS)) as clients:
        for size in arguments.batch_sizes:
            with Server(arguments.ckpt, size, port) as server:
                for number in arguments.clients:
                    progress.update(task, description=f"{number} clients, batches of up to {size}")
                    loads.append(measure_load(server, clients[:number], arguments.seconds))
                    progress.advance(task)
                if size == arguments.batch_sizes[-1]:
                    progress.update(task, description="killing a client, restarting the server")
                    faults = measure_faults(server, clients[:FAULT_CLIENTS], FAULT_PHASES * arguments.seconds)
                    progress.advance(task)
                server.stop()
    return loads, faults


def parse_arguments() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="pretrained/pusht", help="checkpoint or .onnx file")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="values of max_batch_size")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each measurement")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    if min(*arguments.clients, *arguments.batch_sizes, arguments.seconds) <= 0:
        parser.error("--clients, --batch-sizes and --seconds must be positive.")
    return arguments


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    console, before = Console(), os.getloadavg()[0]  # well above zero: other programs were running
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        loads, faults = measure(arguments, progress)
    table = Table("clients", "largest batch", "decisions/s", "p50 [ms]", "p99 [ms]", "mean batch", "lost", "wrong")
    for row in loads:
        numbers = [f"{row[name]:.2f}" for name in ("decisions_per_s", "p50_ms", "p99_ms", "mean_batch_size")]
        table.add_row(str(row["clients"]), str(row["max_batch_size"]), *numbers, str(row["lost"]), str(row["wrong"]))
    console.print(table)
    console.print(
        f"a client killed and the server restarted: {faults['asked']} asked, {faults['lost']} lost, "
        f"{faults['wrong']} wrong, longest wait for an answer {faults['longest_wait_s']:.1f} s"
    )
    if arguments.output:
        facts = describe_run("-m benchmarks.server_load", sys.argv[1:])
        settings = {"ckpt": arguments.ckpt, "seconds": arguments.seconds, "load_average_before": before}
        write_json(arguments.output, {**facts, **settings, "loads": loads, "faults": faults})


if __name__ == "__main__":
    main()
