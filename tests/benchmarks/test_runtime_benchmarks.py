"""Latency of the runtime and load on the server: the programs run, and their summaries say what was measured."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("rich", reason="needs the package `rich` of the train extra")
pytest.importorskip("diffusers", reason="needs the package `diffusers` of the train extra")
pytest.importorskip("onnxruntime", reason="needs the packages of the export extra")
pytest.importorskip("websockets", reason="needs the packages of the serve extra")

from benchmarks import load_client, runtime_latency, server_load, timing  # noqa: E402  # after the packages are there
from benchmarks.timing import measure_in_turns  # noqa: E402
from drift_policy.runtime.client import ServerError  # noqa: E402
from drift_policy.runtime.onnx_policy import OnnxPolicy  # noqa: E402
from drift_policy.runtime.spec import describe_policy  # noqa: E402
from tests.helpers.image_policies import tiny_image_policy  # noqa: E402
from tests.helpers.policies import CallCounter, tiny_obs, tiny_policy  # noqa: E402
from tests.helpers.scripted_policy import Clock  # noqa: E402


def test_the_latency_program_writes_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "latency.json"
    arguments = ["--threads", "1", "--only", "state", "--rounds", "1", "--repeats", "2", "--no-compile"]
    monkeypatch.setattr(sys, "argv", ["runtime_latency", *arguments, "--output", str(output)])
    threads = torch.get_num_threads()
    try:
        runtime_latency.main()
    finally:
        torch.set_num_threads(threads)
    content = json.loads(output.read_text())
    cases = content["threads"]["1"]["state"]
    loops = {"eager, robot loop", "onnx, robot loop"}
    single = {"eager, one candidate", "onnx, one candidate"}
    assert cases.keys() == {"bare forward", "eager", "onnx", *loops, *single, *runtime_latency.ITERATIVE}
    assert all(case["p50_ms"] > 0 and case["p99_ms"] >= case["p50_ms"] for case in cases.values())
    assert all(case["calls"] >= 2 and case["after_others_ms"] > 0 for case in cases.values())
    assert [goal["goal"] for goal in content["goals_on_one_thread"]] == [
        "state, onnx: p50_ms < 1",
        "state, eager: p50_ms < 3",
        "state, onnx: p99_over_p50 < 1.5",
        "state, eager: p99_over_p50 < 1.5",
        "state: DDPM, 100 evaluations, at least 100 times eager",
    ]


@pytest.mark.parametrize("name", runtime_latency.IMAGE_POLICIES)
def test_the_image_policies_read_their_observations(name: str) -> None:
    policy = runtime_latency.make_policy(name)
    observation = runtime_latency.random_observation(describe_policy(policy))
    action = policy.predict_action(observation)["action"]
    assert action.shape == (1, policy.n_action_steps, policy.action_dim)
    forward = runtime_latency.bare_forward(policy, observation)
    assert forward().shape == (1, 1, policy.horizon, policy.action_dim)


def test_the_single_cases_and_diffusion_draw_one_chunk(tmp_path: Path) -> None:
    policy = tiny_policy(num_candidates=3)
    example = {key: value.numpy() for key, value in tiny_obs(policy, 1).items()}
    drawn: list[int] = []
    policy.head.network.register_forward_hook(lambda _, given, output: drawn.append(output.shape[1]))
    cases = runtime_latency.single_candidate_cases(policy, example, 1, tmp_path / "single.onnx")
    assert cases.keys() == {"eager, one candidate", "onnx, one candidate"}
    assert OnnxPolicy(tmp_path / "single.onnx").spec.num_candidates == 1
    drawn.clear()
    for call, _ in cases.values():
        assert call()["action_pred"].shape == (1, 6, 2)
    assert drawn == [1]
    assert runtime_latency.bare_forward(policy, example)().shape == (1, 3, 6, 2)
    assert runtime_latency.with_diffusion(policy, {}).config.num_candidates == 1


def test_the_loop_cases_decide_in_every_step_and_encode_its_newest_observation() -> None:
    policy = tiny_image_policy()
    example = {key: value.numpy() for key, value in tiny_obs(policy, 1).items()}
    network, backbone = CallCounter(policy.head.network), CallCounter(policy.encoder.backbones["image"])
    cases = runtime_latency.loop_cases("eager", policy, example)
    assert cases.keys() == {"eager, robot loop", "eager, step ahead"}
    step, ahead = (call for call, _ in cases.values())
    for _ in range(3):
        step()
    assert (network.rows, backbone.rows) == ([1, 1, 1], [2, 1, 1])
    ahead()
    assert (network.calls, backbone.rows) == (3, [2, 1, 1, 1])
    assert runtime_latency.loop_cases("eager", tiny_policy(), {"obs": np.zeros((1, 2, 5))}).keys() == {
        "eager, robot loop"
    }


def test_first_calls_of_a_turn_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is slow after the other case has run, as with cold caches."""
    last, clock = "", Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))

    def call(name: str, first: float, later: float) -> None:
        nonlocal last
        clock.now += later if last == name else first
        last = name

    calls = {"fast": partial(call, "fast", 0.01, 0.001), "slow": partial(call, "slow", 0.03, 0.03)}
    times = measure_in_turns(calls, rounds=2, repeats=3)
    assert len(times["fast"].first) == len(times["slow"].first) == 2
    assert times["fast"].first == pytest.approx([10, 10])
    assert times["fast"].steady == pytest.approx([1] * len(times["fast"].steady))
    assert len(times["fast"].steady) > 6  # more than asked for, because they are fast
    assert len(times["slow"].steady) == 6


def test_goals_are_compared_with_what_was_measured() -> None:
    def row(p50: float, times_eager: float) -> dict[str, float | None]:
        return {"p50_ms": p50, "p99_over_p50": 2.0, "times_eager": times_eager}

    cases = {"eager": row(2.0, 1.0), "onnx": row(1.5, 0.7), runtime_latency.DDPM: row(300.0, 150.0)}
    met = [goal["is_met"] for goal in runtime_latency.check_goals({"state": cases})]
    assert met == [False, True, False, False, True]


def test_questions_without_an_answer_are_lost() -> None:
    """A server that answers every second question."""
    answer = {"action_pred": np.ones((1, 6, 2)), "timing": {"server_batch_size": 2.0}}

    class Client:
        num_reconnects = 0
        asked = 0

        def predict_action(self, observation: object, noise: object) -> dict[str, object]:
            self.asked += 1
            if self.asked % 2:
                raise ServerError("no answer")
            return answer

    client = Client()
    result = load_client.ask(client, {}, np.zeros(1), np.ones((1, 6, 2)), seconds=0.01)  # type: ignore[arg-type]
    assert result["asked"] == client.asked > 2 and len(result["latencies"]) == client.asked // 2
    assert result["wrong"] == 0 and result["batch_size"] == 2
    with pytest.raises(SystemExit, match="answered nothing"):
        server_load.latencies_of([result | {"latencies": []}])


def test_the_load_program_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_policy("drift").save_pretrained(tmp_path / "checkpoint")
    output = tmp_path / "load.json"
    arguments = ["--ckpt", str(tmp_path / "checkpoint"), "--clients", "1", "2", "--batch-sizes", "8"]
    monkeypatch.setattr(sys, "argv", ["server_load", *arguments, "--seconds", "0.3", "--output", str(output)])
    server_load.main()
    content = json.loads(output.read_text())
    assert [(load["clients"], load["lost"], load["wrong"]) for load in content["loads"]] == [(1, 0, 0), (2, 0, 0)]
    assert all(load["decisions_per_s"] > 0 and load["p99_ms"] >= load["p50_ms"] > 0 for load in content["loads"])
    faults = content["faults"]
    assert (faults["lost"], faults["wrong"], faults["surviving_clients"]) == (0, 0, 3)
    # Every survivor came back, and waited for the server about as long as that was away.
    assert faults["reconnects"] >= 3
    assert faults["longest_wait_s"] > 0.5 * faults["server_away_s"]
