"""Runs beside each other: python -m drift_policy.compare."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from drift_policy import compare
from drift_policy.compare import comparison, find_runs
from drift_policy.errors import UserError
from tests.helpers.programs import ROOT

EPISODES = [{"score": 1.0, "success": True}, {"score": 0.5, "success": False}]


def manifest(episodes: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    measured = {"episodes": episodes, "network_evaluations": 1, "latency_ms": {"p50": 0.5}}
    return {
        "task": "pusht",
        "training": {"steps": 20, "seconds": 90.0},
        "policy": {"head": {"name": "drift"}, "network": {"name": "mlp"}},
        "evaluation": measured,
        **changes,
    }


def write(file: Path, content: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def cells(paths: list[Path]) -> dict[str, list[str]]:
    return {str(column.header): list(map(str, column.cells)) for column in comparison(find_runs(paths)).columns}


def test_runs_and_the_mean_of_their_seeds(tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "pusht"
    write(runs / "drift_seed0" / "manifest.json", manifest(EPISODES))
    write(runs / "drift_seed1" / "manifest.json", manifest([EPISODES[0]] * 2))
    write(runs / "flow_seed0" / "manifest.json", manifest(EPISODES[1:]))
    write(runs / "drift_seed0" / "eval" / "manifest.json", {"checkpoint": {}})  # an evaluation is no run
    for given in (runs, runs.parent):
        table = cells([given])
        names = ["pusht/drift_seed0", "pusht/drift_seed1", "pusht/drift, mean of 2", "pusht/flow_seed0"]
        assert table["run"] == names
        assert [text.split()[0] for text in table["score"]] == ["0.750", "1.000", "0.875", "0.500"]
        assert table["success"][2].startswith("0.750 [") and table["episodes"] == ["2", "2", "4", "1"]
        assert table["training [min]"] == ["1.5"] * 4 and "open-loop error" not in table


def test_a_run_counts_once_and_one_seed_has_no_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "drift_seed0" / "manifest.json", manifest(EPISODES))
    monkeypatch.chdir(file.parent)
    assert cells([file, file.parent, tmp_path, Path("."), Path("manifest.json")])["run"] == ["pusht/drift_seed0"]
    copy = write(tmp_path / "copy" / "drift_seed0.json", manifest(EPISODES))
    assert cells([file, copy])["run"] == ["pusht/drift_seed0"] * 2


def test_evaluations_within_a_run_are_left_out_by_their_whole_name(tmp_path: Path) -> None:
    for name in ("eval", "eval_1"):
        write(tmp_path / "drift_seed0" / name / "manifest.json", {"checkpoint": {}})
    write(tmp_path / "evaluation_noise" / "manifest.json", manifest(EPISODES))
    assert cells([tmp_path])["run"] == ["pusht/evaluation_noise"]


def test_what_was_not_measured_is_not_shown(tmp_path: Path) -> None:
    measured = manifest(EPISODES)["evaluation"]
    batches = manifest(EPISODES, evaluation=measured | {"protocol": {"decision_batch_size": 50}})
    silent = manifest([], evaluation=measured | {"success_reported": False, "protocol": {"decision_batch_size": 1}})
    table = cells([write(tmp_path / "batches.json", batches), write(tmp_path / "silent.json", silent)])
    assert table["decision p50 [ms]"] == ["", "0.50"]
    assert table["success"][0].startswith("0.500 [") and table["success"][1] == ""


def test_tasks_without_an_environment_have_their_error(tmp_path: Path) -> None:
    measured = {"episodes": [{"action_error": 0.25}], "network_evaluations": 10, "latency_ms": {"p50": 1.0}}
    file = write(tmp_path / "flow_seed0.json", manifest([], evaluation=None, open_loop=measured))
    unmeasured = write(tmp_path / "last.json", manifest([], evaluation=None, open_loop=None))
    table = cells([file, unmeasured])
    assert table["run"] == ["pusht/flow_seed0", "pusht/last"]
    assert table["open-loop error"] == ["0.25", ""] and table["evaluations"] == ["10", ""]
    assert "score" not in table


def test_the_results_of_the_repository_are_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [str(ROOT / "results" / "pusht" / f"drift_seed{seed}.json") for seed in (0, 1, 2)]
    monkeypatch.setattr(sys, "argv", ["compare", *seeds])
    monkeypatch.setenv("COLUMNS", "40")  # a pipe has all of the table
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    assert any("training [min]" in line for line in lines), lines
    assert any("pusht/drift, mean of 3" in line and "0.994 [" in line for line in lines), lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no manifest.json.*finished"),
        ("{", "cannot be compared"),
        ("[]", "cannot be compared"),
        ('{"checkpoint": {}}', "not that of a training"),
    ],
)
def test_what_is_no_finished_run_is_an_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        find_runs([tmp_path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"steps": 20}}, "it has no training.seconds. A training writes it .* leave this run out"),
        ({"policy": {"head": "drift"}}, "it has no policy.head.name"),
        ({"training": {"steps": "many", "seconds": 1}}, "its training.steps is 'many'"),
        ({"evaluation": []}, None),
        ({"evaluation": [1]}, "it has no evaluation.network_evaluations"),
        ({"evaluation": {"episodes": [], "network_evaluations": 1, "latency_ms": {}}}, None),
        ({"evaluation": {"episodes": [], "network_evaluations": 1, "latency_ms": 5}}, "no evaluation.latency_ms.p50"),
        ({"evaluation": {"network_evaluations": 1}}, "it has no evaluation.episodes"),
        (
            {"evaluation": {"episodes": [{"score": 1.0}], "network_evaluations": 1}},
            "it has no evaluation.episodes.0.success",
        ),
        ({"open_loop": {"episodes": [3], "network_evaluations": 1}}, "it has no open_loop.episodes.0.action_error"),
    ],
)
def test_a_damaged_manifest_is_an_error_that_says_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    file = write(tmp_path / "drift_seed0" / "manifest.json", manifest(EPISODES, **changes))
    if message is None:
        assert cells([file])["run"] == ["pusht/drift_seed0"]
        return
    with pytest.raises(UserError, match=rf"{file} cannot be compared: .*{message}"):
        comparison(find_runs([file]))


def test_nothing_to_compare_is_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare"])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert ended.value.code == 2 and "--help" in capsys.readouterr().err
