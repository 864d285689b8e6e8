"""The policy server and its client: answers, sessions, limits, batches, clients that die, restarts, shutdown."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from drift_policy import serve
from drift_policy.errors import ConfigurationError
from drift_policy.runtime.client import PolicyClient, ServerError
from drift_policy.runtime.receding_horizon import RecedingHorizon
from drift_policy.runtime.server import PolicyServer, ServerConfig
from drift_policy.runtime.warm_up import warm_up
from drift_policy.runtime.wire import pack, unpack
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


@pytest.fixture
def client(server: RunningServer) -> Iterator[PolicyClient]:
    with PolicyClient(server.url, reconnect_s=5.0) as connected:
        yield connected


def value_of(answer: dict[str, Any]) -> float:
    return float(answer["action_pred"][0, 0, 0])


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


class TestAnswers:
    @pytest.mark.parametrize("head", ["drift", "flow"])
    def test_a_remote_policy_predicts_what_the_policy_predicts(self, head: str) -> None:
        policy = tiny_image_policy(head)
        obs = {key: value.numpy() for key, value in tiny_obs(policy, 3).items()}
        noise = np.random.default_rng(0).standard_normal((3, 6, 2)).astype(np.float32)
        expected = policy.predict_action(obs, noise=noise, noise_scale=0.7)
        with running_server(policy) as server, PolicyClient(server.url) as client:
            found = client.predict_action(obs, noise=noise, noise_scale=0.7)
            floats = client.predict_action(obs | {"image": obs["image"] / 255}, noise=noise, noise_scale=0.7)
        for key in ("action", "action_pred"):
            np.testing.assert_allclose(found[key], expected[key].numpy(), rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(floats[key], expected[key].numpy(), rtol=1e-5, atol=1e-2)

    def test_it_has_the_surface_of_a_policy(self) -> None:
        policy = tiny_policy("regression")
        observations = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
        expected = [policy.select_action(observation).numpy() for observation in observations]
        with running_server(policy) as server, PolicyClient(server.url) as client:
            assert (client.horizon, client.n_obs_steps, client.n_action_steps, client.action_dim) == (6, 2, 3, 2)
            assert (client.metadata, client.num_evaluations) == ({"task": "tiny"}, 1)
            warm_up(client)
            for _ in range(2):
                found = [client.select_action(observation) for observation in observations]
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
                client.reset()
            with RecedingHorizon(client, 10.0, asynchronous=True) as loop:
                assert np.isfinite(loop.step(observations[0]).action).all()

    def test_the_answer_tells_its_time(self, client: PolicyClient) -> None:
        timing = client.predict_action(observe(1))["timing"]
        assert {"server_echo", "server_wait", "server_decision", "server_total", "round_trip", "total"} < timing.keys()
        assert timing["server_echo"] == 0.5
        assert timing["server_batch_size"] == 1
        assert 0 < timing["server_total"] < timing["round_trip"] < timing["total"]

    def test_the_default_noise_scale_is_the_policys(self, client: PolicyClient) -> None:
        noise = np.ones((1, 4, 1))
        assert value_of(client.predict_action(observe(1), noise=noise)) == 1.5
        assert value_of(client.predict_action(observe(1), noise=noise, noise_scale=2.0)) == 3.0
        assert value_of(client.predict_action(observe(1), noise_scale=0.0)) == 1.0

    def test_the_server_tells_facts(self, client: PolicyClient) -> None:
        client.predict_action(observe(1))
        facts = client.server_facts()
        assert (facts["clients"], facts["decisions"], facts["batches"]) == (1, 1, 1)
        assert facts["uptime_s"] > 0

    def test_health_is_asked_for_over_plain_http(self, server: RunningServer) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=10) as answer:
            assert (answer.status, answer.read()) == (200, b"ok\n")


class TestSessions:
    def test_a_seed_makes_the_noise_repeatable_whatever_others_do(self, server: RunningServer) -> None:
        def three(client: PolicyClient) -> list[float]:
            return [value_of(client.predict_action(observe(0))) for _ in range(3)]

        with PolicyClient(server.url, seed=7) as client, PolicyClient(server.url) as other:
            first = three(client)
            three(other)
            goes_on = three(client)
            client.reset(seed=7)
            other.predict_action(observe(0))
            again = three(client)
        assert first == again
        assert len({*first, *goes_on}) == 6

    def test_a_generator_of_the_call_goes_before_the_session(self, server: RunningServer) -> None:
        with PolicyClient(server.url, seed=1) as one, PolicyClient(server.url, seed=2) as other:
            values = [
                value_of(client.predict_action(observe(0), generator=np.random.default_rng(3)))
                for client in (one, other)
            ]
        assert values[0] == values[1]

    def test_an_iterative_head_is_repeatable_too(self) -> None:
        policy = tiny_policy("diffusion")
        obs = {key: value.numpy() for key, value in tiny_obs(policy, 2).items()}
        with running_server(policy) as server, PolicyClient(server.url) as client:
            answers = []
            for seed in (0, 0, 1):
                client.reset(seed=seed)
                answers.append(client.predict_action(obs)["action_pred"])
        np.testing.assert_array_equal(answers[0], answers[1])
        assert not np.allclose(answers[0], answers[2])


class TestWrongRequests:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"obs": {"obs": np.zeros((1, 2, 3), np.float32)}}, "must have shape"),
            ({"obs": {"state": np.zeros((1, 2, 1), np.float32)}}, "lacks the key 'obs'"),
            ({"obs": {"obs": np.full((1, 2, 1), np.nan)}}, "holds NaN"),
            ({"obs": {"obs": np.zeros((0, 2, 1), np.float32)}}, "batch size is 0"),
            ({"obs": None}, "give numbers"),
            ({"obs": {"obs": "text"}}, "give numbers"),
            ({"noise": np.zeros((1, 4, 2), np.float32)}, "noise must be an array of shape"),
            ({"noise": [1, 2]}, "noise must be an array of shape"),
            ({"noise": np.full((1, 4, 1), np.inf)}, "noise holds NaN"),
            ({"noise_scale": -1.0}, "noise_scale must be a number"),
            ({"noise_scale": float("nan")}, "noise_scale must be a number"),
            ({"noise_scale": "big"}, "noise_scale must be a number"),
            ({"type": "reset", "seed": -1}, "seed must be a number"),
            ({"type": "reset", "seed": "x"}, "seed must be a number"),
        ],
    )
    def test_they_are_answered_and_the_connection_stays(
        self, server: RunningServer, change: dict[str, Any], message: str
    ) -> None:
        good = {"type": "predict", "id": 5, "obs": {"obs": observe(1)}, "noise_scale": 0.0}
        with connect(server.url, proxy=None) as connection:
            connection.send(pack(good | change))
            answer = unpack(connection.recv(10))
            assert (answer["type"], answer["is_request_wrong"]) == ("error", True)
            assert message in answer["message"]
            connection.send(pack(good))
            assert unpack(connection.recv(10))["id"] == 5

    def test_the_client_checks_before_it_sends(self, client: PolicyClient, policy: EchoPolicy) -> None:
        with pytest.raises(ValueError, match=r"must have shape \[B, 2, 1\]"):
            client.predict_action(np.zeros((1, 3, 1)))
        with pytest.raises(ValueError, match="noise_scale must be a number"):
            client.predict_action(observe(1), noise_scale=-1.0)
        assert policy.rows == []

    def test_what_the_policy_raises_reaches_the_client_that_asked(self, client: PolicyClient) -> None:
        with pytest.raises(ServerError, match="could not decide: RuntimeError: thirteen"):
            client.predict_action(observe(13))
        assert value_of(client.predict_action(observe(2), noise_scale=0.0)) == 2

    def test_nan_is_never_answered(self, client: PolicyClient) -> None:
        with pytest.raises(ServerError, match="predicted NaN or infinity"):
            client.predict_action(observe(99))

    @pytest.mark.parametrize("data", ["text", b"\xc1", msgpack.packb({"type": "shutdown"}), msgpack.packb([1])])
    def test_other_protocols_are_cut_off(self, server: RunningServer, client: PolicyClient, data: Any) -> None:
        with connect(server.url, proxy=None) as connection:
            connection.send(data)
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1003
        assert value_of(client.predict_action(observe(3), noise_scale=0.0)) == 3


class TestLimits:
    def test_a_message_that_is_too_large_is_refused(self, policy: EchoPolicy) -> None:
        with running_server(policy, max_message_mb=0.01) as server, PolicyClient(server.url) as client:
            with pytest.raises(ServerError, match=r"refuses the message \(1009"):
                client.predict_action(np.zeros((5000, 2, 1)))
            assert value_of(client.predict_action(observe(1), noise_scale=0.0)) == 1

    def test_the_number_of_clients_is_bounded(self, policy: EchoPolicy) -> None:
        with running_server(policy, max_clients=1) as server:
            first = PolicyClient(server.url)
            with pytest.raises(ServerError, match="1 clients"):
                PolicyClient(server.url, reconnect_s=0.2)
            first.close()
            with PolicyClient(server.url) as second:
                assert value_of(second.predict_action(observe(1), noise_scale=0.0)) == 1

    def test_the_token_is_asked_for(self, policy: EchoPolicy) -> None:
        with running_server(policy, token="open sesame") as server:
            for token in (None, "open", "open sesamE"):
                with pytest.raises(ServerError, match="token is missing or wrong"):
                    PolicyClient(server.url, token=token)
            with PolicyClient(server.url, token="open sesame") as client:
                assert client.server_facts()["clients"] == 1

    def test_web_pages_are_refused(self, server: RunningServer) -> None:
        page: Any = "http://example.org"
        with pytest.raises(InvalidStatus) as refused, connect(server.url, origin=page, proxy=None):
            pass
        assert refused.value.response.status_code == 403

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "robot.example.org", ""])
    def test_other_machines_need_a_token(self, host: str) -> None:
        with pytest.raises(ConfigurationError, match="can be reached from other machines: set token"):
            ServerConfig(host=host)
        ServerConfig(host=host, token="secret")

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_loopback_needs_none(self, host: str) -> None:
        ServerConfig(host=host)

    @pytest.mark.parametrize(
        "settings",
        [
            {"port": -1},
            {"port": 70000},
            {"token": ""},
            {"max_message_mb": 0},
            {"max_clients": 0},
            {"batch_wait_ms": -1},
        ],
    )
    def test_settings_that_cannot_work_are_refused(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            ServerConfig(**settings)

    def test_the_token_is_not_shown(self) -> None:
        assert "secret" not in repr(ServerConfig(token="secret"))


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

    def test_bytes_and_floats_of_images_fit_into_one_batch(self) -> None:
        policy = tiny_image_policy("regression")
        obs = {key: value.numpy() for key, value in tiny_obs(policy, 1).items()}
        floats = obs | {"image": obs["image"] / np.float32(255)}
        expected = policy.predict_action(obs)["action_pred"].numpy()
        with running_server(policy, batch_wait_ms=200.0) as server, ThreadPoolExecutor(2) as pool:
            clients = [PolicyClient(server.url) for _ in range(2)]
            for answer in pool.map(
                lambda pair: pair[0].predict_action(pair[1]), zip(clients, (obs, floats), strict=True)
            ):
                assert answer["timing"]["server_batch_size"] == 2
                np.testing.assert_allclose(answer["action_pred"], expected, rtol=1e-5, atol=1e-2)
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
