"""The released hyper-parameters, typed once here, against configs/image_gen (tables 8 and 9 of arXiv 2602.04770)."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from drift_policy.errors import ConfigurationError
from image_gen.data.transforms import ImageTransform
from image_gen.models.dit import GENERATOR_SIZES
from image_gen.models.mae import MAE_SIZES
from image_gen.training.bare import from_values
from image_gen.training.config import DriftConfig, GeneratorTrainConfig
from tests.helpers.image_configs import generator_config, mae_config

# dim, depth, heads, MAE, ConvNeXt, learning rate, warm-up, weight decay, steps, N_c, N_pos, N_gen, N_unc, k, unguided,
# push
GENERATORS: dict[str, tuple[Any, ...]] = {
    "ablation": (768, 12, 12, "mae_latent_256", False, 2e-4, 5000, 0.01, 30000, 64, 64, 64, 16, 3, 0, 64),
    "latent_B": (768, 12, 12, "mae_latent_640", False, 4e-4, 10000, 0.0, 200000, 128, 64, 64, 32, 5, 0, 128),
    "latent_L": (1024, 24, 16, "mae_latent_640", False, 4e-4, 10000, 0.01, 200000, 128, 64, 64, 32, 3, 0.5, 128),
    "pixel_B": (768, 12, 12, "mae_pixel_640", True, 2e-4, 10000, 0.01, 100000, 128, 128, 64, 32, 5, 0, 128),
    "pixel_L": (1024, 24, 16, "mae_pixel_640", True, 4e-4, 10000, 0.01, 100000, 128, 128, 64, 32, 5, 0, 128),
}
# width, steps, steps with classifier
AUTOENCODERS = {
    "latent_256": (256, 30000, 0),
    "latent_640": (640, 200000, 3000),
    "pixel_256": (256, 30000, 0),
    "pixel_640": (640, 200000, 3000),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_have_the_released_settings(name: str) -> None:
    config = generator_config("dataset=imagenet256", f"model={name}")
    size, drift, trainer = GENERATOR_SIZES[config.model["name"]], config.drift, config.trainer
    assert list(config.model) == ["name"]
    assert config.feature.mae is not None
    assert (
        size.hidden_size,
        size.depth,
        size.num_heads,
        config.feature.mae.removeprefix("hf://"),
        config.feature.convnext is not None,
        trainer.learning_rate,
        trainer.warmup_steps,
        trainer.weight_decay,
        trainer.num_steps,
        drift.labels_per_step,
        drift.positives_per_label,
        drift.samples_per_label,
        drift.unconditional_per_label,
        drift.guidance.exponent,
        drift.guidance.unguided_share,
        drift.bank.push_per_step,
    ) == GENERATORS[name]
    assert (drift.guidance.minimum, drift.guidance.maximum) == (1, 4)
    assert (drift.temperatures, drift.affinity_floor) == ([0.02, 0.05, 0.2], 1e-6)
    assert (drift.bank.class_capacity, drift.bank.unconditional_capacity, drift.bank.fill_steps) == (128, 1000, 3000)
    assert (trainer.betas, trainer.gradient_clip, trainer.ema_decay) == ([0.9, 0.95], 2.0, 0.999)
    assert not trainer.ema_warmup
    assert (trainer.precision, config.feature.every_k_block) == ("bfloat16", 2)
    space = name.partition("_")[0]
    assert config.dataset.tokenizer == ("pixels" if space == "pixel" else "sd_vae")
    assert config.dataset.crop == ("random_resized" if space == "pixel" else "centre")
    assert config.dataset.flip
    # Random rectangles have 20 % to 100 % of the area; no configuration changes it.
    assert ImageTransform(256, config.dataset.crop).min_area == 0.2
    assert (size.in_channels, size.input_size, size.patch_size) == ((3, 256, 16) if space == "pixel" else (4, 32, 2))


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoders_have_the_released_settings(name: str) -> None:
    config = mae_config("dataset=imagenet256", f"mae={name}")
    size, recipe, trainer = MAE_SIZES[config.mae.model["name"]], config.mae, config.trainer
    assert (size.base_channels, trainer.num_steps, recipe.classification_steps) == AUTOENCODERS[name]
    assert size.layers == [3, 4, 6, 3]
    if recipe.classification_steps:
        assert (recipe.classification_weight, recipe.classification_ramp) == (0.1, 1000)
    assert (recipe.batch_size, recipe.mask_ratio, size.patch_size) == (8192, 0.5, 2)
    assert (trainer.learning_rate, trainer.warmup_steps, trainer.weight_decay) == (4e-3, 4000, 0.01)
    assert (trainer.betas, trainer.ema_decay, trainer.gradient_clip) == ([0.9, 0.95], 0.9995, 2.0)
    assert not trainer.ema_warmup
    assert (config.dataset.crop, config.dataset.flip) == ("random_resized", True)
    assert size.input_patch_size == (8 if name.startswith("pixel") else 1)


def test_every_configuration_composes() -> None:
    for dataset in ("digits", "fashion_mnist", "cifar10", "imagenette224", "imagenet256"):
        assert generator_config(f"dataset={dataset}").dataset.name == dataset
    config = generator_config("dataset=imagenette224", "model=latent_tiny")
    assert config.feature.mae_training.model == {"name": "latent_tiny"}
    assert config.trainer.ema_warmup and config.feature.mae_training.trainer.ema_warmup
    assert mae_config("dataset=imagenette224", "mae=latent_tiny").dataset.tokenizer == "taef2"
    with pytest.raises(ConfigurationError, match=r"image_size"):
        generator_config("dataset=folder")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("drift.labels_per_step=65", "push_per_step=64"),
        ("drift.unconditional_per_label=0", "nothing to guide"),
        ("feature.encoder=moco", "feature.encoder must be one of mae, none"),
        ("feature.mae=null", r"give feature\.mae=.*mae@feature\.mae_training=\.\.\. \(latent_256, latent_640"),
        ("feature.own.factory=a:b", r"feature\.own\.factory=a:b needs feature\.own\.layers"),
        ("feature.own.layers=[a]", r"set feature\.own\.factory"),
        ("feature.every_k_block=-1", r"^feature\.every_k_block must not be negative"),
        ("feature.patch_std_size=[2,2]", r"^feature\.patch_std_size must hold different sides"),
        ("feature.own.std=[1,0,1]", r"feature\.own\.std must hold"),
        ("method=gan", "method must be one of drift, flow"),
        ("trainer.precision=int8", "trainer.precision"),
        ("drift.bank.storage=int4", "storage"),
        ("drift.temperatures=[0.1,0.0]", r"drift\.temperatures must be a positive finite number, but is 0\.0"),
        ("drift.temperatures=[0.1,0.1]", r"drift\.temperatures must be different from each other"),
        ("drift.temperatures=[]", r"drift\.temperatures must hold at least one"),
        ("drift.affinity_floor=1.0", r"drift\.affinity_floor must be in \[0, 1\), but is 1\.0"),
        ("trainer.betas=[0.9,1.0]", r"trainer\.betas must be two numbers in \[0, 1\), but is \[0\.9, 1\.0\]"),
        ("drift.guidance.unguided_share=2", r"^drift\.guidance\.unguided_share must"),
        ("picture.cfg_scale=0.5", "cfg_scale"),
        ("name=a/b", "plain folder name"),
        ("+drift.temperature=0.1", r"drift\.temperature does not fit: Key 'temperature' not in"),
    ],
)
def test_settings_that_cannot_work_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        generator_config("dataset=imagenet256", "model=ablation", override)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch_size=0", "batch_size must be at least 1, but is 0"),
        ("mask_ratio=1.5", "mask_ratio must be from 0 to 1"),
        ("classification_ramp=-1", "classification_ramp must not be negative"),
        ("trainer.num_steps=0", r"trainer\.num_steps must be at least 1"),
        ("trainer.betas=[0.9]", r"trainer\.betas must be two numbers"),
        ("trainer.precision=int8", r"trainer\.precision must be one of"),
        ("trainer.sample_every=10", r"trainer\.sample_every must be 0, but is 10: a masked"),
    ],
)
def test_settings_of_an_autoencoder_are_refused_by_the_name_that_was_given(setting: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^mae\.{message}"):
        mae_config(f"mae.{setting}")
    with pytest.raises(ConfigurationError, match=rf"^feature\.mae_training\.{message}"):
        generator_config(f"feature.mae_training.{setting}")
    values = asdict(generator_config())
    name, value = setting.split("=")
    section = values["feature"]["mae_training"]
    for part in name.split(".")[:-1]:
        section = section[part]
    section[name.rpartition(".")[2]] = json.loads(value) if value[0] in "[-01" else value
    with pytest.raises(ConfigurationError, match=rf"^feature\.mae_training\.{message}"):
        from_values(GeneratorTrainConfig, values, "")


@pytest.mark.parametrize("setting", ["sharding=fsdp2", "num_threads=3"])
def test_an_autoencoder_has_the_processes_of_its_generator(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^feature\.mae_training\.trainer\.{setting}, .* set trainer\."):
        generator_config(f"feature.mae_training.trainer.{setting}")
    generator_config(f"feature.mae_training.trainer.{setting}", f"trainer.{setting}")
    mae_config(f"mae.trainer.{setting}")


def test_a_recipe_of_an_autoencoder_can_be_chosen() -> None:
    chosen = ["model=latent_B", "feature.mae=null", "mae@feature.mae_training=latent_256"]
    recipe = generator_config("dataset=imagenet256", *chosen).feature.mae_training
    assert (recipe.model, recipe.batch_size) == ({"name": "latent_256"}, 8192)
    assert generator_config("dataset=imagenet256", "model=latent_B", "feature.mae=null", "method=flow").method == "flow"


def test_an_encoder_beside_the_autoencoder_is_feature_enough() -> None:
    alone = ["feature.encoder=none", "feature.compare_input=false"]
    assert generator_config(*alone, "feature.convnext=folder").feature.convnext == "folder"
    with pytest.raises(ConfigurationError, match="leave no feature"):
        generator_config(*alone)


def test_configurations_survive_json_without_other_packages() -> None:
    config = generator_config("dataset=imagenet256", "model=latent_L")
    assert from_values(GeneratorTrainConfig, asdict(config), "") == config
    with pytest.raises(ConfigurationError, match="drift has no setting colour"):
        from_values(GeneratorTrainConfig, asdict(config) | {"drift": {"colour": 1}}, "")
    with pytest.raises(ConfigurationError, match="labels_per_step is '8'"):
        from_values(DriftConfig, {"labels_per_step": "8"}, "")


def test_fashion_mnist_has_a_recipe_of_its_own() -> None:
    config = generator_config("dataset=fashion_mnist", "model=fashion_tiny")
    size = GENERATOR_SIZES[config.model["name"]]
    assert (size.input_size, size.in_channels, size.num_classes) == (28, 1, 10)
    assert (config.drift.labels_per_step, config.trainer.num_steps) == (8, 1600)
    alone = mae_config("dataset=fashion_mnist", "mae=fashion_tiny")
    trained_first = config.feature.mae_training
    assert (trained_first.model, trained_first.trainer) == (alone.mae.model, alone.trainer)
    assert MAE_SIZES["fashion_tiny"].input_patch_size == 2
