"""Small LeRobot data sets, and LeRobot's own programs run on them."""

from pathlib import Path

import numpy as np
import pytest
from programs import SIZE, SMALL, run_lerobot


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of Push-T's shapes, made with LeRobot's recorder: its current format, images in the tables."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # the tests are skipped where it is missing

    root = tmp_path_factory.mktemp("recordings") / "pusht"
    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "observation.image": {"dtype": "image", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }
    dataset = LeRobotDataset.create("local/pusht", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(2):
        for step in range(24):
            position = np.array([100.0 + 10 * step, 400.0 - 5 * step], np.float32)
            image = rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
            frame = {"observation.state": position, "observation.image": image, "action": position + 10}
            dataset.add_frame(frame | {"task": "push"})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(scope="session")
def trained(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that five steps of `lerobot-train` write."""
    folder = tmp_path_factory.mktemp("training")
    data = ["--dataset.repo_id=local/pusht", f"--dataset.root={recordings}"]
    output = run_lerobot(
        "lerobot-train", [*SMALL, *data, "--steps=5", "--save_freq=5", f"--output_dir={folder / 'run'}"], folder
    )
    assert "End of training" in output
    return folder / "run"
