"""Two processes with half of the rows each train as one process does with all of them."""

from pathlib import Path

import pytest

from tests.helpers.image_runs import largest_difference
from tests.helpers.programs import start
from tests.image_gen.image_processes import MAE_RUNS, RUNS, perform, perform_mae

# Sums in another order; Adam makes the sign of a vanishing gradient a step of full length.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The runs of one process and those of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    perform_mae(one, "mae", "none")
    perform(one, sharding=False)
    program = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    with start(*program, "--rdzv-endpoint=localhost:0", "-m", "tests.image_gen.image_processes", str(two)) as process:
        stdout, stderr = process.communicate(timeout=250)
    assert process.returncode == 0, stdout + stderr
    return one / "digits", two / "digits"


@pytest.mark.parametrize("name", MAE_RUNS)
def test_autoencoders_are_equal(both: tuple[Path, Path], name: str) -> None:
    assert largest_difference(both[1] / name, both[0] / "mae") < TOLERANCE


@pytest.mark.parametrize("name", RUNS)
def test_generators_and_queues_are_equal(both: tuple[Path, Path], name: str) -> None:
    compared = both[0] / ("ddp" if name == "fsdp2" else name)
    assert largest_difference(both[1] / name, compared) < TOLERANCE
