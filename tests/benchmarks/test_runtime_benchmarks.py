"""Latency of the runtime and load on the server: the programs run, and their summaries say what was measured."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="needs the package `rich` of the train extra")
pytest.importorskip("diffusers", reason="needs the package `diffusers` of the train extra")
pytest.importorskip("onnxruntime", reason="needs the packages of the export extra")
pytest.importorskip("websockets", reason="needs the packages of the serve extra")

from benchmarks import runtime_latency, server_load  # noqa: E402  # after the packages are there
from drift_policy.runtime.spec import describe_policy  # noqa: E402


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
    assert cases.keys() == {"bare forward", "eager", "onnx", *runtime_latency.ITERATIVE}
    assert all(case["p50_ms"] > 0 and case["p99_ms"] >= case["p50_ms"] for case in cases.values())
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


def test_goals_are_compared_with_what_was_measured() -> None:
    def row(p50: float, times_eager: float) -> dict[str, float | None]:
        return {"p50_ms": p50, "p99_over_p50": 2.0, "times_eager": times_eager}

    cases = {"eager": row(2.0, 1.0), "onnx": row(1.5, 0.7), runtime_latency.DDPM: row(300.0, 150.0)}
    met = [goal["is_met"] for goal in runtime_latency.check_goals({"state": cases})]
    assert met == [False, True, False, False, True]


def test_the_load_program_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.helpers.policies import tiny_policy

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
