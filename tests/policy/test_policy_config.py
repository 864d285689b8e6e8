"""Policy configurations: what they refuse, and their way to JSON and back."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from drift_policy import DriftPolicy, Policy, PolicyConfig, build_policy
from drift_policy.config import parse_choice, parse_config
from drift_policy.encoders import IMAGE_BACKBONES, ObservationSpec
from drift_policy.errors import ConfigurationError
from drift_policy.heads import HEADS
from drift_policy.heads.diffusion import DiffusionHeadConfig
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.networks import NETWORKS as NETWORK_KINDS
from drift_policy.networks import MlpConfig, TransformerConfig
from drift_policy.policy_config import policy_config_from_mapping
from tests.helpers.policies import HEAD_NAMES, NETWORKS, tiny_config, tiny_policy

FILES = Path(__file__).resolve().parents[2] / "configs/policy"
PARTS: dict[str, Any] = {"head": HEADS, "network": NETWORK_KINDS, "image_backbone": IMAGE_BACKBONES}


def mapping(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "action_dim": 2,
        "observations": {"obs": {"kind": "state", "shape": [5]}},
        "head": {"name": "drift"},
        "network": {"name": "mlp"},
    }
    return values | changes


@pytest.mark.parametrize("head", HEAD_NAMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_round_trip_through_json(head: str, network: str) -> None:
    config = tiny_config(head, network, observations={"b": 3, "a": 1}, noise_scale=0.25, num_candidates=16)
    restored = policy_config_from_mapping(json.loads(json.dumps(config.to_mapping())))
    assert restored == config
    assert list(restored.observations) == ["b", "a"], "the order of the keys is the order of the network's input"


def test_left_out_settings_have_the_defaults_of_push_t() -> None:
    config = policy_config_from_mapping(mapping())
    assert config == PolicyConfig(action_dim=2, observations={"obs": ObservationSpec(shape=[5])})
    assert (config.horizon, config.n_obs_steps, config.n_action_steps, config.noise_scale) == (16, 2, 8, 1.0)


def test_a_hydra_configuration_is_accepted() -> None:
    values = OmegaConf.create(mapping(horizon=10, head={"name": "drift", "temperatures": [0.1]}))
    config = policy_config_from_mapping(values)
    assert config.horizon == 10 and config.head == DriftHeadConfig(temperatures=[0.1])


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"policy\.horizn does not exist; expected some of .*horizon", {"horizn": 16}),
        (r"policy\.head_name does not exist", {"head_name": "drift"}),
        (r"policy\.horizon must be a number, but is '16'", {"horizon": "16"}),
        (r"policy\.horizon must be a number, but is 16\.5", {"horizon": 16.5}),
        (r"policy\.n_obs_steps must be a number, but is True", {"n_obs_steps": True}),
        (r"policy\.noise_scale must be a number, but is None", {"noise_scale": None}),
        (r"policy\.num_candidates must be a number, but is 1\.5", {"num_candidates": 1.5}),
        (
            r"'dirft' is unknown: expected one of \['diffusion', 'drift', 'flow', 'mip', 'regression'\]",
            {"head": {"name": "dirft"}},
        ),
        (r"'unet'; choose one of: mlp, conditional_unet1d, transformer", {"network": {"name": "unet"}}),
        (r"policy\.head\.name has no value", {"head": {"scope": "batch"}}),
        (r"policy\.network\.name has no value", {"network": {"name": 3}}),
        (
            r"policy\.head\.temperature does not exist; did you mean temperatures",
            {"head": {"name": "drift", "temperature": 1}},
        ),
        (r"policy\.head\.x does not exist; expected one of nothing", {"head": {"name": "regression", "x": 1}}),
        (r"policy\.network\.witdh does not exist; did you mean width", {"network": {"name": "mlp", "witdh": 8}}),
        (r"policy\.network\.width does not fit: .*wide", {"network": {"name": "mlp", "width": "wide"}}),
        (r"width is 0", {"network": {"name": "mlp", "width": 0}}),
        (r"policy\.observations\.obs\.size does not exist", {"observations": {"obs": {"size": 5}}}),
        (
            r"'lidar' is unknown: expected one of \['image', 'state'\]",
            {"observations": {"obs": {"kind": "lidar", "shape": [5]}}},
        ),
        (r"shape \[numbers per step\], not \[3, 4\]", {"observations": {"obs": {"shape": [3, 4]}}}),
        (r"shape \[numbers per step\], not \[0\]", {"observations": {"obs": {"shape": [0]}}}),
        (r"shape \[numbers per step\], not \[\]", {"observations": {"obs": {}}}),
        (r"policy\.observations is empty", {"observations": {}}),
        (r"policy\.observations\.action would hide", {"observations": {"action": {"shape": [2]}}}),
    ],
)
def test_a_wrong_mapping_is_named(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=message):
        policy_config_from_mapping(mapping(**changes))


@pytest.mark.parametrize("key", ["action_dim", "observations"])
def test_a_missing_value_is_named(key: str) -> None:
    values = mapping()
    del values[key]
    with pytest.raises(ConfigurationError, match=rf"policy\.{key} has no value"):
        policy_config_from_mapping(values)


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (r"horizon 6 ends before its executed steps.* = 7\. Choose horizon >= 7", {"n_action_steps": 6}),
        (r"horizon 1 ends before its executed steps", {"horizon": 1, "n_action_steps": 1}),
        (r"policy\.horizon must be at least 1, but is 0", {"horizon": 0}),
        (r"policy\.n_obs_steps must be at least 1, but is 0", {"n_obs_steps": 0}),
        (r"policy\.n_action_steps must be at least 1, but is -2", {"n_action_steps": -2}),
        (r"policy\.num_candidates must be at least 1, but is 0", {"num_candidates": 0}),
        (r"policy\.action_dim must be at least 1, but is 0", {"action_dim": 0}),
        (r"policy\.noise_scale must be a number from 0 on, but is -0\.5", {"noise_scale": -0.5}),
        (r"policy\.noise_scale must be a number from 0 on, but is nan", {"noise_scale": float("nan")}),
        (r"policy\.noise_scale must be a number from 0 on, but is inf", {"noise_scale": float("inf")}),
        (
            r"policy\.head 'drift' needs a DriftHeadConfig, but has a DiffusionHeadConfig",
            {"head_config": DiffusionHeadConfig()},
        ),
        (
            r"policy\.network 'mlp' needs a MlpConfig, but has a TransformerConfig",
            {"network_config": TransformerConfig()},
        ),
    ],
)
def test_impossible_values_are_refused(message: str, sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny_config(**sizes)


@pytest.mark.parametrize("spec", [{"shape": [7]}, [7], 7])
def test_an_observation_that_is_no_spec_is_named(spec: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"policy\.observations\.state must be an ObservationSpec, but is a"):
        PolicyConfig(action_dim=7, observations={"state": spec})


def test_the_tightest_horizon_is_accepted() -> None:
    assert tiny_config(horizon=6, n_obs_steps=2, n_action_steps=5).horizon == 6


LEARNED: dict[str, Any] = {"learned_temperatures": True}


@pytest.mark.parametrize(
    ("message", "head", "values"),
    [
        ("samples_per_observation must be at least 1, but is 0", "drift", {"samples_per_observation": 0}),
        ("temperatures must hold at least one", "drift", {"temperatures": []}),
        ("temperatures must be a positive finite number", "drift", {"temperatures": [0.1, -0.1]}),
        ("temperatures must be a positive finite number", "drift", {"temperatures": [math.nan]}),
        ("temperatures must be different", "drift", {"temperatures": [0.1, 0.1]}),
        ("affinity_floor must be in", "drift", {"affinity_floor": 1.0}),
        ("affinity_floor must be in", "drift", {"affinity_floor": -1e-6}),
        ("scope must be 'batch' or 'group', but is 'global'", "drift", {"scope": "global"}),
        ("regression_steps=0 must be null or at least 1", "drift", {"regression_steps": 0, "regression_weight": 1.0}),
        (
            "regression_steps=5 .* needs a head.regression_weight above 0, which is 0.0",
            "drift",
            {"regression_steps": 5},
        ),
        ("learned_temperatures=true needs head.kernel=affinity", "drift", LEARNED | {"kernel": "energy"}),
        (
            "needs head.samples_per_observation of at least 4, but it is 3",
            "drift",
            LEARNED | {"samples_per_observation": 3},
        ),
        ("temperatures must lie between 0.001 and 10 to be learned", "drift", LEARNED | {"temperatures": [0.1, 20.0]}),
        ("temperatures must lie between 0.001 and 10 to be learned", "drift", LEARNED | {"temperatures": [10.0]}),
        ("temperatures must lie between 0.001 and 10 to be learned", "drift", LEARNED | {"temperatures": [1e-3, 0.1]}),
        ("regression_weight must be a number from 0 on, but is -1.0", "drift", {"regression_weight": -1.0}),
        ("regression_weight must be a number from 0 on, but is inf", "drift", {"regression_weight": math.inf}),
        ("sampler must be 'ddpm' or 'ddim', but is 'euler'", "diffusion", {"sampler": "euler"}),
        ("num_inference_steps must be num_train_steps", "diffusion", {"num_inference_steps": 101}),
        ("num_inference_steps must be num_train_steps", "diffusion", {"num_inference_steps": 60}),
        ("num_inference_steps must be num_train_steps", "diffusion", {"num_inference_steps": 0}),
        ("num_inference_steps must be positive, but is 0", "flow", {"num_inference_steps": 0}),
        (r"denoising_time must be inside \(0, 1\), but is 1.0", "mip", {"denoising_time": 1.0}),
        (r"denoising_time must be inside \(0, 1\), but is 0.0", "mip", {"denoising_time": 0.0}),
        ("denoising_weight must be positive, but is 0", "mip", {"denoising_weight": 0.0}),
    ],
)
def test_impossible_head_settings_are_refused(message: str, head: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=message):
        HEADS[head].config(**values)
    with pytest.raises(ConfigurationError, match=message):
        policy_config_from_mapping(mapping(head={"name": head, **values}))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_an_unknown_noise_schedule_is_refused(sampler: str) -> None:
    with pytest.raises(ConfigurationError, match="beta_schedule 'cosin' is unknown"):
        build_policy(tiny_config("diffusion", head_config=DiffusionHeadConfig(sampler=sampler, beta_schedule="cosin")))


def test_drift_policy_is_the_policy_with_the_drift_head() -> None:
    assert type(tiny_policy("drift")) is DriftPolicy
    assert type(tiny_policy("flow")) is Policy
    with pytest.raises(ConfigurationError, match="DriftPolicy has the head 'drift', but the configuration says 'flow'"):
        DriftPolicy(tiny_config("flow"))


def test_parsing_fills_defaults_and_converts_types() -> None:
    assert parse_config(MlpConfig, {}, "network") == MlpConfig()
    parsed = parse_config(DriftHeadConfig, {"temperatures": (1, 2), "affinity_floor": 0}, "head")
    assert parsed == DriftHeadConfig(temperatures=[1.0, 2.0], affinity_floor=0.0)
    assert all(isinstance(value, float) for value in parsed.temperatures)


def test_a_choice_is_split_into_name_and_settings() -> None:
    values = {"name": "mlp", "width": 8}
    assert parse_choice(values, "network") == ("mlp", {"width": 8})
    assert values == {"name": "mlp", "width": 8}


@pytest.mark.parametrize("part", PARTS)
def test_the_files_of_the_command_line_say_the_defaults_of_the_library(part: str) -> None:
    files = sorted((FILES / part).glob("*.yaml"))
    assert files
    for path in files:
        text = re.sub(r"\$\{of_task:\w+,(.*?)\}", r"\1", path.read_text())  # as where no task says otherwise
        content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        settings = {name: value for name, value in content.items() if not str(value).startswith("${")}
        default = PARTS[part][settings.pop("name")].config()
        assert {name: getattr(default, name) for name in settings} == settings, path.name
