"""The study: real runs through its command line, what is done is skipped, the report shows what files say."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import study_report
from benchmarks.study import Budget, Question, StudyConfig, command
from drift_policy.cli import resolved
from drift_policy.config import parse_config
from drift_policy.errors import ConfigurationError
from drift_policy.policy_config import policy_config_from_mapping
from drift_policy.training.config import TrainConfig
from tests.helpers import programs


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
