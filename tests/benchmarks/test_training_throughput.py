import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import speed_tables, training_throughput
from benchmarks.training_throughput import BFLOAT16, CNN_LOOP, DRIFT, IMAGE, IMAGE_LOSS, LOSS, MLP_LOOP, Case

REFERENCE = (
    training_throughput.ReferenceMlp,
    training_throughput.ReferenceCnn,
    training_throughput.reference_descent,
    training_throughput.reference_mlp_loop,
    training_throughput.reference_cnn_loop,
)
REFERENCE_SHA256 = "e09e9bb7ebcca91f6e6427acfa599fd05bf1fee74ec372052ebb0c2d69729bab"
UPDATES = [DRIFT, BFLOAT16, "diffusion, state", "regression, state", IMAGE]


def reference_source() -> str:
    return "\n".join(inspect.getsource(part) for part in REFERENCE)


def foreign_names(source: str, module: dict[str, Any]) -> set[str]:
    """Name what `source` takes from its module besides PyTorch, type names and its own parts."""
    allowed = {"torch", "nn", "Tensor", "Callable", *(part.__name__ for part in REFERENCE)}
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    imports = any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(ast.parse(source)))
    return {name for name in used if name in module and name not in allowed} | ({"import"} if imports else set())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with the results of a run of everything, as short as possible."""
    folder, threads = tmp_path_factory.mktemp("results"), torch.get_num_threads()
    output = folder / "training_throughput.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training_throughput", "--rounds", "2", "--steps", "1", "--output", str(output)])
        training_throughput.main()
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def cases(measured: Path) -> dict[str, dict[str, Any]]:
    return json.loads((measured / "training_throughput.json").read_text())["cases"]


def test_the_references_use_pytorch_alone() -> None:
    assert foreign_names(reference_source(), vars(training_throughput)) == set()


@pytest.mark.parametrize("line", ["drift_loss(x, y)", "Ema(p, 0.9)", "MLP_LOOP", "import drift_policy"])
def test_the_search_for_foreign_names_finds_them(line: str) -> None:
    assert foreign_names(line, vars(training_throughput)) != set()


def test_the_references_are_those_of_earlier_results() -> None:
    found = hashlib.sha256(reference_source().encode()).hexdigest()
    assert found == REFERENCE_SHA256, "the references must never change: earlier ratios could not be compared any more"


def test_everything_is_measured_and_every_ratio_is_positive_and_finite(cases: dict[str, dict[str, Any]]) -> None:
    assert list(cases) == [MLP_LOOP, DRIFT, LOSS, *UPDATES[1:4], CNN_LOOP, IMAGE, IMAGE_LOSS]
    for name, case in cases.items():
        ratios = [case[key] for key in ("steps_times_reference", "samples_times_drift", "drift_loss_share")]
        values = [value for ratio in ratios if ratio is not None for value in ratio.values()]
        values += [case["steps_per_s"], case["samples_per_s"]]
        assert all(np.isfinite(value) and value > 0 for value in values), (name, case)
        assert (case["drift_loss_share"] is not None) == (name in (DRIFT, IMAGE))
    for name in (MLP_LOOP, CNN_LOOP):
        assert cases[name]["steps_times_reference"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert cases[DRIFT]["samples_times_drift"]["median"] == 1.0


def test_updates_are_those_of_the_shipped_configurations(cases: dict[str, dict[str, Any]]) -> None:
    assert [cases[name]["batch_size"] for name in UPDATES] == [64, 64, 256, 256, 64]
    assert cases[IMAGE]["reference"] == CNN_LOOP
    assert {cases[name]["reference"] for name in UPDATES[:4]} == {MLP_LOOP}


def test_the_run_is_described(measured: Path) -> None:
    content = json.loads((measured / "training_throughput.json").read_text())
    assert content["command"].startswith("python -m benchmarks.training_throughput --rounds 2 --steps 1")
    assert (content["rounds"], content["steps"], content["machine"]["threads"]) == (2, 1, 1)
    assert content["load_average_before"] >= 0


def test_the_table_has_a_row_for_every_update(measured: Path, cases: dict[str, dict[str, Any]]) -> None:
    rows = speed_tables.throughput_table(measured).splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == UPDATES
    for name, row in zip(UPDATES, rows, strict=True):
        assert f"| {cases[name]['steps_times_reference']['median']:.2f} [" in row
        assert ("%" in row) == (name in (DRIFT, IMAGE))


def test_ratios_are_taken_within_rounds() -> None:
    """In the second round everything takes twice as long, which no ratio shows."""
    cases = {
        name: Case(lambda: None, "update", batch_size, MLP_LOOP)
        for name, batch_size in ((MLP_LOOP, 64), (DRIFT, 64), (LOSS, 64), ("other", 256))
    }
    seconds = {MLP_LOOP: 1.0, DRIFT: 2.0, LOSS: 0.5, "other": 4.0}
    times = {name: value * np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 9.0]]) for name, value in seconds.items()}
    summary = training_throughput.summarize(cases, times)
    assert summary[DRIFT]["steps_times_reference"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert summary[DRIFT]["drift_loss_share"]["median"] == 0.25
    assert summary["other"]["samples_times_drift"]["median"] == 2.0
    assert summary["other"]["steps_per_s"] == pytest.approx(1 / 6)
    assert summary["other"]["samples_per_s"] == pytest.approx(256 / 6)


@pytest.mark.parametrize(("task", "timed"), [("pusht", "energy_loss"), ("pusht_image", "drift_loss")])
def test_the_loss_that_is_timed_is_that_of_the_update(task: str, timed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("energy_loss", "drift_loss"):
        original = getattr(training_throughput, name)

        def watched(*args: Any, name: str = name, original: Any = original, **settings: Any) -> Any:
            called.append(name)
            return original(*args, **settings)

        monkeypatch.setattr(training_throughput, name, watched)
    training_throughput.loss_case(training_throughput.shipped_config("drift", task), MLP_LOOP).call()
    assert called == [timed]


def test_every_step_is_timed_after_a_warm_up_in_every_round() -> None:
    calls: list[str] = []
    cases = {name: Case(lambda name=name: calls.append(name), "update", 1, "a") for name in ("a", "b")}
    times = training_throughput.measure(cases, rounds=2, steps=3)
    assert calls == (["a"] * 4 + ["b"] * 4) * 2
    assert all(values.shape == (2, 3) and (values > 0).all() for values in times.values())


def test_a_part_brings_what_it_is_held_against() -> None:
    assert list(training_throughput.make_cases(["state"])) == [MLP_LOOP, DRIFT, LOSS]


@pytest.mark.parametrize("argument", ["--rounds=0", "--steps=-1", "--threads=0"])
def test_counts_below_one_are_refused(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training_throughput", argument])
    with pytest.raises(SystemExit):
        training_throughput.main()
    assert "must be at least 1" in capsys.readouterr().err
