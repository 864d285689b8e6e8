"""What the pages in docs/ tell users to do works: code is run, files are used, links lead somewhere."""

import json
import re
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from omegaconf import OmegaConf

pytest.importorskip("h5py", reason="needs the package h5py of the hdf5 extra")
pytest.importorskip("pyarrow", reason="needs the package pyarrow of the lerobot extra")

from drift_policy.config import parse_config
from drift_policy.data.readers.zarr import read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.serialization import load_policy
from drift_policy.task import DatasetConfig, TaskConfig, load_demonstrations
from tests.helpers.documents import blocks, run_page
from tests.helpers.lerobot_folders import write_v30
from tests.helpers.programs import ROOT

SIZES = {"joints": 6, "gripper": 1, "action": 7}


def test_your_own_data_from_recordings_to_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v30(tmp_path / "recordings", video=True)
    rng = np.random.default_rng(1)
    recorded = {name: rng.uniform(size=(60, size)).astype(np.float32) for name, size in SIZES.items()}
    recorded["wrist"] = rng.integers(256, size=(60, 96, 96, 3), dtype=np.uint8)
    write_zarr(tmp_path / "tuesday.zarr", ReplayBuffer(recorded, np.array([20, 40, 60])))
    brightness = record_robot(tmp_path / "recorded", lengths=[4, 6])
    run_page("your_own_data.md", tmp_path, monkeypatch)
    converted = read_zarr(tmp_path / "with_images.zarr")
    assert converted.data["camera_0"].shape == (10, 96, 128, 3) and list(converted.episode_ends) == [4, 10]
    assert np.abs(converted.data["camera_0"].mean(axis=(1, 2, 3)) - brightness).max() < 4
    written = read_zarr(tmp_path / "my_robot.zarr")
    for name in ("joints", "gripper", "action"):
        assert np.array_equal(read_zarr(tmp_path / "plain.zarr").data[name], written.data[name])
    hdf5 = load_demonstrations(with_dataset("robomimic"), "my_robot.hdf5", False, print).buffer
    assert np.array_equal(hdf5.episode_ends, written.episode_ends)
    for name in ("joints", "wrist", "action"):
        assert np.array_equal(hdf5.data[name], written.data[name])
    run = tmp_path / "runs/my_robot/drift_seed0"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["evaluation"] is None and manifest["open_loop"]["episodes"]
    last = json.loads((run / "eval/manifest.json").read_text())["open_loop"]
    assert last["noise_scale"] == 0.0 and [episode["episode"] for episode in last["episodes"]] == [0, 1]


def record_robot(folder: Path, lengths: list[int]) -> np.ndarray:
    """Write what Diffusion Policy's recorder leaves, 30 frames and 10 steps a second; return the steps' brightness."""
    steps = sum(lengths)
    numbers = {"action": np.zeros((steps, 6)), "timestamp": np.arange(steps) / 10}
    write_zarr(folder / "replay_buffer.zarr", ReplayBuffer(numbers, np.cumsum(lengths)), zarr_format=2)
    brightness = []
    for episode, length in enumerate(lengths):
        shades = 20 + 100 * episode + 6 * np.arange(3 * length)
        (folder / f"videos/{episode}").mkdir(parents=True)
        with imageio.get_writer(folder / f"videos/{episode}/0.mp4", fps=30) as video:
            for shade in shades:
                video.append_data(np.full((192, 256, 3), shade, np.uint8))  # type: ignore[attr-defined]  # of the stubs
        brightness.append(shades[::3])
    return np.concatenate(brightness)


def with_dataset(data_format: str) -> TaskConfig:
    """The task of the page on one's own data, with its entry for another format."""
    texts = [block.text for block in blocks("your_own_data.md") if block.title == "dataset"]
    entries = [OmegaConf.create(text) for text in texts]
    (task,) = [block.text for block in blocks("your_own_data.md") if block.title == "configs/task/my_robot.yaml"]
    (entry,) = [entry for entry in entries if entry.format == data_format]
    return parse_config(TaskConfig, {**OmegaConf.to_container(OmegaConf.create(task)), "dataset": entry})


def test_the_example_of_adding_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page("add_a_task.md", tmp_path, monkeypatch)
    run = tmp_path / "runs/reach/drift_seed0"
    for file in (run / "manifest.json", run / "eval/manifest.json"):
        evaluation = json.loads(file.read_text())["evaluation"]
        assert evaluation["score_name"] == "closeness" and len(evaluation["episodes"]) == 2
    assert (run / "action_fan.png").is_file()


def test_the_programs_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    decisions, training, robot_loop = [block.text for block in blocks("README.md") if block.language == "python"]
    variables: dict[str, Any] = {}
    exec(compile(decisions, "README.md", "exec"), variables)
    assert variables["chunk"].shape == (1, 8, 2) and variables["fan"].shape == (1, 64, 12, 2)
    exec(compile(training, "README.md", "exec"), variables)
    assert load_policy(tmp_path / "my_policy").action_dim == 7
    compile(robot_loop, "README.md", "exec")  # runs on the page about one's own data, with a robot


def test_other_entries_for_the_data_set_are_valid() -> None:
    entries = [block.text for block in blocks("your_own_data.md") if block.title == "dataset"]
    formats = [parse_config(DatasetConfig, OmegaConf.create(entry)).format for entry in entries]
    assert formats == ["robomimic", "lerobot"]
    assert [with_dataset(name).dataset.format for name in formats] == formats


def test_the_example_of_a_real_robot_is_a_task_without_an_environment() -> None:
    text = (ROOT / "configs/task/g1_bottle.yaml").read_text()
    task = parse_config(TaskConfig, OmegaConf.create(text))
    assert task.env is None and task.dataset.format == "lerobot"
    camera = "\n".join(line[2:] for line in text.splitlines() if line.startswith("#   "))
    observations = {**OmegaConf.to_container(OmegaConf.load(ROOT / "configs/task/g1_bottle.yaml"))["observations"]}
    observations |= OmegaConf.to_container(OmegaConf.create(camera))
    with_camera = {**OmegaConf.to_container(OmegaConf.create(text)), "observations": observations}
    assert parse_config(TaskConfig, with_camera).observations["image"].crop == [108, 144]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())
    broken = []
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
