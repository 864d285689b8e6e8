"""The policy server under load and in trouble: batches, clients that die, restarts, shutdown, and its command."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from websockets.sync.client import connect

from drift_policy import serve
from drift_policy.errors import ConfigurationError
from drift_policy.runtime.client import PolicyClient, ServerError
from drift_policy.runtime.server import PolicyServer, ServerConfig
from drift_policy.runtime.wire import pack
from tests.helpers.echo_policy import EchoPolicy, observe
from tests.helpers.image_policies import tiny_image_policy
from tests.helpers.policies import tiny_obs, tiny_policy
from tests.helpers.policy_server import RunningServer, running_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def policy() -> EchoPolicy:
    return EchoPolicy()


@pytest.fixture
def server(policy: EchoPolicy) -> Iterator[RunningServer]:
    with running_server(policy) as running:
        yield running


def value_of(answer: dict[str, Any]) -> float:
    return float(answer["action_pred"][0, 0, 0])


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


@contextmanager
def frozen_relay(port: int) -> Iterator[tuple[int, threading.Event]]:
    """Give a port that leads to `port` for one connection, and an event that swallows everything from then on."""
    freeze = threading.Event()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not freeze.is_set():
                    target.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:

        def relay() -> None:
            near = stack.enter_context(listener.accept()[0])
            far = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            threading.Thread(target=pump, args=(near, far), daemon=True).start()
            threading.Thread(target=pump, args=(far, near), daemon=True).start()

        threading.Thread(target=relay, daemon=True).start()
        yield listener.getsockname()[1], freeze


class TestBatches:
    @pytest.mark.parametrize(("max_batch_size", "expected"), [(8, [1, 5]), (3, [1, 3, 2]), (1, [1] * 6)])
    def test_requests_that_wait_together_are_decided_together(
        self, policy: EchoPolicy, max_batch_size: int, expected: list[int]
    ) -> None:
        with running_server(policy, max_batch_size=max_batch_size) as server, ThreadPoolExecutor(6) as pool:
            clients = [PolicyClient(server.url) for _ in range(6)]
            policy.may_answer.clear()
            first = pool.submit(clients[0].predict_action, observe(100), noise_scale=0.0)
            assert policy.was_asked.wait(10)
            rest = [
                pool.submit(client.predict_action, observe(number), noise_scale=0.0)
                for number, client in enumerate(clients[1:])
            ]
            waiting = server.server._batcher._waiting
            wait_until(lambda: waiting.qsize() == 5)
            policy.may_answer.set()
            assert value_of(first.result(10)) == 100
            assert [value_of(answer.result(10)) for answer in rest] == [0, 1, 2, 3, 4]
            for client in clients:
                client.close()
        assert policy.rows == expected

    def test_large_requests_are_taken_alone_and_none_is_lost(self, policy: EchoPolicy) -> None:
        with running_server(policy, max_batch_size=4, batch_wait_ms=20.0) as server, ThreadPoolExecutor(4) as pool:
            clients = [PolicyClient(server.url) for _ in range(4)]
            sizes = [3, 3, 9, 1]
            answers = [
                pool.submit(client.predict_action, np.full((size, 2, 1), size), noise_scale=0.0)
                for client, size in zip(clients, sizes, strict=True)
            ]
            for answer, size in zip(answers, sizes, strict=True):
                assert answer.result(10)["action_pred"][:, 0, 0].tolist() == [size] * size
            for client in clients:
                client.close()
        assert sum(policy.rows) == 16
        assert all(rows <= 4 or rows == 9 for rows in policy.rows)

    def test_a_policy_that_was_captured_for_a_batch_size_gets_no_other(self) -> None:
        class Captured(EchoPolicy):
            batch_size = 3

            def __init__(self) -> None:
                super().__init__()
                self.spec = replace(self.spec, num_evaluations=2)  # so that it is given generators too

            def predict_action(self, obs: Any, *, generator: Any, **options: Any) -> dict[str, Any]:
                assert len(obs["obs"]) == len(options["noise"]) == len(generator) == self.batch_size
                return super().predict_action(obs, **options)

        policy = Captured()
        with running_server(policy, batch_wait_ms=20.0) as server, ThreadPoolExecutor(5) as pool:
            clients = [PolicyClient(server.url) for _ in range(5)]
            answers = [
                pool.submit(client.predict_action, observe(number), noise_scale=0.0)
                for number, client in enumerate(clients)
            ]
            assert [value_of(answer.result(10)) for answer in answers] == [0, 1, 2, 3, 4]
            with pytest.raises(ValueError, match="obs holds 4 observations: send at most 3 at once"):
                clients[0].predict_action(np.zeros((4, 2, 1)))
            assert clients[0].server_facts()["decisions"] == 5
            assert value_of(clients[0].predict_action(observe(7), noise_scale=0.0)) == 7, "alone, beside two copies"
            for client in clients:
                client.close()
        assert set(policy.rows) == {3}

    def test_noise_of_one_candidate_and_of_all_is_not_decided_together(self) -> None:
        policy = tiny_policy(num_candidates=3)
        obs = {key: value.numpy() for key, value in tiny_obs(policy, 1).items()}
        noise = np.random.default_rng(0).standard_normal((1, 3, 6, 2)).astype(np.float32)
        given = [noise, noise[:, 0], noise, noise[:, 1]]
        with running_server(policy, batch_wait_ms=100.0) as server, ThreadPoolExecutor(4) as pool:
            clients = [PolicyClient(server.url) for _ in given]
            answers = [
                pool.submit(client.predict_action, obs, noise=value)
                for client, value in zip(clients, given, strict=True)
            ]
            for answer, value in zip(answers, given, strict=True):
                expected = policy.predict_action(obs, noise=value)["action_pred"].numpy()
                np.testing.assert_allclose(answer.result(10)["action_pred"], expected, rtol=1e-5, atol=1e-3)
            for client in clients:
                client.close()

    def test_bytes_and_floats_of_images_fit_into_one_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        policy = tiny_image_policy("regression")
        obs = {key: value.numpy() for key, value in tiny_obs(policy, 1).items()}
        floats = obs | {"image": obs["image"] / np.float32(255)}
        expected = policy.predict_action(obs)["action_pred"].numpy()
        decide, was_asked, may_answer = policy.predict_action, threading.Event(), threading.Event()

        def waiting(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
            was_asked.set()
            assert may_answer.wait(20)
            return decide(*arguments, **options)

        monkeypatch.setattr(policy, "predict_action", waiting)
        with running_server(policy) as server, ThreadPoolExecutor(3) as pool:
            clients = [PolicyClient(server.url) for _ in range(3)]
            first = pool.submit(clients[0].predict_action, obs)
            assert was_asked.wait(10)
            rest = [
                pool.submit(client.predict_action, given)
                for client, given in zip(clients[1:], (obs, floats), strict=True)
            ]
            waiting_requests = server.server._batcher._waiting
            wait_until(lambda: waiting_requests.qsize() == 2)
            may_answer.set()
            assert first.result(10)["timing"]["server_batch_size"] == 1
            for answer in rest:
                assert answer.result(10)["timing"]["server_batch_size"] == 2
                np.testing.assert_allclose(answer.result(10)["action_pred"], expected, rtol=1e-5, atol=1e-2)
            for client in clients:
                client.close()


class TestFailures:
    def test_a_client_that_dies_while_it_waits_harms_nobody(self, policy: EchoPolicy, server: RunningServer) -> None:
        with PolicyClient(server.url) as survivor, ThreadPoolExecutor(1) as pool, ExitStack() as leaving:
            dying = leaving.enter_context(connect(server.url, proxy=None))
            policy.may_answer.clear()
            dying.send(pack({"type": "predict", "id": 1, "obs": {"obs": observe(1)}}))
            assert policy.was_asked.wait(10)
            answer = pool.submit(survivor.predict_action, observe(2), noise_scale=0.0)
            dying.socket.close()
            policy.may_answer.set()
            assert value_of(answer.result(10)) == 2
            wait_until(lambda: survivor.server_facts()["clients"] == 1)

    def test_nothing_is_lost_when_the_server_restarts(self) -> None:
        first = RunningServer(EchoPolicy())
        port, answers, stop = first.port, list[float](), threading.Event()

        def ask() -> int:
            with PolicyClient(first.url, reconnect_s=20.0) as client:
                while not stop.is_set():
                    asked = float(len(answers) % 10)
                    answers.append(value_of(client.predict_action(observe(asked), noise_scale=0.0)) - asked)
                return client.num_reconnects

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            wait_until(lambda: len(answers) > 20)
            first.stop()
            before = len(answers)
            with running_server(EchoPolicy(), port=port):
                wait_until(lambda: len(answers) > before + 20)
                stop.set()
                assert asking.result(20) >= 1
        assert set(answers) == {0.0}

    def test_another_policy_after_a_restart_is_noticed(self) -> None:
        with running_server(EchoPolicy("one")) as first:
            client, port = PolicyClient(first.url, reconnect_s=5.0), first.port
        with running_server(EchoPolicy("other"), port=port), pytest.raises(ServerError, match="another policy"):
            client.predict_action(observe(1))

    def test_noise_goes_on_after_a_reconnection(self, server: RunningServer) -> None:
        with PolicyClient(server.url, seed=3) as client:
            first = value_of(client.predict_action(observe(0)))
            client.close()
            assert value_of(client.predict_action(observe(0))) != first

    def test_a_server_that_is_away_is_named(self) -> None:
        with pytest.raises(ServerError, match=r"cannot be reached .*is python -m drift_policy.serve running there"):
            PolicyClient("ws://127.0.0.1:9", reconnect_s=0.1)
        with pytest.raises(ServerError, match="no address of a server"):
            PolicyClient("127.0.0.1:9", reconnect_s=0.1)

    def test_an_answer_that_takes_too_long_is_given_up(self, policy: EchoPolicy, server: RunningServer) -> None:
        with PolicyClient(server.url, timeout_s=0.3) as client:
            policy.may_answer.clear()
            with pytest.raises(ServerError, match="did not answer within 0.3 s"):
                client.predict_action(observe(1))
            policy.may_answer.set()
            assert value_of(client.predict_action(observe(2), noise_scale=0.0)) == 2

    def test_a_network_that_is_gone_costs_no_more_than_the_timeout(self, server: RunningServer) -> None:
        with frozen_relay(server.port) as (port, freeze):
            client = PolicyClient(f"ws://127.0.0.1:{port}", timeout_s=0.3)
            freeze.set()
            started = time.monotonic()
            with pytest.raises(ServerError, match="did not answer within 0.3 s"):
                client.predict_action(observe(1))
            assert time.monotonic() - started < 5, "a good-bye that nobody answers is not waited for"

    def test_a_good_bye_is_waited_for_half_a_second_at_most(
        self, server: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []

        def noted(url: str, **options: Any) -> Any:
            waits.append(options["close_timeout"])
            return connect(url, **options)

        monkeypatch.setattr("drift_policy.runtime.client.connect", noted)
        for timeout in (0.3, 10.0):
            PolicyClient(server.url, timeout_s=timeout).close()
        assert waits == [0.3, 0.5]

    def test_a_shutdown_answers_what_is_under_way(self, policy: EchoPolicy) -> None:
        server = RunningServer(policy)
        with PolicyClient(server.url, reconnect_s=0.2) as client, ThreadPoolExecutor(1) as pool:
            idle = PolicyClient(server.url)
            policy.may_answer.clear()
            answer = pool.submit(client.predict_action, observe(4), noise_scale=0.0)
            assert policy.was_asked.wait(10)
            server.begin_stop()
            time.sleep(0.1)
            policy.may_answer.set()
            assert value_of(answer.result(10)) == 4
            server.stop()
            with pytest.raises(ServerError, match="cannot be reached"):
                client.predict_action(observe(4))
            idle.close()

    def test_a_port_that_is_taken_is_named(self, server: RunningServer) -> None:
        async def run() -> None:
            await PolicyServer(EchoPolicy(), ServerConfig(port=server.port)).run(stop=asyncio.Event())

        with pytest.raises(ConfigurationError, match=f"Cannot listen on 127.0.0.1:{server.port}"):
            asyncio.run(run())


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["ckpt=nowhere"], "nowhere does not exist"),
            (["ckpt=nowhere", "host=0.0.0.0"], "can be reached from other machines"),
            (["ckpt=nowhere.onnx", "device=cuda"], "An .onnx file is served on the CPU"),
            (["ckpt=nowhere", "device=gpu"], "device=gpu cannot be used"),
            (["ckpt=nowhere", "prot=1"], "did you mean port"),
        ],
    )
    def test_what_does_not_fit_is_named(
        self, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["serve", *arguments])
        monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
        with pytest.raises(SystemExit) as ended:
            serve.main()
        assert ended.value.code == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())

    def test_it_serves_a_checkpoint_until_sigterm(self, tmp_path: Path) -> None:
        policy = tiny_policy("drift")
        policy.save_pretrained(tmp_path)
        environment = os.environ | {"DRIFT_POLICY_TOKEN": "from the environment"}
        command = [sys.executable, "-u", "-m", "drift_policy.serve", f"ckpt={tmp_path}", "port=0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
            assert process.stdout is not None
            text = ""
            while "a decision takes" not in text:
                line = process.stdout.readline()
                assert line, "the server ended"
                text += line
            url = next(word.rstrip(",") for word in text.split() if word.startswith("ws://"))
            obs, noise = tiny_obs(policy, 1), torch.zeros(1, 6, 2)
            with PolicyClient(url, token="from the environment") as client:
                found = client.predict_action({"obs": obs["obs"].numpy()}, noise=noise.numpy())["action_pred"]
                np.testing.assert_allclose(
                    found, policy.predict_action(obs, noise=noise)["action_pred"].numpy(), rtol=1e-5, atol=1e-3
                )
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
            assert "stopped" in process.stdout.read()
