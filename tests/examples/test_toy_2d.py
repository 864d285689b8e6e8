"""The toy example shows what its text claims, and its command line leaves what it promises."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from drift_policy.drift import drift_loss

PATH = Path(__file__).parents[2] / "examples" / "toy_2d.py"
STEPS, SEED = 400, 0


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_2d", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_2d"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(toy: ModuleType) -> dict[str, Any]:
    """Every case trained once; the distance is measured at both ends only, which is what takes the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "SNAPSHOTS", (0.0, 1.0))
        patch.setattr(toy, "NUM_CURVE_POINTS", 1)
        results = {name: toy.train(case, STEPS, SEED) for name, case in toy.CASES.items()}
        results |= toy.train_antisymmetry(STEPS, SEED)
    return results


@pytest.mark.parametrize("case", ["middle", "far", "collapsed"])
def test_no_mode_is_lost(runs: dict[str, Any], case: str) -> None:
    assert 0.4 <= runs[case].left_share <= 0.6
    samples = runs[case].snapshots[STEPS]
    near_a_mode = ((samples[:, 0].abs() - 1.5).square() + samples[:, 1].square()).sqrt() < 1.0
    assert near_a_mode.float().mean() > 0.9  # so the halves are the modes and not one broad cloud


@pytest.mark.parametrize("case", ["middle", "far", "collapsed", "swiss_roll", "checkerboard"])
def test_distance_falls_by_nine_tenths(runs: dict[str, Any], case: str) -> None:
    assert runs[case].after <= 0.1 * runs[case].before


@pytest.mark.parametrize("variant", ["attraction x 1.5", "repulsion x 1.5", "attraction only"])
def test_broken_anti_symmetry_is_clearly_worse(runs: dict[str, Any], variant: str) -> None:
    assert runs[variant].after >= 2 * runs["anti-symmetric"].after


def test_unbroken_loss_is_the_library_loss(toy: ModuleType) -> None:
    rng = torch.Generator().manual_seed(0)
    gen, pos = torch.randn(16, 2, generator=rng, requires_grad=True), torch.randn(24, 2, generator=rng)
    broken = toy.broken_loss(gen, pos, attraction=1.0, repulsion=1.0)
    temperatures = [toy.ANTISYMMETRY_TEMPERATURE]
    library = drift_loss(gen[None], pos[None], temperatures=temperatures, affinity_floor=0.0)[0].mean()
    torch.testing.assert_close(broken, library, rtol=1e-3, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, gen)[0] for loss in (broken, library)), rtol=1e-3, atol=1e-5)


def test_command_line_writes_pictures_and_numbers(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--steps", "2", "--out", str(tmp_path), "--seed", "3", "--cases", "middle", "checkerboard"]
    monkeypatch.setattr(sys, "argv", ["examples/toy_2d.py", *arguments])
    toy.main()
    numbers = json.loads((tmp_path / "toy_2d.json").read_text())
    assert set(numbers["cases"]) == {"middle", "checkerboard"}
    assert numbers["seed"] == 3 and numbers["steps"] == 2
    assert sum(numbers["cases"]["middle"]["mode_shares"]) == pytest.approx(1)
    assert {path.name for path in tmp_path.glob("*.png")} == {"toy_2d_bimodal.png", "toy_2d_shapes.png"}
    assert "checkerboard" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--cases", "circle"]])
def test_command_line_refuses_wrong_arguments(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["examples/toy_2d.py", *wrong])
    with pytest.raises(SystemExit):
        toy.main()
    assert wrong[0] in capsys.readouterr().err
