"""The plug-in in LeRobot's own programs: training, resuming, evaluating, and data of an older format."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from programs import SIZE, SMALL, run_lerobot
from safetensors.torch import load_file

pytest.importorskip("lerobot", reason="needs LeRobot: run integrations/lerobot_policy_drift/test.sh")
pytest.importorskip("lerobot_policy_drift", reason="needs the plug-in: run integrations/lerobot_policy_drift/test.sh")

from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_drift import DriftPolicy


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last" / "pretrained_model"


def test_a_trained_policy_is_loaded_and_acts_in_the_units_of_the_data(trained: Path) -> None:
    policy = DriftPolicy.from_pretrained(checkpoint(trained), strict=True)
    assert not policy.training and policy.config.type == "drift"
    assert policy.deciding is not policy.policy, "the averaged weights decide"
    assert int(policy.average.n_averaged) == 5
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint(trained)))
    actions = []
    for step in range(10):
        observation = {
            "observation.state": torch.tensor([100.0 + 10 * step, 400.0]),
            "observation.image": torch.rand(3, SIZE, SIZE),
        }
        actions.append(after(policy.select_action(before(observation))))
    assert all(action.shape == (1, 2) and bool(torch.isfinite(action).all()) for action in actions)
    # The network begins near zero, the middle of the data, which is in the hundreds.
    assert 100 < torch.stack(actions).mean() < 500


def test_training_goes_on_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    config = checkpoint(tmp_path / "run") / "train_config.json"
    settings = json.loads(config.read_text()) | {"output_dir": str(tmp_path / "run")}
    config.write_text(json.dumps(settings))
    run_lerobot("lerobot-train", [f"--config_path={config}", "--resume=true", "--steps=7"], tmp_path)
    state = load_file(checkpoint(tmp_path / "run") / "model.safetensors")
    assert int(state["average.n_averaged"]) == 7


def test_evaluation_in_simulation(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="needs gym-pusht: pip install 'lerobot[pusht]'")
    run_lerobot(
        "lerobot-eval",
        [
            f"--policy.path={checkpoint(trained)}",
            "--policy.device=cpu",
            "--env.type=pusht",
            "--env.episode_length=12",
            "--eval.n_episodes=2",
            "--eval.batch_size=2",
            f"--output_dir={tmp_path / 'eval'}",
        ],
        tmp_path,
    )
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2


def test_real_recordings_of_the_older_format(tmp_path: Path) -> None:
    """LeRobot's own converter makes its current format of them; the camera, whose films are absent, is left out."""
    data = os.environ.get("DRIFT_POLICY_DATA")
    source = Path(data) / "g1_bottle_lerobot" if data else None
    if source is None or not source.is_dir():
        pytest.skip("needs g1_bottle_lerobot in the folder that DRIFT_POLICY_DATA names")
    from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

    copied = tmp_path / "local" / "g1"
    shutil.copytree(source, copied)
    info = json.loads((copied / "meta/info.json").read_text())
    info["features"] = {name: value for name, value in info["features"].items() if value["dtype"] != "video"}
    info |= {"total_videos": 0, "video_path": None}
    (copied / "meta/info.json").write_text(json.dumps(info))
    convert_dataset("local/g1", root=tmp_path, push_to_hub=False, force_conversion=True)
    arguments = [argument for argument in SMALL if "image" not in argument]
    arguments += ["--dataset.repo_id=local/g1", f"--dataset.root={copied}", "--steps=5"]
    run_lerobot("lerobot-train", [*arguments, f"--output_dir={tmp_path / 'run'}"], tmp_path)
    policy = DriftPolicy.from_pretrained(checkpoint(tmp_path / "run"), strict=True)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint(tmp_path / "run")))
    state = torch.zeros(26)
    assert after(policy.select_action(before({"observation.state": state}))).shape == (1, 26)
