"""Image trainings that are stopped and resumed end as whole ones, and what may change meanwhile."""

import json
import os
import shutil
import signal
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from drift_policy.errors import CheckpointError, ConfigurationError, UserError
from image_gen.artifacts.digest import weights_digest
from image_gen.training import loop as loop_module
from image_gen.training.run_folder import check_settings, record_settings
from image_gen.training.samples import TOKENIZER_DIGEST
from tests.helpers.image_runs import (
    STATE,
    largest_difference,
    latent_cache,
    mae_of,
    tensors_of,
    train_tiny,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps."""
    return train_tiny(tmp_path_factory.mktemp("whole"))


def test_moved_data_and_settings_of_older_releases_can_be_resumed(tmp_path: Path) -> None:
    latent_cache(tmp_path / "cache")
    own = ["dataset=imagenette224", "dataset.num_workers=0", "feature.encoder=none"]
    train_tiny(tmp_path, *own, f"dataset.latents={tmp_path / 'cache'}", "trainer.num_steps=1")
    (tmp_path / "cache").rename(tmp_path / "moved")
    moved = [*own, f"dataset.latents={tmp_path / 'moved'}", "dataset.tokenizer_weights=elsewhere", "resume=true"]
    path = tmp_path / "imagenette224/run/settings.json"
    settings = json.loads(path.read_text())
    del settings["feature"]["activation_checkpointing"], settings["feature"]["checkpoint_size"]
    del settings["drift"]["affinity_floor"]
    settings["dataset"]["flip"] = False  # today's null
    del settings["data"]["mirrored"]
    path.write_text(json.dumps(settings))
    run = train_tiny(tmp_path, *moved, "trainer.num_steps=2")
    assert json.loads((run / "manifest.json").read_text())["training"]["steps"] == 2
    latent_cache(tmp_path / "other", seed=1)
    with pytest.raises(ConfigurationError, match=r"other values of data\.seed\."):
        train_tiny(tmp_path, *moved, f"dataset.latents={tmp_path / 'other'}")
    with pytest.raises(ConfigurationError, match=r"other values of drift\.affinity_floor\."):
        train_tiny(tmp_path, *moved, "drift.affinity_floor=0.0")


@pytest.mark.parametrize("limit", ["512", "0"], ids=["queues saved", "queues filled again"])
def test_stopped_and_resumed_runs_end_as_whole_ones(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    # The last 160 samples hold at least as many of each class as its queue.
    setting = [f"drift.bank.save_limit_mb={limit}", *(["drift.bank.fill_steps=20"] if limit == "0" else [])]
    compared = whole if limit == "512" else train_tiny(tmp_path / "whole", *setting)
    original = loop_module.learning_rate

    def interrupting(step: int, config: object) -> float:
        if step == 4:  # the autoencoder before has three steps
            os.kill(os.getpid(), signal.SIGINT)
        return original(step, config)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "learning_rate", interrupting)
    with pytest.raises(UserError, match="Stopped at step 5"):
        train_tiny(tmp_path, *setting)
    monkeypatch.undo()
    torch.manual_seed(1234)  # the resumed process starts from another random state
    parts = train_tiny(tmp_path, *setting, "resume=true")
    assert ("bank.by_class.samples" in tensors_of(parts)) == (limit == "512")
    assert largest_difference(parts, compared) == 0


def test_resume_auto_goes_on_where_the_autoencoder_was_stopped_too(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop_module.learning_rate
    stops = [1, 4]  # steps of the autoencoder, which has three, and of the generator

    def interrupting(step: int, config: object) -> float:
        if step in stops:
            stops.remove(step)
            os.kill(os.getpid(), signal.SIGINT)
        return original(step, config)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module, "learning_rate", interrupting)
    for stopped_at in (2, 5):
        with pytest.raises(UserError, match=rf"Stopped at step {stopped_at}; .*resume=auto"):
            train_tiny(tmp_path, "resume=auto")
    assert largest_difference(train_tiny(tmp_path, "resume=auto"), whole) == 0


def test_a_constant_decay_of_the_average_resumes_too(tmp_path: Path, whole: Path) -> None:
    own = [f"feature.mae={mae_of(whole)}", "trainer.ema_warmup=false"]
    compared = train_tiny(tmp_path / "whole", *own)
    train_tiny(tmp_path, *own, "trainer.num_steps=3")
    assert largest_difference(train_tiny(tmp_path, *own, "resume=true"), compared) == 0
    assert largest_difference(compared, whole, leaving_out="ema.") == 0 < largest_difference(compared, whole)
    with pytest.raises(ConfigurationError, match=r"other values of trainer\.ema_warmup\."):
        train_tiny(tmp_path, own[0], "resume=true")


def test_where_queues_lie_and_what_is_saved_may_change_at_a_resume(tmp_path: Path, whole: Path) -> None:
    first = ["trainer.num_steps=3", "feature.mae_training.trainer.checkpoint_every=2"]
    train_tiny(tmp_path, *first)
    changed = ["drift.bank.device=cpu", "drift.bank.save_limit_mb=100", "trainer.checkpoint_every=2"]
    assert largest_difference(train_tiny(tmp_path, *changed, "resume=true"), whole) == 0


def test_weights_of_frozen_networks_that_changed_are_noticed(tmp_path: Path, whole: Path) -> None:
    mae = tmp_path / "mae"
    shutil.copytree(mae_of(whole) / "checkpoints/last", mae)
    own = [f"feature.mae={mae}", "trainer.num_steps=1"]
    run = train_tiny(tmp_path, *own)
    settings = json.loads((run / "settings.json").read_text())
    weights = mae / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights)
    more = [own[0], "trainer.num_steps=2", "resume=true"]
    with pytest.raises(ConfigurationError, match=r"other values of the weights of its encoders \(feature\.mae"):
        train_tiny(tmp_path, *more)
    save_file(tensors, weights)
    train_tiny(tmp_path, *more)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, weights)
    del settings["encoders_sha256"]  # as older releases did not store it
    (run / "settings.json").write_text(json.dumps(settings))
    train_tiny(tmp_path, own[0], "trainer.num_steps=3", "resume=true")


def test_another_folder_of_as_many_images_is_noticed(tmp_path: Path) -> None:
    def write(folder: Path, name: str) -> Path:
        for label in ("a", "b"):
            (folder / label).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (9, 8), (number, 40, 90)).save(folder / label / f"{name} {number}.png")
        return folder

    own = ["dataset=folder", "dataset.image_size=8", "dataset.num_workers=0"]
    train_tiny(tmp_path, *own, f"dataset.path={write(tmp_path / 'cats', 'cat')}", "trainer.num_steps=1")
    (tmp_path / "cats").rename(tmp_path / "moved")
    train_tiny(tmp_path, *own, f"dataset.path={tmp_path / 'moved'}", "trainer.num_steps=2", "resume=true")
    dogs = [*own, f"dataset.path={write(tmp_path / 'dogs', 'dog')}"]
    for more in ("resume=true", "name=second"):  # neither the run nor its autoencoder goes on
        with pytest.raises(
            ConfigurationError, match=r"other values of the image files, by their names \(dataset\.path"
        ):
            train_tiny(tmp_path, *dogs, more)


def test_digests_are_compared_where_both_are_known(tmp_path: Path) -> None:
    def check(before: dict[str, str], now: dict[str, str]) -> None:
        record_settings(tmp_path, {"data": before})
        check_settings(tmp_path, {"data": now})

    one, other = {TOKENIZER_DIGEST: "1"}, {TOKENIZER_DIGEST: "2"}
    for before, now in ((one, one), (one, {}), ({}, one)):
        check(before, now)
    with pytest.raises(ConfigurationError, match=r"other values of the weights of its tokenizer \(dataset\.tok"):
        check(one, other)


def test_a_digest_is_of_the_numbers() -> None:
    network = torch.nn.Linear(2, 2).requires_grad_(False)
    before = weights_digest(network)
    assert weights_digest(deepcopy(network)) == before == weights_digest(network.to(torch.float32))
    network.bias[0] += 1e-6
    assert weights_digest(network) != before != weights_digest(deepcopy(network).double())


def test_a_damaged_checkpoint_is_reported(tmp_path: Path) -> None:
    run = train_tiny(tmp_path, "trainer.num_steps=1")
    tensors = load_file(run / STATE)
    tensors.pop(next(name for name in tensors if name.startswith("optimizer.")))
    save_file(tensors, run / STATE)
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train_tiny(tmp_path, "trainer.num_steps=2", "resume=true")
