"""Settings of a task: they lie over those of policy and trainer, and the command line lies over them."""

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir

from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.errors import ConfigurationError
from drift_policy.heads import HEADS
from drift_policy.policy_config import usual_noise_scale
from drift_policy.training.config import TrainConfig
from tests.helpers.programs import ROOT

TASKS = sorted(file.stem for file in (ROOT / "configs" / "task").glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def config_folder() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        yield


def composed(*overrides: str) -> TrainConfig:
    return parse_config(TrainConfig, resolved(compose("train", [*overrides, "name=test"])))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_with_the_settings_it_has(task: str) -> None:
    assert composed(f"task={task}").task.name == task


def test_settings_of_a_task_name_a_task() -> None:
    assert {file.stem for file in (ROOT / "configs" / "for_task").glob("*.yaml")} <= set(TASKS)


def test_a_task_says_how_long_it_is_trained() -> None:
    door = composed("task=adroit_door").trainer
    assert (door.num_steps, door.observation_noise, door.rollout_every) == (5000, 0.05, 1000)
    assert composed("task=adroit_door", "policy=diffusion").trainer.num_steps == 5000
    assert composed("task=adroit_door", "trainer.num_steps=7").trainer.num_steps == 7
    assert composed("task=pusht").trainer.observation_noise == 0.02
    assert composed("task=lift").trainer.observation_noise == 0


def test_samples_and_kernel_of_a_task_are_those_of_the_drift_heads_alone() -> None:
    of_task, default = composed("task=block_push").policy["head"], composed("task=lift").policy["head"]
    assert (of_task["samples_per_observation"], of_task["kernel"]) == (2, "energy")
    assert (default["samples_per_observation"], default["kernel"]) == (8, "affinity")
    assert (default["affinity_floor"], composed("task=adroit_door").policy["head"]["affinity_floor"]) == (0.0, 1e-6)
    other = composed("task=block_push", "policy=regression").policy["head"]
    assert not {"samples_per_observation", "kernel"} & other.keys()
    assert composed("task=block_push", "policy.head.kernel=affinity").policy["head"]["kernel"] == "affinity"


@pytest.mark.parametrize("policy", ["drift", "drift_unet", "drift_unet_image", "drift_transformer"])
def test_every_drift_policy_decides_as_the_task_says(policy: str) -> None:
    of_task = composed("task=pusht", f"policy={policy}").policy
    assert (of_task["noise_scale"], of_task["num_candidates"], of_task["mirrored"]) == (1.0, 16, True)
    default = composed("task=lift", f"policy={policy}").policy
    assert (default["noise_scale"], default["num_candidates"], default["mirrored"]) == (0.5, 1, False)


def test_the_noise_of_a_task_is_that_of_the_drift_policies_alone() -> None:
    assert composed("task=adroit_door").policy["noise_scale"] == 0.0
    assert composed("task=adroit_door", "policy=drift_unet").policy["noise_scale"] == 0.0
    assert composed("task=adroit_door", "policy=flow").policy["noise_scale"] == 1.0
    assert composed("task=lift").policy["noise_scale"] == 0.5
    assert composed("task=pusht").policy["noise_scale"] == 1.0
    assert composed("task=adroit_door", "policy.noise_scale=0.25").policy["noise_scale"] == 0.25


@pytest.mark.parametrize("policy", ["drift", "drift_unet", "drift_unet_image", "drift_transformer"])
def test_the_candidates_of_a_task_are_those_of_the_drift_policies(policy: str) -> None:
    of_task = ("task=pusht", "++task.num_candidates=7", f"policy={policy}")
    assert composed(*of_task).policy["num_candidates"] == 7
    assert composed(*of_task, "policy.num_candidates=3").policy["num_candidates"] == 3


def test_the_mirror_and_the_dropout_of_a_task() -> None:
    drift, flow, other = composed("task=pusht"), composed("task=pusht", "policy=flow"), composed("task=lift")
    assert drift.task.symmetry == flow.task.symmetry == "envs.pusht.symmetry:mirror" and other.task.symmetry is None
    assert [config.policy["mirrored"] for config in (drift, flow, other)] == [True, False, False]
    # The baselines have the same network.
    assert [config.policy["network"]["dropout"] for config in (drift, flow, other)] == [0.1, 0.1, 0.0]


def test_the_candidates_of_a_task_leave_other_policies_alone() -> None:
    config = composed("task=pusht", "++task.num_candidates=7", "policy=flow")
    assert config.policy["num_candidates"] == 1
    assert (config.rollout.num_candidates, config.evaluation.num_candidates) == (None, None)


def test_null_leaves_what_the_policy_has() -> None:
    names = (
        "noise_scale",
        "num_candidates",
        "mirrored",
        "dropout",
        "samples_per_observation",
        "kernel",
        "affinity_floor",
    )
    nothing, other = composed("task=pusht", *(f"++task.{name}=null" for name in names)), composed("task=lift")
    for part in ("head", "network", "noise_scale", "num_candidates", "mirrored"):
        assert nothing.policy[part] == other.policy[part], part
    for policy in ("drift_unet", "drift_transformer", "drift_unet_image"):
        settings = composed(
            "task=pusht", f"policy={policy}", "task.num_candidates=null", "task.noise_scale=null"
        ).policy
        assert (settings["num_candidates"], settings["noise_scale"]) == (1, 0.5)


@pytest.mark.parametrize("head", HEADS)
def test_plugins_draw_with_the_noise_that_the_policies_of_the_command_line_have(head: str) -> None:
    assert composed("task=lift", f"policy={head}").policy["noise_scale"] == usual_noise_scale(head)


@pytest.mark.parametrize("policy", ["drift", "diffusion_unet"])
def test_a_task_file_may_leave_out_the_numbers_of_steps(policy: str) -> None:
    left_out = [f"~task.{name}" for name in ("horizon", "n_obs_steps", "n_action_steps")]
    config = composed("task=pusht", f"policy={policy}", *left_out)
    sizes = {name: config.policy[name] for name in ("horizon", "n_obs_steps", "n_action_steps")}
    assert sizes == {name: getattr(config.task, name) for name in sizes}
    assert composed("task=pusht", "task.horizon=20").policy["horizon"] == 20


def test_a_value_that_is_missing_is_named_in_whole_sentences() -> None:
    with pytest.raises(ConfigurationError, match=r"^ckpt has no usable value: .*ckpt\. Set it .*: ckpt=\.\.\. \.$"):
        resolved(compose("eval"))


def test_a_single_value_for_a_list_is_explained() -> None:
    with pytest.raises(ConfigurationError, match=r"plugins does not fit: a list is expected, plugins=\[\.\.\.\]\."):
        composed("task=pusht", "plugins=my_codecs")
