"""Two processes with half of the rows each train as one process does with all of them."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.image_runs import largest_difference
from tests.helpers.programs import TORCHRUN, start
from tests.image_gen.image_processes import ALL_STEPS, FIRST_STEPS, MAE_RUNS, PARTS, RUNS, perform, perform_mae

# Sums in another order; Adam makes the sign of a vanishing gradient a step of full length.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The runs of one process and those of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    perform_mae(one, "mae", "none")
    # Both go on from the same weights: a new generator draws black images, whose normalised features amplify rounding.
    for name, overrides in (("ddp", []), ("parts", PARTS), ("flow", ["method=flow"])):
        perform(one, name, overrides, FIRST_STEPS, resume=False)
    shutil.copytree(one, two, dirs_exist_ok=True)
    shutil.rmtree(two / "digits/mae")
    shutil.copytree(two / "digits/ddp", two / "digits/fsdp2")
    settings = (two / "digits/ddp/settings.json").read_text()
    (two / "digits/fsdp2/settings.json").write_text(settings.replace('"ddp"', '"fsdp2"'))
    for name, overrides in (("ddp", []), ("parts", PARTS), ("flow", ["method=flow"])):
        perform(one, name, overrides, ALL_STEPS, resume=True)
    with start(*TORCHRUN, "-m", "tests.image_gen.image_processes", str(two)) as process:
        stdout, stderr = process.communicate(timeout=250)
    assert process.returncode == 0, stdout + stderr
    return one / "digits", two / "digits"


@pytest.mark.parametrize("name", MAE_RUNS)
def test_autoencoders_are_equal(both: tuple[Path, Path], name: str) -> None:
    assert largest_difference(both[1] / name, both[0] / "mae") < TOLERANCE


@pytest.mark.parametrize("name", RUNS)
def test_generators_and_queues_are_equal(both: tuple[Path, Path], name: str) -> None:
    compared = both[0] / ("ddp" if name == "fsdp2" else name)
    # The moments of a generator are as large as its gradients.
    difference = largest_difference(both[1] / name, compared, leaving_out="optimizer.")
    assert difference < TOLERANCE, difference
