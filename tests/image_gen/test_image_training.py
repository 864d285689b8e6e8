"""Image trainings: what a run leaves, what reaches its weights, and what is refused."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.checkpoint import checkpoint

from drift_policy.drift import drift_loss
from drift_policy.drift.validation import NotFiniteError
from drift_policy.errors import CheckpointError, ConfigurationError, UserError
from drift_policy.training.folder_guard import claimed_folder
from image_gen import load_generator, load_mae
from image_gen.data.cache_latents import CacheConfig, cache_latents
from image_gen.encoders import base as encoders_base
from image_gen.models import DiT, mae_encoder
from image_gen.training import loop as loop_module
from image_gen.training.bare import main as bare_main
from image_gen.training.bare import write_config
from image_gen.training.checkpoint import CheckpointStore
from image_gen.training.config import DataConfig
from image_gen.training.program import run_program as train_program
from image_gen.training.run import train_generator
from image_gen.training.run_folder import run_folder
from image_gen.training.samples import open_samples
from image_gen.training.schedule import classification_weight, learning_rate, row_generator
from tests.helpers.image_configs import generator_config, mae_config
from tests.helpers.image_runs import (
    largest_difference,
    latent_cache,
    mae_of,
    quiet_surroundings,
    tiny_generator,
    train_tiny,
)
from tests.helpers.programs import run as run_program


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps."""
    return train_tiny(tmp_path_factory.mktemp("whole"))


def test_a_run_leaves_what_it_says(whole: Path) -> None:
    with (whole / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    for name in ("train/force_0.02", "train/force_0.2", "train/scale", "train/spread", "train/spread_real"):
        assert all(float(row[name]) > 0 for row in rows), name
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["training"]["steps"] == 6
    assert manifest["config"]["drift"]["samples_per_label"] == 4
    assert (whole / "samples/step_00000006.png").stat().st_size > 100
    generator = load_generator(whole)
    assert generator.config.hidden_size == 16
    images = generator(torch.randn(2, 1, 8, 8), torch.tensor([3, 7]), 1.0)
    assert images.shape == (2, 1, 8, 8) and bool(images.isfinite().all())
    assert load_mae(mae_of(whole)).config.base_channels == 4
    for trained in (whole, mae_of(whole)):
        noted = json.loads((trained / "checkpoints/last/config.json").read_text())["metadata"]
        assert noted["class_names"] == list("0123456789")


def test_without_an_autoencoder_one_is_trained_and_used_again(tmp_path: Path) -> None:
    said: list[str] = []
    train_tiny(tmp_path, "trainer.num_steps=1", said=said)
    assert any("none was given" in line for line in said)
    said.clear()
    train_tiny(tmp_path, "trainer.num_steps=1", "name=second", said=said)
    assert any("trained before" in line for line in said)
    with pytest.raises(ConfigurationError, match=r"mae\.batch_size.*give its folder, feature\.mae="):
        train_tiny(tmp_path, "name=third", "feature.mae_training.batch_size=4")


def test_folders_of_running_trainings_are_refused(tmp_path: Path) -> None:
    config = tiny_generator(tmp_path)
    with (
        claimed_folder(run_folder(config), lambda: False, False, ""),
        pytest.raises(UserError, match=r"Another process is training in .*run: give this run another name"),
    ):
        train_generator(config, quiet_surroundings())
    assert not run_folder(config).exists()  # nothing was written
    with (
        claimed_folder(mae_of(run_folder(config)), lambda: False, False, ""),
        pytest.raises(UserError, match=r"training in .*mae_digits_tiny_seed0: this run needs that .* feature\.mae="),
    ):
        train_generator(config, quiet_surroundings())
    train_generator(replace(config, feature=replace(config.feature, encoder="none")), quiet_surroundings())


def test_every_part_of_the_objective_reaches_the_weights(tmp_path: Path, whole: Path) -> None:
    for number, override in enumerate(
        (
            "drift.temperatures=[0.2]",
            "drift.guidance.exponent=1.0",
            "drift.unconditional_per_label=3",
            "feature.compare_input=false",
            "feature.every_k_block=1",
            "drift.affinity_floor=0.0",
            "trainer.precision=bfloat16",
            "seed=1",
            "trainer.gradient_accumulation_steps=2",
        )
    ):
        other = train_tiny(tmp_path / str(number), f"feature.mae={mae_of(whole)}", override)
        assert largest_difference(other, whole) > 0, override


def test_recomputing_activations_and_smaller_chunks_change_rounding_alone(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[torch.nn.Module] = []
    parts: list[int] = []

    def remember_block(block: torch.nn.Module, *inputs: object, **options: Any) -> Any:
        blocks.append(block)
        return checkpoint(block, *inputs, **options)

    def remember_part(features: Any, images: torch.Tensor, **options: Any) -> Any:
        parts.append(len(images))
        return checkpoint(features, images, **options)

    monkeypatch.setattr(mae_encoder, "checkpoint", remember_block)
    monkeypatch.setattr(encoders_base, "checkpoint", remember_part)
    sections = ("trainer", "feature", "feature.mae_training.trainer")
    own = [f"{section}.activation_checkpointing=true" for section in sections]
    other = train_tiny(tmp_path, *own, "feature.chunk_size=5")
    assert largest_difference(mae_of(other), mae_of(whole)) < 1e-5
    # The gradients of features are added up in another order, whose rounding Adam's first steps make larger.
    assert largest_difference(other, whole) < 2e-3
    assert len(blocks) == 4 * 3  # the autoencoder's four blocks in its own three steps
    assert parts == [16] * 6  # the generated images of six steps, and no real ones


def test_raw_pixels_need_no_autoencoder(tmp_path: Path) -> None:
    run = train_tiny(tmp_path, "feature.encoder=none", "trainer.num_steps=1")
    assert not mae_of(run).exists()


def test_a_network_of_the_user_can_be_the_only_encoder(tmp_path: Path) -> None:
    own = ["feature.own.factory=tests.helpers.own_encoder:tiny", "feature.own.layers=['0','2']"]
    alone = ["feature.encoder=none", "feature.compare_input=false", "trainer.num_steps=1"]
    torch.manual_seed(0)
    run = train_tiny(tmp_path, *own, "feature.own.mean=[0.5]", "feature.own.std=[0.5]", *alone)
    with (run / "metrics.csv").open() as file:
        assert float(next(csv.DictReader(file))["train/force_0.2"]) > 0
    with pytest.raises(ConfigurationError, match=r"feature\.own\.mean .* hold 3 number\(s\), .* have 1 channel"):
        train_tiny(tmp_path, *own, *alone, "name=colour")


def test_flow_matching_trains_by_the_same_loop(tmp_path: Path) -> None:
    run = train_tiny(tmp_path, "method=flow", "trainer.max_seconds=0.2", "trainer.num_steps=100000")
    manifest = json.loads((run / "manifest.json").read_text())
    assert 0.2 <= manifest["training"]["seconds"] < 5
    metadata = json.loads((run / "checkpoints/last/config.json").read_text())["metadata"]
    assert metadata["method"] == "flow"
    assert not mae_of(run).exists()


# What a machine with torch, numpy, einops and safetensors alone does not have.
ABSENT = (
    "hydra",
    "omegaconf",
    "rich",
    "matplotlib",
    "PIL",
    "sklearn",
    "scipy",
    "filelock",
    "platformdirs",
    "accelerate",
)
BARE = "import sys; sys.modules.update(dict.fromkeys({absent!r})); from image_gen.training.bare import main; main()"


def test_cached_latents_train_where_only_torch_is(tmp_path: Path) -> None:
    cache = CacheConfig(dataset="digits", tokenizer="pixels", output=str(tmp_path / "cache"), num_workers=0)
    cache_latents(cache, Console(quiet=True))
    own = [f"dataset.latents={tmp_path / 'cache'}", "trainer.num_steps=3"]
    run = train_tiny(tmp_path / "here", *own)
    write_config(tiny_generator(tmp_path / "here", *own), tmp_path / "config.json")
    arguments = [str(tmp_path / "config.json"), "--output", str(tmp_path / "there")]
    result = run_program("-c", BARE.format(absent=ABSENT), *arguments)
    assert result.returncode == 0, result.stderr
    assert "step 2/3" in result.stdout
    assert "matplotlib is not installed" in result.stdout
    assert largest_difference(tmp_path / "there/digits/run", run) == 0
    assert (tmp_path / "there/digits/run/samples/step_00000003.png").is_file()
    with pytest.raises(ConfigurationError, match=r"dataset\.crop=random_resized acts on images"):
        train_tiny(tmp_path, *own, "dataset.crop=random_resized", "name=crop")


def test_latents_train_where_nothing_can_decode_them(tmp_path: Path) -> None:
    latent_cache(tmp_path / "cache")
    config = tiny_generator(
        tmp_path, "dataset=imagenette224", f"dataset.latents={tmp_path / 'cache'}", "dataset.num_workers=0"
    )
    write_config(config, tmp_path / "config.json")
    places = "import os; [os.environ.pop(f'DRIFT_POLICY_{name}', None) for name in ('CACHE', 'DATA')]; "
    result = run_program("-c", places + BARE.format(absent=ABSENT), str(tmp_path / "config.json"))
    assert result.returncode == 0, result.stderr
    assert "no pictures while training: The operating system's cache folder" in result.stdout
    assert "dataset.tokenizer_weights" in result.stdout
    assert load_generator(tmp_path / "imagenette224/run").config.in_channels == 32
    assert not (tmp_path / "imagenette224/run/samples").exists()


def test_settings_that_a_cache_contradicts_are_refused(tmp_path: Path) -> None:
    latent_cache(tmp_path / "cache")
    latent_cache(tmp_path / "val", split="val", dataset="folder")
    own = DataConfig(name="imagenette224", latents=str(tmp_path / "cache"), tokenizer="taef2", image_size=64)
    for changes in ({}, {"name": "digits"}, {"image_size": None}, {"tokenizer": "sd_vae"}, {"tokenizer": "pixels"}):
        assert open_samples(replace(own, **changes), 0).tokenizer == "taef2"
    assert open_samples(replace(own, latents=str(tmp_path / "val")), 0).facts["split"] == "val"
    for name, value, held in (("split", "val", "train"), ("name", "cifar10", "imagenette224"), ("image_size", 32, 64)):
        with pytest.raises(ConfigurationError, match=f"dataset.{name}={value}, .*: set dataset.{name}={held}"):
            open_samples(replace(own, **{name: value}), 0)
    # The command line says what the user chose, also where it is a default.
    given = [f"dataset.latents={tmp_path / 'cache'}", f"write_config={tmp_path / 'config.json'}"]
    for chosen in ("dataset.tokenizer=sd_vae", "dataset=digits"):
        overrides = ["dataset=imagenette224", *given, chosen][chosen == "dataset=digits" :]
        with pytest.raises(ConfigurationError, match="but the latents in"):
            train_program(generator_config(*overrides), "", overrides, Console(quiet=True))
    train_program(generator_config(*given), "", given, Console(quiet=True))
    assert (tmp_path / "config.json").is_file()


@pytest.mark.parametrize("error", [NotFiniteError, RuntimeError])  # the latter from a compiled loss
def test_samples_that_are_not_finite_end_the_training_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def update(loop: object, step: int) -> None:
        raise error("gen must be finite, but holds NaN or infinity.")

    monkeypatch.setattr(loop_module.TrainingLoop, "update", update)
    with pytest.raises(UserError, match="diverged before step 0"):
        train_tiny(tmp_path)


def test_an_autoencoder_that_diverges_names_its_own_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lower feature\.mae_training\.trainer\.learning_rate \(now 1e\+30\)"):
        train_tiny(tmp_path, "feature.mae_training.trainer.learning_rate=1e30")


def test_a_precision_that_an_autoencoder_cannot_have_is_refused_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^feature\.mae_training\.trainer\.precision=tfloat32 is a mode of"):
        train_tiny(tmp_path, "feature.mae_training.trainer.precision=tfloat32")


def test_other_errors_do_not_pass_for_a_diverged_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(loop: object, step: int) -> None:
        raise ValueError("a setting must be a positive finite number.")

    monkeypatch.setattr(loop_module.TrainingLoop, "update", update)
    with pytest.raises(ValueError, match="a positive finite number"):
        train_tiny(tmp_path)


def test_latents_are_not_kept_as_bytes(tmp_path: Path) -> None:
    latent_cache(tmp_path / "cache")
    own = ["dataset=imagenette224", f"dataset.latents={tmp_path / 'cache'}", "feature.encoder=none"]
    with pytest.raises(ConfigurationError, match=r"bank\.storage=uint8 holds images .* the data are latents of taef2"):
        train_tiny(tmp_path, *own, "drift.bank.storage=uint8")


def test_compilation_reaches_the_network_and_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def remember(what: object, **options: object) -> object:
        compiled.append(what)
        return what

    monkeypatch.setattr(torch, "compile", remember)
    train_tiny(tmp_path, "trainer.compile=true")
    assert drift_loss in compiled and any(isinstance(what, DiT) for what in compiled)


def test_a_configuration_is_written_where_it_can_be(tmp_path: Path) -> None:
    config = replace(tiny_generator(tmp_path), write_config=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"is a folder, .* choose another, write_config=\.\.\. \."):
        train_program(config, "train.py", [], Console(quiet=True))


def test_a_time_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bare_main(["config.json", "--max-seconds", "-1"])
    assert "--max-seconds must be positive, but is -1" in capsys.readouterr().err


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bare_main([str(tmp_path / "absent.json")])
    assert "is no configuration" in capsys.readouterr().err


def test_the_seconds_of_a_bare_machine_are_shared_with_the_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bare(name: str, *options: str) -> None:
        bare_main([str(tmp_path / f"{name}.json"), "--max-seconds", "1", *options])

    endless = ["feature.mae_training.trainer.num_steps=1000000", "feature.mae_training.classification_steps=0"]
    write_config(tiny_generator(tmp_path, *endless), tmp_path / "mae.json")
    steps = []
    for options in ([], ["--resume"]):
        with pytest.raises(SystemExit) as exit_info:
            bare("mae", *options)
        assert exit_info.value.code == 130
        assert re.search(
            r"time is over at step \d+ of 1000000 of the masked .* and --resume\.", capsys.readouterr().err
        )
        steps.append(CheckpointStore(mae_of(tmp_path / "digits/run")).read_state().step)
    assert 0 < steps[0] < steps[1]
    assert not CheckpointStore(tmp_path / "digits/run").has_last()

    own = ["feature.encoder=none", "trainer.num_steps=1000000", "name=alone"]
    write_config(tiny_generator(tmp_path, *own), tmp_path / "alone.json")
    bare("alone")
    manifests = [json.loads((tmp_path / "digits/alone/manifest.json").read_text())]
    bare("alone", "--resume")
    manifests.append(json.loads((tmp_path / "digits/alone/manifest.json").read_text()))
    assert 0 < manifests[0]["training"]["steps"] < manifests[1]["training"]["steps"] < 1000000
    with pytest.raises(SystemExit):
        bare("alone")
    assert "the same command with --resume" in capsys.readouterr().err


def test_wrong_folders_and_settings_are_refused(tmp_path: Path, whole: Path) -> None:
    config = tiny_generator(whole.parents[1])
    with pytest.raises(UserError, match="already holds a run"):
        train_generator(config, quiet_surroundings())
    with pytest.raises(ConfigurationError, match=r"drift\.positives_per_label"):
        changed = replace(config, resume=True, drift=replace(config.drift, positives_per_label=5))
        train_generator(changed, quiet_surroundings())
    with pytest.raises(UserError, match="nothing to resume"):
        train_tiny(tmp_path, "resume=true")
    with pytest.raises(ConfigurationError, match="multiple of 3"):
        train_tiny(tmp_path, "trainer.gradient_accumulation_steps=3")
    with pytest.raises(ConfigurationError, match="2000 real samples, but there are 1500"):
        train_tiny(tmp_path, "drift.bank.push_per_step=2000", "name=large")
    for number, (own, advice) in enumerate(
        (
            (["drift.bank.push_per_step=2000"], r"lower drift\.bank\.push_per_step\."),
            (["feature.mae_training.batch_size=2000"], r"lower feature\.mae_training\.batch_size\."),
            (["method=flow", "drift.samples_per_label=500"], r"drift\.labels_per_step or drift\.samples_per_label\."),
        )
    ):
        with pytest.raises(ConfigurationError, match=advice):
            train_tiny(tmp_path / str(number), "feature.mae_training.trainer.num_steps=1", *own)
    with pytest.raises(CheckpointError, match="does not exist"):
        train_tiny(tmp_path, "feature.mae=nowhere", "name=other")
    with pytest.raises(ConfigurationError, match="convnext takes colour images"):
        train_tiny(tmp_path, "feature.convnext=x", "name=colour")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("drift.bank.push_per_step=2000", r"lower drift\.bank\.push_per_step"),
        ("trainer.gradient_accumulation_steps=3", "multiple of 3"),
        ("trainer.precision=tfloat32", r"trainer\.precision=tfloat32"),
        ("drift.bank.device=nothing", r"^drift\.bank\.device=nothing cannot be used .*: try drift\.bank\.device=auto"),
        ("feature.convnext=x", "convnext takes colour images"),
    ],
)
def test_what_is_wrong_is_said_before_an_autoencoder_is_trained(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        train_tiny(tmp_path, override)
    assert not mae_of(tmp_path / "digits/run").exists()


def test_learning_rate_and_classifier_follow_the_paper() -> None:
    trainer = tiny_generator(Path("x"), "trainer.learning_rate=4.0e-4", "trainer.warmup_steps=10").trainer
    rates = [learning_rate(step, trainer) for step in (0, 5, 10, 1000)]
    assert rates == pytest.approx([1e-6, (1e-6 + 4e-4) / 2, 4e-4, 4e-4])
    recipe = mae_config("dataset=imagenet256", "mae=latent_640").mae
    weights = [classification_weight(step, recipe) for step in (0, 196999, 197000, 197500, 198000, 199999)]
    assert weights == pytest.approx([0, 0, 0, 0.05, 0.1, 0.1])
    draws = {float(torch.rand(1, generator=row_generator(*key, "cpu"))) for key in ((0, 0, 0), (0, 1, 0), (1, 0, 0))}
    assert len(draws) == 3
