"""Serve a policy over WebSocket to robots and simulators; `drift_policy.runtime.client.PolicyClient` talks to it.

    python -m drift_policy.serve ckpt=runs/pusht/<name> [host=127.0.0.1] [port=8765] [token=...]

ckpt:            run folder, checkpoint folder, hf://owner/name, or an exported .onnx file
host, port:      where to listen; other machines reach it only with host=0.0.0.0 and a token
token:           what clients must show; the environment variable DRIFT_POLICY_TOKEN is not seen in lists of processes
device:          of a checkpoint: cpu, cuda, ..., or auto, a GPU where there is one
num_threads:     CPU threads of a decision
max_message_mb:  size of the largest message that is read
max_clients:     connections at the same time
max_batch_size:  observations of one decision: requests that wait together are answered together; 1 takes each alone
batch_wait_ms:   how long to wait for further requests to batch
plugins:         modules of yours to import first, for example [my_package.my_backbones]

SIGTERM and Ctrl-C end it after the decisions that are under way.
"""

import asyncio
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from drift_policy.cli import command_line, parse_arguments
from drift_policy.errors import ConfigurationError
from drift_policy.plugins import import_plugins

TOKEN_VARIABLE = "DRIFT_POLICY_TOKEN"


@dataclass
class ServeConfig:
    """Settings of the command; explained above."""

    ckpt: str
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    device: str = "cpu"
    num_threads: int = 1
    max_message_mb: float = 16.0
    max_clients: int = 64
    max_batch_size: int = 8
    batch_wait_ms: float = 0.0
    plugins: list[str] = field(default_factory=list)


def load_served_policy(config: ServeConfig) -> Any:
    """Import the modules of the user and return the policy that `config` names, an exported one without torch."""
    if config.num_threads < 1:
        raise ConfigurationError(f"num_threads must be at least 1, but is {config.num_threads}.")
    import_plugins(config.plugins)
    if config.ckpt.endswith(".onnx"):
        from drift_policy.runtime.onnx_policy import OnnxPolicy

        if config.device != "cpu":
            raise ConfigurationError("An .onnx file is served on the CPU: leave device out, or serve its checkpoint.")
        return OnnxPolicy(config.ckpt, num_threads=config.num_threads)
    import torch

    from drift_policy.device import choose_device
    from drift_policy.runtime.timed_policy import TimedPolicy
    from drift_policy.serialization import load_policy

    torch.set_num_threads(config.num_threads)
    return TimedPolicy(load_policy(config.ckpt, choose_device(config.device)))


def main() -> None:
    """Load, warm up, serve."""
    with command_line() as console:
        config = parse_arguments(ServeConfig, sys.argv[1:], __doc__)
        try:
            from drift_policy.runtime.server import PolicyServer, ServerConfig
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"The server needs the package {error.name}: pip install 'drift-policy[serve]'."
            ) from error
        from drift_policy.runtime.warm_up import warm_up

        settings = ServerConfig(
            host=config.host,
            port=config.port,
            token=config.token or os.environ.get(TOKEN_VARIABLE) or None,
            max_message_mb=config.max_message_mb,
            max_clients=config.max_clients,
            max_batch_size=config.max_batch_size,
            batch_wait_ms=config.batch_wait_ms,
        )
        policy = load_served_policy(config)
        first = warm_up(policy)
        server = PolicyServer(policy, settings)

        def announce() -> None:
            console.print(
                f"serving {config.ckpt} on ws://{config.host}:{server.port}, a decision takes {first.last_ms:.2f} ms"
            )

        asyncio.run(server.run(ready=announce))
        console.print("stopped")


if __name__ == "__main__":
    main()
