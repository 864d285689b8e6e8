"""Environments in processes of their own: signals do not reach them, and one that dies is reported in words."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection, resource_tracker
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from drift_policy.errors import EnvironmentProcessError

_STOPPING = (signal.SIGINT, signal.SIGTERM)
# What a pipe raises whose other end is gone.
_PIPE_ERRORS = (EOFError, BrokenPipeError, ConnectionResetError)
_SECONDS_TO_END = 5.0  # a process closes what it holds a moment before its exit code is known
MakeEnv = Callable[[], gym.Env[Any, Any]]


@contextmanager
def processes_of_environments(make_env: MakeEnv, n_envs: int, section: str) -> Iterator[AsyncVectorEnv]:
    """Give `n_envs` environments, each in its process, and end the processes afterwards.

    Args:
        make_env: makes one environment; called in its process.
        n_envs: how many.
        section: where the settings of the rollout stand in a configuration, for messages.

    Raises:
        EnvironmentProcessError: one of the processes ended by itself, as when the system runs out of memory.
    """
    # Processes are spawned, because a forked process inherits locked threads and rendering contexts.
    make_apart = partial(_make_apart, make_env, os.getpid())
    advice = f"Take fewer of them with {section}.n_envs (now {n_envs}), or none with {section}.asynchronous=false."
    try:
        with _signals_later():
            envs = AsyncVectorEnv([make_apart] * n_envs, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
    except _PIPE_ERRORS as error:
        raise EnvironmentProcessError(f"The process of an environment ended while it started. {advice}") from error
    try:
        yield envs
    except _PIPE_ERRORS as error:
        died = _how_one_died(envs)
        _end(envs)
        if died is None:
            raise
        raise EnvironmentProcessError(f"The process of an environment ended by itself ({died}). {advice}") from error
    finally:
        envs.close()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Keep what would stop the program until the end; processes that are started meanwhile begin without it."""
    resource_tracker.ensure_running()  # its start, which multiprocessing leaves to the first process, unblocks them
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _make_apart(make_env: MakeEnv, program: int) -> gym.Env[Any, Any]:
    """Make an environment in a worker that Ctrl-C does not reach; process `program` ends it when it has saved."""
    if os.getpid() != program:  # the program makes one too, to learn the spaces
        os.setpgrp()
        for number in _STOPPING:  # drops one that came while this process started
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how the program ends workers that do not answer
    return make_env()


def _how_one_died(envs: AsyncVectorEnv) -> str | None:
    """Return how a process ended that did not report an error of its environment, None if all go on."""
    # An environment that raised an error has sent it, and its pipe is gone.
    silent = [process for process, pipe in zip(envs.processes, envs.parent_pipes, strict=True) if pipe is not None]
    ended = connection.wait([process.sentinel for process in silent], _SECONDS_TO_END)
    for process in silent:
        if process.sentinel in ended:
            process.join(_SECONDS_TO_END)
    codes = [process.exitcode for process in silent if process.exitcode is not None]
    if not codes:
        return None
    code = min(codes)  # signals are negative
    if code == -signal.SIGKILL:
        return "SIGKILL, which the system sends when memory runs out"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _end(envs: AsyncVectorEnv) -> None:
    """End all processes without a word to them: one that is gone would not answer."""
    for process in envs.processes:
        process.terminate()
    for process in envs.processes:
        process.join()
    for pipe in envs.parent_pipes:
        if pipe is not None:
            pipe.close()
    envs.closed = True
