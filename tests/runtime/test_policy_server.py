"""The policy server and its client: answers, sessions, wrong requests and limits."""

import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from drift_policy.errors import ConfigurationError
from drift_policy.runtime.client import PolicyClient, ServerError
from drift_policy.runtime.receding_horizon import RecedingHorizon
from drift_policy.runtime.server import ServerConfig
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

    @pytest.mark.parametrize("head", ["drift", "diffusion"])
    def test_it_draws_the_policys_candidates(self, head: str) -> None:
        policy = tiny_policy(head, num_candidates=3)
        drawn: list[tuple[int, int]] = []
        policy.head.network.register_forward_hook(lambda _, given, output: drawn.append(output.shape[:2]))
        obs = {key: value.numpy() for key, value in tiny_obs(policy, 2).items()}
        noise = np.random.default_rng(0).standard_normal((2, 3, 6, 2)).astype(np.float32)
        with running_server(policy) as server, PolicyClient(server.url, seed=5) as client:
            assert client.spec.num_candidates == 3
            first = client.predict_action(obs)["action_pred"]
            client.reset(seed=5)
            np.testing.assert_array_equal(client.predict_action(obs)["action_pred"], first)
            client.predict_action(obs, generator=np.random.default_rng(0))
            several = client.predict_action(obs, noise=noise)["action_pred"]
            warm_up(client, calls=1, batch_size=2)
            assert set(drawn) == {(2, 3)}
            drawn.clear()
            one = client.predict_action(obs, noise=noise[:, 0])["action_pred"]
            assert set(drawn) == {(2, 1)}
            with pytest.raises(ValueError, match=r"noise must be .* \[2, 6, 2\], but has \[2, 2, 6, 2\]"):
                client.predict_action(obs, noise=noise[:, :2])
        if head == "drift":  # diffusion draws on the way, from the server's seeds
            for found, given in ((several, noise), (one, noise[:, 0])):
                expected = policy.predict_action(obs, noise=given)["action_pred"].numpy()
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)

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

    def test_times_are_in_milliseconds(self) -> None:
        class Slow(EchoPolicy):
            def predict_action(self, obs: Any, **options: Any) -> dict[str, Any]:
                time.sleep(0.02)
                return super().predict_action(obs, **options)

        with running_server(Slow(), batch_wait_ms=200.0) as server, PolicyClient(server.url) as client:
            timing = client.predict_action(observe(1))["timing"]
        assert 20 <= timing["server_decision"] <= timing["server_total"] < timing["round_trip"]
        assert timing["server_wait"] >= 199, "for requests that might come"

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

    def test_every_observation_has_a_generator_of_its_own(self) -> None:
        seeds: list[list[int]] = []

        class Iterative(EchoPolicy):
            def __init__(self) -> None:
                super().__init__()
                self.spec = replace(self.spec, num_evaluations=2)

            def predict_action(self, obs: Any, *, generator: Any, **options: Any) -> dict[str, Any]:
                seeds.append([each.initial_seed() for each in generator])
                return super().predict_action(obs, **options)

        with running_server(Iterative()) as server, PolicyClient(server.url, seed=1) as client:
            for _ in range(2):
                client.predict_action(np.zeros((3, 2, 1)))
        assert [len(each) for each in seeds] == [3, 3] and len({*seeds[0], *seeds[1]}) == 6


class TestWrongRequests:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"obs": {"obs": np.zeros((1, 2, 3), np.float32)}}, "must have shape"),
            ({"obs": {"state": np.zeros((1, 2, 1), np.float32)}}, "lacks the key 'obs'"),
            ({"obs": {"obs": np.full((1, 2, 1), np.nan)}}, "holds NaN"),
            ({"obs": {"obs": np.zeros((0, 2, 1), np.float32)}}, "batch size is 0"),
            ({"obs": {"obs": np.zeros((1025, 2, 1), np.float32)}}, "holds 1025 observations: send at most 1024"),
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
