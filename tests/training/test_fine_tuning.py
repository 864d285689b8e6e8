"""A training that starts from a checkpoint: it begins with the checkpoint's decisions and goes on from there."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from drift_policy import Policy, load_policy
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.encoders import ObservationSpec
from drift_policy.encoders.backbones.small_cnn import SmallCnnConfig
from drift_policy.errors import CheckpointError, ConfigurationError, UserError
from drift_policy.heads.diffusion import DiffusionHeadConfig
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.networks import NETWORKS, ConditionalUnet1dConfig, MlpConfig, TransformerConfig
from drift_policy.policy_config import PolicyConfig
from drift_policy.task import ColumnConfig, ObservationConfig
from drift_policy.training import run as run_module
from drift_policy.training.config import TrainConfig
from drift_policy.training.initial_checkpoint import _FREE_OF_NETWORKS, _differences, _note_range
from drift_policy.training.run import train
from tests.helpers.point_task import point_demonstrations, point_task, point_training
from tests.helpers.policies import OBS_HIGH, OBS_LOW, tiny_config, tiny_policy
from tests.helpers.training_runs import assert_same_state, press_ctrl_c, stop_before_step, tensors_of

QUIET = Console(quiet=True)
SHORT = {"num_steps": 3, "rollout_every": 0, "validate_every": 3}
# So small a step changes no weight of single precision.
STILL = {"num_steps": 1, "warmup_steps": 0, "learning_rate": 1e-30, "weight_decay": 0.0, "rollout_every": 0}
NETWORK = {"name": "mlp", "width": 16, "depth": 1}
CAMERA = ObservationSpec(kind="image", shape=[3, 24, 24], crop=[20, 20])


def write_other_demonstrations(folder: Path, scale: float = 3.0) -> str:
    """Write walks with other ranges, and return their path."""
    buffer = point_demonstrations(episodes=10, seed=1)
    moved = {name: (scale * column + 2).astype(np.float32) for name, column in buffer.data.items()}
    path = folder / f"moved_{scale:g}.zarr"
    write_zarr(path, ReplayBuffer(moved, buffer.episode_ends))
    return str(path)


def trained(folder: Path, **changes: Any) -> Path:
    """A short training, to start from."""
    return train(point_training(folder, **{"name": "first", "trainer": SHORT, **changes}), [], QUIET)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the settings of `point_training`."""
    return trained(tmp_path_factory.mktemp("first"))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these runs."""
    monkeypatch.setattr(run_module, "plot_curves", lambda *_: None)


def tuning(folder: Path, initial: Path | str, **changes: Any) -> TrainConfig:
    """A training that starts from a run."""
    return point_training(folder, **{"name": "tuned", "initial_ckpt": str(initial), "trainer": SHORT, **changes})


def told(config: TrainConfig) -> str:
    """Train and return what was reported."""
    console = Console(file=io.StringIO(), width=1000)
    train(config, [], console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def decisions(policy: Policy, **settings: Any) -> Tensor:
    """Decide on given observations with given noise, in the units of the demonstrations."""
    generator = torch.Generator().manual_seed(0)
    obs = {"obs": 5 * torch.rand((6, 2, 4), generator=generator)}
    noise = torch.randn((6, 8, 8, 2), generator=generator)
    return policy.predict_action(obs, noise=noise, noise_scale=1.0, **settings)["action_pred"]


def test_a_fine_tuning_begins_with_the_checkpoints_decisions(tmp_path: Path, first: Path) -> None:
    expected = load_policy(first)
    other = write_other_demonstrations(tmp_path)
    policy = {
        "noise_scale": 1.0,
        "num_candidates": 4,
        "n_action_steps": 3,
        "head": {"name": "drift", "samples_per_observation": 2, "kernel": "energy", "temperatures": [0.1]},
        "network": NETWORK | {"dropout": 0.2, "output_init_std": 1.0, "diffusion_step_embed_dim": 8},
    }
    run = train(tuning(tmp_path, first, data_path=other, policy=policy, trainer=STILL), [], QUIET)
    tuned = load_policy(run)
    assert torch.equal(decisions(tuned), decisions(expected))
    assert (tuned.config.num_candidates, tuned.config.network.dropout) == (4, 0.2)
    weights = tensors_of(run)  # the trained weights are the averaged ones of the checkpoint
    assert all(torch.equal(weights[f"policy.{name}"], value) for name, value in expected.state_dict().items())
    assert json.loads((run / "checkpoints/last/training.json").read_text())["ema_updates"] == 1


def test_the_manifest_and_the_checkpoint_say_where_the_weights_came_from(tmp_path: Path, first: Path) -> None:
    last = first / "checkpoints/last"
    run = train(tuning(tmp_path, last), [], QUIET)
    sha256 = hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()
    origin = {"path": str(last), "folder": "last", "sha256": sha256}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["initial_checkpoint"] == load_policy(run).metadata["initial_checkpoint"] == origin
    assert manifest["config"]["initial_ckpt"] == str(last)
    assert json.loads((first / "manifest.json").read_text())["initial_checkpoint"] is None


def test_a_checkpoint_that_is_none_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist. Give a run folder"):
        train(tuning(tmp_path, "nowhere", data_path="absent"), [], QUIET)


def test_a_resumed_fine_tuning_is_bit_exact_and_does_not_need_the_checkpoint(
    tmp_path: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial, other = tmp_path / "initial", write_other_demonstrations(tmp_path)
    shutil.copytree(first, initial)
    # Neighbours are found in the units of the normaliser, before the saved state is read.
    settings: dict[str, Any] = {"data_path": other, "trainer": {"neighbours": 3}, "resume": "auto"}
    whole = train(tuning(tmp_path, initial, **settings, output=str(tmp_path / "whole")), [], QUIET)
    same_command = tuning(tmp_path, initial, **settings)
    stop_before_step(monkeypatch, 7, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step 8"):
        train(same_command, [], QUIET)
    shutil.rmtree(initial)
    with pytest.raises(ConfigurationError, match=r"other values of initial_ckpt\."):
        train(replace(same_command, initial_ckpt=None), [], QUIET)
    with pytest.raises(ConfigurationError, match=r"other values of initial_ckpt\."):
        train(replace(same_command, initial_ckpt="another"), [], QUIET)
    parts = train(same_command, [], QUIET)
    assert_same_state(whole, parts)
    origins = [json.loads((run / "manifest.json").read_text())["initial_checkpoint"] for run in (whole, parts)]
    assert origins[0] == origins[1] and origins[0]["path"] == str(initial)


def test_a_run_from_random_weights_is_not_resumed_as_a_fine_tuning(tmp_path: Path, first: Path) -> None:
    shutil.copytree(first, tmp_path / "runs/point/first")
    with pytest.raises(ConfigurationError, match=r"other values of initial_ckpt\."):
        train(tuning(tmp_path, first, name="first", resume=True), [], QUIET)


def test_what_does_not_fit_is_named_at_once_and_nothing_is_trained(tmp_path: Path, first: Path) -> None:
    policy = {"horizon": 12, "head": {"name": "regression"}, "network": NETWORK | {"width": 8}}
    expected = (
        rf"initial_ckpt={first} does not fit: policy.horizon is 12 here and 8 in the checkpoint; policy.head.name is "
        r"regression here and drift in the checkpoint; policy.network.width is 8 here and 16 in the checkpoint\. Give"
    )
    with pytest.raises(ConfigurationError, match=expected):
        train(tuning(tmp_path, first, policy=policy), [], QUIET)
    assert not (tmp_path / "runs/point/tuned/checkpoints").exists()


def test_other_demonstrations_that_do_not_fit_are_named(tmp_path: Path) -> None:
    first = trained(tmp_path, task=replace(point_task(), env=None))
    observations = {
        "place": ObservationConfig([ColumnConfig("observation", 0, 2)]),
        "obs": ObservationConfig([ColumnConfig("observation", 2, 4)]),
    }
    task = replace(point_task(), env=None, observations=observations, action=[ColumnConfig("action", 0, 1)])
    expected = (
        r"policy.action_dim is 1 here and 2 in the checkpoint; policy.observations.place is state \[2\] here and "
        r"absent in the checkpoint; policy.observations.obs is state \[2\] here and state \[4\] in the checkpoint\."
    )
    with pytest.raises(ConfigurationError, match=expected):
        train(tuning(tmp_path, first, task=task), [], QUIET)


def test_other_actions_are_refused(tmp_path: Path, first: Path) -> None:
    task = replace(point_task(), action_space="delta")
    with pytest.raises(
        ConfigurationError, match=r"are 'absolute', but those of the task point are 'delta' \(task\.act"
    ):
        train(tuning(tmp_path, first, task=task), [], QUIET)


DRIFT = tiny_config()
DIFFUSION = tiny_config("diffusion")
IMAGES = tiny_config(
    observations={"obs": 5, "wrist": CAMERA}, image_backbone_name="small_cnn", image_backbone=SmallCnnConfig()
)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (replace(DRIFT, n_obs_steps=1), DRIFT, ["policy.n_obs_steps is 1 here and 2"]),
        (
            replace(DRIFT, network_name="transformer", network=TransformerConfig()),
            DRIFT,
            ["policy.network.name is transformer here and mlp"],
        ),
        (
            tiny_config(network_config=MlpConfig(conditioning="film", layer_norm=True)),
            tiny_config(network_config=MlpConfig()),
            ["policy.network.conditioning is film here and concat", "policy.network.layer_norm is True here and False"],
        ),
        (
            tiny_config("diffusion", head_config=DiffusionHeadConfig(num_train_steps=12, num_inference_steps=6)),
            DIFFUSION,
            ["policy.head.num_train_steps is 12 here and 6"],
        ),
        (tiny_config("flow"), DIFFUSION, ["policy.head.name is flow here and diffusion"]),
        (
            tiny_config("diffusion", network_config=MlpConfig(width=16, depth=1, diffusion_step_embed_dim=4)),
            DIFFUSION,
            ["policy.network.diffusion_step_embed_dim is 4 here and 8"],
        ),
        (
            replace(IMAGES, image_backbone=SmallCnnConfig(num_keypoints=8), share_image_backbone=True),
            IMAGES,
            ["policy.image_backbone.num_keypoints is 8 here and 64", "policy.share_image_backbone is True here and"],
        ),
        (
            replace(IMAGES, observations={**IMAGES.observations, "wrist": replace(CAMERA, crop=None)}),
            IMAGES,
            ["policy.observations.wrist is image [3, 24, 24] here and image [3, 20, 20]"],
        ),
        (
            replace(IMAGES, observations=dict(reversed(IMAGES.observations.items()))),
            IMAGES,
            ["the order of policy.observations is ['wrist', 'obs'] here and ['obs', 'wrist']"],
        ),
    ],
)
def test_every_difference_of_the_architecture_is_named(
    ours: PolicyConfig, theirs: PolicyConfig, expected: list[str]
) -> None:
    found = _differences(ours, theirs)
    assert [text[: len(start)] for text, start in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tiny_config(head_config=DriftHeadConfig(scope="group", learned_temperatures=True)), DRIFT),
        (replace(DRIFT, noise_scale=0.5, num_candidates=4, mirrored=True, n_action_steps=5), DRIFT),
        (
            tiny_config("diffusion", head_config=DiffusionHeadConfig("ddim", 6, 3, clip_sample=False)),
            DIFFUSION,
        ),
        (
            replace(DRIFT, network_name="transformer", network=TransformerConfig(p_drop_attn=0.0, p_drop_emb=0.1)),
            replace(DRIFT, network_name="transformer", network=TransformerConfig()),
        ),
        (  # a larger camera, scaled and cropped to what the network sees
            replace(
                IMAGES,
                observations={
                    "obs": ObservationSpec(shape=[5]),
                    "wrist": ObservationSpec(kind="image", shape=[3, 48, 64], resize=[24, 24], crop=[20, 20]),
                },
            ),
            IMAGES,
        ),
    ],
)
def test_what_leaves_the_weights_their_meaning_may_differ(ours: PolicyConfig, theirs: PolicyConfig) -> None:
    assert _differences(ours, theirs) == []


def test_the_settings_that_may_differ_are_settings_of_networks() -> None:
    fields = {name for kind in NETWORKS.values() for name in kind.config.__dataclass_fields__}
    assert set(_FREE_OF_NETWORKS) <= fields
    assert "diffusion_step_embed_dim" in ConditionalUnet1dConfig.__dataclass_fields__


def test_numbers_far_outside_the_normaliser_are_told(tmp_path: Path, first: Path) -> None:
    text = told(tuning(tmp_path, first, data_path=write_other_demonstrations(tmp_path, 3.0)))
    assert "note     6 of 6 numbers of the demonstrations lie far outside the checkpoint's normaliser" in text
    buffer, moved = point_demonstrations(), point_demonstrations(episodes=10, seed=1)
    column, array = ("action", moved.data["action"]) if "kept: action" in text else ("obs", moved.data["observation"])
    known = buffer.data["action" if column == "action" else "observation"]
    index = int(text.split(f"kept: {column}[")[1][0])
    new = 3 * array[:, index] + 2
    numbers = (new.min(), new.max(), known[:, index].min(), known[:, index].max())
    assert "reaches from {:.4g} to {:.4g}, the range of the normaliser from {:.4g} to {:.4g}\n".format(*numbers) in text
    assert "note " not in told(tuning(tmp_path, first, name="same"))


@pytest.mark.parametrize("end", [OBS_LOW - 12, OBS_HIGH + 12])
def test_numbers_far_below_and_far_above_the_range_are_told(end: float) -> None:
    said: list[str] = []
    _note_range(tiny_policy(), {"obs": np.full((2, 5), end, np.float32)}, {}, said.append)
    assert len(said) == 1 and "5 of 5 numbers of the demonstrations lie far outside" in said[0]


def test_numbers_in_other_units_are_refused(tmp_path: Path, first: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"normaliser, which a fine-tuning keeps, makes .* or train anew"):
        told(tuning(tmp_path, first, data_path=write_other_demonstrations(tmp_path, 1e5)))


@pytest.mark.parametrize(("temperatures", "taken"), [([0.02, 0.05, 0.2], True), ([0.1, 0.3], False)])
def test_learned_temperatures_are_taken_over_where_they_began_alike(
    tmp_path: Path, temperatures: list[float], taken: bool
) -> None:
    def head(values: list[float]) -> dict[str, Any]:
        settings = {"learned_temperatures": True, "temperatures": values, "samples_per_observation": 4}
        return {"head": {"name": "drift", **settings}, "network": NETWORK}

    first = trained(tmp_path, policy=head([0.02, 0.05, 0.2]))
    run = train(tuning(tmp_path, first, policy=head(temperatures), trainer=STILL), [], QUIET)
    before, after = (load_policy(folder).head.temperature_offsets for folder in (first, run))
    assert isinstance(before, Tensor) and isinstance(after, Tensor) and bool((before != 0).all())
    torch.testing.assert_close(after, before if taken else torch.zeros(2), rtol=0, atol=1e-20)


def swapped(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Swap the two coordinates of every position."""
    observation = columns["observation"][:, [1, 0, 3, 2]]
    return columns | {"observation": observation, "action": columns["action"][:, [1, 0]]}


def turned(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn the sign of every number."""
    return {name: -column for name, column in columns.items()}


@pytest.mark.parametrize("symmetry", ["same", "another", "new"])
def test_the_mirror_is_that_of_the_checkpoints_normaliser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symmetry: str
) -> None:
    monkeypatch.setattr(run_module, "find_symmetry", lambda _: swapped)
    task = replace(point_task(), symmetry="replaced:above")
    mirrored = {"mirrored": True, "num_candidates": 8, "head": {"name": "drift"}, "network": NETWORK}
    first = trained(tmp_path, task=task, policy=mirrored | {"mirrored": symmetry != "new"})
    if symmetry == "another":
        monkeypatch.setattr(run_module, "find_symmetry", lambda _: turned)
    other = write_other_demonstrations(tmp_path)
    config = tuning(tmp_path, first, task=task, policy=mirrored, data_path=other, trainer=STILL)
    text = told(config)
    before, after = load_policy(first), load_policy(tmp_path / "runs/point/tuned")
    assert after.mirror is not None and after.normalizer.maps_like(before.normalizer)
    assert ("mirror is not that of these demonstrations: it is fitted anew" in text) == (symmetry == "another")
    assert torch.equal(decisions(after, mirrored=False), decisions(before, mirrored=False))
    if symmetry == "same":
        assert torch.equal(decisions(after), decisions(before))
        return
    matrix = [[0.0, 1.0], [1.0, 0.0]] if symmetry == "new" else [[-1.0, 0.0], [0.0, -1.0]]
    point = torch.tensor([[3.0, 5.0]])  # in the units of the demonstrations
    normalized = after.normalizer.normalize("action", point)
    image = normalized @ after.mirror.action_matrix + after.mirror.action_offset
    expected = point @ torch.tensor(matrix)
    torch.testing.assert_close(after.normalizer.unnormalize("action", image), expected, atol=1e-3, rtol=1e-3)


def test_episodes_of_the_checkpoint_count_as_trained_on(tmp_path: Path) -> None:
    task = replace(point_task(), env=None)
    first = trained(tmp_path, task=task)
    held_out = {"trainer": SHORT | {"val_ratio": 0.5}}
    text = told(tuning(tmp_path, first, task=task, **held_out))
    before, after = (
        load_policy(folder).metadata["trained_episodes"] for folder in (first, tmp_path / "runs/point/tuned")
    )
    assert set(before) <= set(after) and len(after) == len(set(after))
    episodes = point_demonstrations().episode_hashes()
    known = len(after) - 6  # of the twelve, six are held out now
    assert set(after) <= set(episodes) and known > 0
    assert f"trained on {known} of the 6 held-out episodes: errors on them flatter" in text
