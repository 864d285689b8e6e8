"""Settings that do not exist: the message names those that do, and a plus only where one helps."""

import os
from collections.abc import Iterator
from dataclasses import fields

import pytest
from hydra import compose, initialize_config_dir

from drift_policy.cli import HYDRA_RAISES, resolved
from drift_policy.composition import composition_errors
from drift_policy.encoders.backbones import backbone_kind
from drift_policy.errors import ConfigurationError
from drift_policy.heads import head_kind
from drift_policy.networks import network_kind
from drift_policy.policy_config import PolicyConfig
from drift_policy.training.config import TrainConfig
from tests.helpers.programs import ROOT

POLICIES = sorted(
    file.stem for file in (ROOT / "configs" / "policy").glob("*.yaml") if not file.stem.startswith("base")
)


@pytest.fixture(scope="module", autouse=True)
def config_folder() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        yield


def explained(*overrides: str) -> str:
    with pytest.raises(ConfigurationError) as error, composition_errors(TrainConfig, complete=["policy"]):
        compose("train", ["task=pusht", *overrides])
    assert HYDRA_RAISES not in os.environ
    return str(error.value)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("trainer.num_step=5", "trainer.num_step does not exist; did you mean trainer.num_steps"),
        ("trainr.num_steps=5", "trainr does not exist; did you mean trainer"),
        ("polcy=drift", "polcy does not exist; did you mean policy"),
        ("policy.head.kernl=energy", "policy.head.kernl does not exist; did you mean policy.head.kernel?"),
        ("policy.network.zzz=1", "policy.network.zzz does not exist; policy.network has name, width, depth"),
        ("task.env.max_stps=5", "task.env.max_stps does not exist; did you mean task.env.max_steps?"),
        ("for_task=pusht", "Could not override 'for_task'"),
    ],
)
def test_the_closest_settings_are_named_without_a_plus(setting: str, expected: str) -> None:
    text = explained(setting)
    assert text.startswith(expected)
    assert "+" not in text


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("task.constant_range=1", "task.constant_range has no value in the files of this configuration: add it with"),
        ("task.dataset.options.a=[0,2]", "add it with a plus, +task.dataset.options.a=[0,2] ."),
        ("task.env.kwargs.text='do use it'", "with a plus, +task.env.kwargs.text='do use it' ."),
        ("task.env.kwargs.size=96", "task.env.kwargs takes names of your own too"),
        ("task.observations.wrist.kind=image", "task.observations takes names of your own too"),
    ],
)
def test_a_plus_is_advised_where_it_adds_something(setting: str, expected: str) -> None:
    text = explained(setting)
    assert expected in text
    assert "+task." in text


def test_what_a_program_raises_and_starts_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    with composition_errors(TrainConfig):
        assert os.environ[HYDRA_RAISES] == "1"
        resolved(compose("train", ["task=pusht", "name=test"]))
        assert HYDRA_RAISES not in os.environ
    monkeypatch.setenv(HYDRA_RAISES, "1")  # by the user
    with composition_errors(TrainConfig):
        resolved(compose("train", ["task=pusht", "name=test"]))
    assert os.environ[HYDRA_RAISES] == "1"


@pytest.mark.parametrize("policy", POLICIES)
def test_files_of_policies_name_all_settings(policy: str) -> None:
    settings = resolved(compose("train", ["task=pusht", f"policy={policy}", "name=test"]))["policy"]
    from_data = {"action_dim", "observations", "head_name", "network_name", "image_backbone_name"}
    assert settings.keys() == {field.name for field in fields(PolicyConfig)} - from_data
    for part, find in (("head", head_kind), ("network", network_kind), ("image_backbone", backbone_kind)):
        chosen = settings[part]
        assert chosen.keys() - {"name"} == {field.name for field in fields(find(chosen["name"]).config)}
