"""The study: real runs through its command line, what is done is skipped, the report shows what files say."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import study as study_module
from benchmarks import study_report
from benchmarks.multimodal_toy import ToyConfig, make_policy, recorded_settings
from benchmarks.study import Budget, Question, StudyConfig, command
from benchmarks.study_reuse import EVALUATION, TOY, TRAINING, what_changed
from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.errors import ConfigurationError
from drift_policy.evaluation.evaluate import checkpoint_facts
from drift_policy.manifest import write_json
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.training.config import TrainConfig
from drift_policy.training.run_folder import course_of_a_run
from tests.helpers import programs
from tests.helpers.policies import tiny_policy


def config(**settings: object) -> StudyConfig:
    values: dict[str, object] = {
        "question": Question("title", ["toy"], {"wide": ["a=2", "toy:b=3", "other:b=4"]}, common=["a=1", "c=5"]),
        "task": "toy",
        "variant": "wide",
        "seed": 7,
        "budgets": {"toy": Budget("-m toy", ["c=0"]), "other": Budget("train_policy.py", [])},
        "results": "results",
        "runs": "runs",
    }
    return StudyConfig(**(values | settings))  # type: ignore[arg-type]  # names are checked by the dataclass


def test_later_settings_overrule_and_those_of_other_tasks_are_left_out() -> None:
    expected = ["-m", "toy", "c=5", "a=2", "b=3", "seed=7", "name=wide_seed7", "output=runs/q"]
    assert command(config(), "q") == expected
    other = command(config(task="other"), "q")
    assert other[:2] == ["train_policy.py", "task=other"] and "b=4" in other and "b=3" not in other


def test_evaluations_take_the_seed_as_that_of_the_noise() -> None:
    budgets = {"toy": Budget("eval_policy.py", ["ckpt=pretrained/pusht"])}
    arguments = command(config(budgets=budgets, runs="runs"), "q")
    assert arguments[:2] == ["eval_policy.py", "ckpt=pretrained/pusht"]
    assert arguments[-2:] == ["evaluation.policy_seed=7", "output=runs/q/toy/wide_seed7"]


@pytest.mark.parametrize("wrong", [{"task": "nothing"}, {"variant": "nothing"}])
def test_unknown_names_are_refused_with_the_known_ones(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="expected one of"):
        config(**wrong)


def test_sweep_runs_once_and_is_skipped_afterwards(tmp_path: Path) -> None:
    arguments = (
        "-m",
        "benchmarks.study",
        "question=kernel",
        "tasks=[multimodal_toy]",
        "variant=energy,regression",
        "seeds=[3]",
        "budgets.multimodal_toy.overrides=['num_steps=2','batch_size=4']",
        'machine=["device=cpu","trainer.compile=false"]',  # of trainings alone
        f"results={tmp_path}/results",
        f"runs={tmp_path}/runs",
    )
    first = programs.run(*arguments)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "results" / "kernel" / "multimodal_toy"
    assert sorted(path.name for path in folder.iterdir()) == ["energy_seed3.json", "regression_seed3.json"]
    manifest = json.loads((folder / "energy_seed3.json").read_text())
    assert manifest["study"] == {"question": "kernel", "variant": "energy"} and manifest["training"]["steps"] == 2
    assert manifest["policy"]["head"]["kernel"] == "energy" and manifest["seed"] == 3
    assert "have" not in first.stdout
    again = programs.run(*arguments)
    assert again.stdout.count("have ") == 2 and "run " not in again.stdout
    # A question with a variant of the same settings takes the run that is there.
    other = {"question=kernel": "question=per_time_step", "variant=energy,regression": "variant=energy_chunk"}
    shared = programs.run(*(other.get(argument, argument) for argument in arguments))
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("have ") == 1 and "run " not in shared.stdout
    taken = json.loads(
        (tmp_path / "results" / "per_time_step" / "multimodal_toy" / "energy_chunk_seed3.json").read_text()
    )
    assert taken == manifest | {"study": {"question": "per_time_step", "variant": "energy_chunk"}}


TRAINING_ARGUMENTS = ["task=pusht", "policy.network.width=16", "evaluation.n_episodes=3", "name=one"]


def manifest_of_a_training() -> dict[str, Any]:
    with initialize_config_dir(str(programs.ROOT / "configs"), version_base="1.3"):
        trained = parse_config(TrainConfig, resolved(compose("train", TRAINING_ARGUMENTS)))
    sizes = {"action_dim": 2, "observations": {"obs": {"kind": "state", "shape": [20]}}}
    manifest = {
        "config": course_of_a_run(trained),
        "policy": {**policy_config_from_mapping({**trained.policy, **sizes}).to_mapping(), "parameters": 5},
        "evaluation": {"protocol": asdict(trained.evaluation.for_task(300))},
    }
    return json.loads(json.dumps(manifest))  # type: ignore[no-any-return]  # what json gives back


def test_a_training_on_another_machine_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_gpu = ["device=cuda", "trainer.compile=true"]
    here, there = (config(task="other", results=str(tmp_path), machine=machine) for machine in ([], on_gpu))
    assert command(there, "q") == [*command(here, "q"), *on_gpu]
    write_json(
        tmp_path / "q/other/wide_seed7.json", {"command": shlex.join(["python", *command(there, "q")]), "of": "there"}
    )
    monkeypatch.setattr(study_module, "what_changed", lambda *_: [])
    assert json.loads(study_module.run(here, "q").read_text())["of"] == "there"
    assert "run " not in capsys.readouterr().out
    manifest = manifest_of_a_training()
    manifest["config"]["device"], manifest["config"]["trainer"]["compile"] = "cuda", True
    assert what_changed(manifest, TRAINING, TRAINING_ARGUMENTS) == []
    with pytest.raises(ConfigurationError, match="machine may set device"):
        config(machine=["seed=3"])


def test_a_training_counts_while_its_command_composes_the_same_run() -> None:
    manifest = manifest_of_a_training()
    assert what_changed(manifest, TRAINING, TRAINING_ARGUMENTS) == []
    assert what_changed(manifest, TRAINING, [*TRAINING_ARGUMENTS[:-1], "name=other"]) == []
    # Settings that are younger than the run were at their defaults.
    del manifest["config"]["trainer"]["time_shifts"], manifest["config"]["policy"]["head"]["regression_steps"]
    del manifest["policy"]["head"]["regression_steps"]
    assert what_changed(manifest, TRAINING, TRAINING_ARGUMENTS) == []


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("config.trainer.learning_rate", "trainer.learning_rate"),
        ("config.policy.num_candidates", "policy.num_candidates"),
        ("config.task.symmetry", "task.symmetry"),
        ("policy.noise_scale", "policy.noise_scale"),
        ("policy.head.name", "policy"),
        ("evaluation.protocol.policy_seed", "evaluation.policy_seed"),
    ],
)
def test_a_training_of_other_defaults_is_stale(place: str, expected: str) -> None:
    manifest = OmegaConf.create(manifest_of_a_training())
    OmegaConf.update(manifest, place, 4)
    recorded = OmegaConf.to_container(manifest)
    assert isinstance(recorded, dict)
    assert what_changed(recorded, TRAINING, TRAINING_ARGUMENTS) == [expected]  # type: ignore[arg-type]  # keys are names


def test_a_training_of_another_length_or_without_evaluation_is_stale() -> None:
    manifest = manifest_of_a_training()
    manifest["evaluation"]["protocol"]["max_steps"] = 100
    assert what_changed(manifest, TRAINING, TRAINING_ARGUMENTS) == ["evaluation.max_steps"]
    assert what_changed(manifest | {"evaluation": None}, TRAINING, TRAINING_ARGUMENTS) == ["evaluation"]
    unknown = manifest_of_a_training()
    unknown["config"]["policy"]["head"]["name"] = "gone"
    assert what_changed(unknown, TRAINING, TRAINING_ARGUMENTS) != []


@pytest.mark.parametrize(("said", "counts"), [([], True), (["data_path=other.zarr"], False)])
def test_a_training_counts_whatever_its_command_left_out_but_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], counts: bool
) -> None:
    study = config(task="other", results=str(tmp_path / "results"), runs=str(tmp_path / "runs"))
    made = {"command": shlex.join(["python", "train_policy.py", "task=other", *said]), "config": {}, "of": "earlier"}
    write_json(tmp_path / "results/q/other/wide_seed7.json", made)
    write_json(tmp_path / "runs/q/other/wide_seed7/manifest.json", {"command": "python", "of": "now"})
    monkeypatch.setattr(study_module, "what_changed", lambda *_: [])
    monkeypatch.setattr(study_module.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    assert json.loads(study_module.run(study, "q").read_text())["of"] == ("earlier" if counts else "now")


def test_an_evaluation_counts_while_its_checkpoint_is_there(tmp_path: Path) -> None:
    policy = tiny_policy()
    arguments = [f"ckpt={policy.save_pretrained(tmp_path / 'policy')}", "evaluation.n_episodes=3"]
    facts = checkpoint_facts(policy, tmp_path / "policy")
    manifest = {"checkpoint": facts, "evaluation": {"protocol": {"n_episodes": 3, "max_steps": 300}}}
    assert what_changed(manifest, EVALUATION, arguments) == []
    first = {"checkpoint": {key: value for key, value in facts.items() if key != "sha256"}}
    assert what_changed(first, EVALUATION, arguments) == ["checkpoint.sha256"]
    with torch.no_grad():
        next(policy.head.parameters()).add_(1)
    policy.save_pretrained(tmp_path / "policy")
    assert what_changed(manifest, EVALUATION, arguments) == ["checkpoint.sha256"]
    policy.config.num_candidates = 3
    policy.save_pretrained(tmp_path / "policy")
    assert what_changed(manifest, EVALUATION, arguments) == ["checkpoint.policy", "checkpoint.sha256"]


def test_a_toy_counts_while_its_policy_and_settings_are_the_same() -> None:
    arguments = ["policy.head.kernel=energy", "num_steps=2"]
    with initialize_config_dir(str(programs.ROOT / "configs"), version_base="1.3"):
        toy = parse_config(ToyConfig, resolved(compose("multimodal_toy", [*arguments, "name=toy"])))
    manifest = {"policy": make_policy(toy).config.to_mapping(), "config": recorded_settings(toy)}
    assert what_changed(manifest, TOY, [*arguments, "name=toy"]) == []
    assert what_changed({"policy": manifest["policy"]}, TOY, [*arguments, "name=toy"]) == []
    changed = ["policy.head.kernel=affinity", "num_steps=3", "name=toy"]
    assert what_changed(manifest, TOY, changed) == ["num_steps", "policy.head"]


def test_a_stale_run_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    study = config(results=str(tmp_path / "results"), runs=str(tmp_path / "runs"))
    made = shlex.join(["python", *command(study, "q")])
    write_json(tmp_path / "results/q/toy/wide_seed7.json", {"command": made, "of": "earlier"})
    write_json(tmp_path / "runs/q/toy/wide_seed7/manifest.json", {"command": made, "of": "now"})
    monkeypatch.setattr(study_module, "what_changed", lambda *_: ["task.kernel"])
    monkeypatch.setattr(study_module.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    file = study_module.run(study, "q")
    printed = capsys.readouterr().out
    assert printed.count("stale ") == 1 and "task.kernel" in printed and "run " in printed
    assert json.loads(file.read_text())["of"] == "now"


def test_report_shows_what_the_files_say(tmp_path: Path) -> None:
    folder = tmp_path / "kernel" / "multimodal_toy"
    folder.mkdir(parents=True)
    for seed, share in ((0, 0.5), (1, 0.9)):
        evaluation = {"on_mode": share, "all_modes": 1.0, "spread": 1.0}
        content = {"seed": seed, "evaluation": evaluation, "training": {"seconds": 90.0}}
        (folder / f"energy_seed{seed}.json").write_text(json.dumps(content))
    page = study_report.filled_page("<!-- table:study_kernel -->\n<!-- end:study_kernel -->", tmp_path)
    row = "| energy | 0.700 [0.500, 0.900] | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 1.5 | 0.500 / 0.900 |"
    assert row in page.splitlines()
    picture = tmp_path / "kernel.png"
    study_report.draw_question("kernel", tmp_path, picture)
    assert picture.stat().st_size > 1000


def test_every_question_names_tasks_that_have_a_budget() -> None:
    budgets = OmegaConf.load(programs.ROOT / "configs" / "study" / "study.yaml").budgets
    for name in study_report.question_names():
        question = OmegaConf.load(study_report.QUESTIONS / f"{name}.yaml")
        assert set(question.tasks) <= set(budgets), name
        assert len(question.variants) >= 2, name


@pytest.mark.parametrize("name", study_report.question_names())
def test_every_variant_is_a_configuration_of_the_training_program(name: str) -> None:
    settings = OmegaConf.load(programs.ROOT / "configs" / "study" / "study.yaml").budgets
    budgets = {task: Budget(**budget) for task, budget in settings.items()}
    question = parse_config(Question, OmegaConf.load(study_report.QUESTIONS / f"{name}.yaml"))  # type: ignore[arg-type]  # a mapping
    for task in (task for task in question.tasks if budgets[task].program == "train_policy.py"):
        for variant in question.variants:
            run = StudyConfig(question, task, variant, 0, budgets, "results", "runs")
            with initialize_config_dir(str(programs.ROOT / "configs"), version_base="1.3"):
                composed = resolved(compose("train", command(run, name)[1:]))
            trained = parse_config(TrainConfig, composed)
            policy_config_from_mapping(
                {**trained.policy, "action_dim": 2, "observations": {"obs": {"kind": "state", "shape": [20]}}}
            )
