"""The latent cache: what the command writes, how it goes on, and what reading it gives."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from drift_policy.errors import ConfigurationError, DataError
from image_gen import evaluation
from image_gen.data.base import to_tensor
from image_gen.data.cache_latents import CacheConfig, cache_latents, main
from image_gen.data.latents import CachedLatents
from image_gen.evaluation import EvaluateConfig
from image_gen.tokenizers import build_tokenizer
from image_gen.training.config import DataConfig
from image_gen.training.samples import open_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path


def config(folder: Path, **changes: Any) -> CacheConfig:
    settings: dict[str, Any] = {
        "dataset": "folder",
        "data_path": str(folder / "images"),
        "tokenizer": "pixels",
        "output": str(folder / "cache"),
        "image_size": 8,
        "batch_size": 2,
        "shard_size": 4,
        "num_workers": 0,
        "device": "cpu",
        "dtype": "float32",
    }
    return CacheConfig(**(settings | changes))


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def test_a_cache_holds_every_image_and_its_mirror_image(folder: Path) -> None:
    index = cache_latents(config(folder))
    assert (index.num_images, index.num_shards, index.latent_shape) == (10, 3, [3, 8, 8])
    cached = CachedLatents(folder / "cache")
    assert (len(cached), cached.num_classes) == (10, 2)
    assert cached.labels.tolist() == [0] * 5 + [1] * 5
    variants = load_file(folder / "cache/shard-00002.safetensors")["latents"]
    torch.testing.assert_close(variants[:, 1], variants[:, 0].flip(3))
    pixels = np.asarray(Image.open(folder / "images/dog/4.png").resize((10, 8), Image.Resampling.BICUBIC))
    torch.testing.assert_close(variants[1, 0], to_tensor(pixels[:, 1:9]))


def test_items_are_mirrored_in_half_of_the_cases(folder: Path) -> None:
    cache_latents(config(folder))
    cached, same = CachedLatents(folder / "cache", seed=3), CachedLatents(folder / "cache", seed=3)
    chosen = []
    for epoch in range(40):
        cached.set_epoch(epoch)
        same.set_epoch(epoch)
        for index in (0, 9):
            latent, label = cached[index]
            assert label == index // 5
            assert torch.equal(latent, same[index][0])
            variants = load_file(folder / f"cache/shard-0000{index // 4}.safetensors")["latents"][index % 4]
            chosen.append([torch.equal(latent, variant) for variant in variants].index(True))
    assert 0.3 < np.mean(chosen) < 0.7


def test_without_mirror_images_items_are_always_the_same(folder: Path) -> None:
    index = cache_latents(config(folder, flip=False, dtype="float16"))
    cached = CachedLatents(folder / "cache")
    latent, _ = cached[2]
    assert not index.flip
    assert latent.dtype == torch.float32
    cached.set_epoch(1)
    assert torch.equal(cached[2][0], latent)


def test_the_flip_setting_says_whether_cached_latents_are_mirrored(folder: Path) -> None:
    cache_latents(config(folder))
    cache_latents(config(folder, output=str(folder / "plain"), flip=False))

    def is_mirrored(cache: str, flip: bool | None) -> bool:
        real = open_samples(DataConfig(name="folder", latents=str(folder / cache), flip=flip), 0)
        first = load_file(folder / cache / "shard-00000.safetensors")["latents"][:4, 0]
        differing = []
        for epoch in range(8):
            real.dataset.set_epoch(epoch)
            differing += [not torch.equal(real.dataset[index][0], first[index]) for index in range(4)]
        assert real.facts["mirrored"] == any(differing)
        return any(differing)

    assert is_mirrored("cache", None) and is_mirrored("cache", True)
    assert not is_mirrored("cache", False)
    assert not is_mirrored("plain", None) and not is_mirrored("plain", False)
    with pytest.raises(
        ConfigurationError, match=r"dataset\.flip=true, but the cache .*plain has no latents of mirrored"
    ):
        is_mirrored("plain", True)


def test_an_evaluation_sees_no_mirrored_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[DataConfig] = []

    def remember(data: DataConfig, seed: int) -> None:
        opened.append(data)
        raise DataError("seen")

    sampler = SimpleNamespace(method="drift")
    trained_on = {"data_config": asdict(DataConfig(latents="cache", flip=True))}
    monkeypatch.setattr(evaluation, "load_sampler", lambda *_, **__: (sampler, trained_on))
    monkeypatch.setattr(evaluation, "open_samples", remember)
    for dataset in (None, DataConfig(name="cifar10", flip=True)):
        with pytest.raises(DataError, match="seen"):
            evaluation.evaluate(EvaluateConfig(ckpt="x", dataset=dataset), [], Console(quiet=True))
    assert [data.flip for data in opened] == [False, False]


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_latents(config(folder))
    whole = contents(folder / "cache")
    (folder / "cache/shard-00001.safetensors").unlink()
    (folder / "cache/shard-00001.safetensors.part").write_bytes(b"half")
    with pytest.raises(DataError, match=r"shard-00001.*is missing.*same cache_latents command again"):
        CachedLatents(folder / "cache")
    kept = (folder / "cache/shard-00000.safetensors").stat().st_mtime_ns
    cache_latents(config(folder, batch_size=3))
    assert contents(folder / "cache") == whole
    assert (folder / "cache/shard-00000.safetensors").stat().st_mtime_ns == kept


def test_random_latents_do_not_depend_on_interruptions(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, **blocks).save_pretrained(folder / "vae")
    settings = config(folder, tokenizer="sd_vae", tokenizer_weights=str(folder / "vae"))
    assert cache_latents(settings).latent_shape == [4, 4, 4]
    whole = contents(folder / "cache")
    (folder / "cache/shard-00001.safetensors").unlink()
    cache_latents(settings)
    assert contents(folder / "cache") == whole
    latents = load_file(folder / "cache/shard-00000.safetensors")["latents"]
    other = cache_latents(
        config(folder, output=str(folder / "other"), tokenizer="sd_vae", seed=1, tokenizer_weights=str(folder / "vae"))
    )
    assert other.seed == 1
    assert not torch.equal(load_file(folder / "other/shard-00000.safetensors")["latents"], latents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 10}, r"other settings \(image_size, latent_shape\)"),
        ({"flip": False, "seed": 3}, r"other settings \(flip, seed\)"),
    ],
)
def test_a_cache_keeps_its_settings(folder: Path, changes: dict[str, Any], message: str) -> None:
    cache_latents(config(folder))
    with pytest.raises(ConfigurationError, match=message):
        cache_latents(config(folder, **changes))


def test_images_that_come_or_go_are_explained(folder: Path) -> None:
    cache_latents(config(folder))
    (folder / "images/cat/3.png").unlink()
    with pytest.raises(ConfigurationError, match="cache of 10 images, but the data set has 9 now: images were added"):
        cache_latents(config(folder))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(folder: Path, workers: int) -> None:
    (folder / "images/dog/4.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^\S+dog/4\.png cannot be decoded .*: replace it by a whole image") as error:
        cache_latents(config(folder, num_workers=workers))
    assert "Traceback" not in str(error.value)


def test_settings_that_cannot_work_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not empty and holds no cache"):
        cache_latents(config(folder, output=str(folder / "images")))
    with pytest.raises(ConfigurationError, match="set image_size="):
        cache_latents(config(folder, image_size=None))
    with pytest.raises(ConfigurationError, match="dtype must be float16 or float32"):
        config(folder, dtype="int8")
    with pytest.raises(ConfigurationError, match="shard_size must be at least 1"):
        config(folder, shard_size=0)


def damage(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_damaged_caches_are_refused(folder: Path) -> None:
    cache_latents(config(folder))
    cache = folder / "cache"
    shard = cache / "shard-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    for read in (lambda: CachedLatents(cache), lambda: cache_latents(config(folder))):
        with pytest.raises(DataError, match="is damaged"):
            read()
    save_file({"latents": torch.zeros(2, 2, 3, 8, 7), "labels": torch.zeros(2)}, shard)
    with pytest.raises(DataError, match=r"instead of .*\[2, 2, 3, 8, 8\]"):
        CachedLatents(cache)
    save_file({"latents": torch.zeros(2, 2, 3, 8, 8), "labels": torch.tensor([0, 2])}, shard)
    with pytest.raises(DataError, match="labels outside its 2 classes"):
        CachedLatents(cache)
    damage(cache / "cache.json", lambda content: content.update(shard_size=0))
    with pytest.raises(DataError, match="impossible sizes"):
        CachedLatents(cache)
    damage(cache / "cache.json", lambda content: content.update(format_version=9))
    with pytest.raises(DataError, match="no index of format version 1"):
        CachedLatents(cache)
    (cache / "cache.json").unlink()
    with pytest.raises(DataError, match="python -m image_gen.data.cache_latents"):
        CachedLatents(cache)


def test_latents_beyond_half_precision_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer("pixels")
    monkeypatch.setattr(tokenizer, "_encode", lambda images, generator: images * 1e6)
    monkeypatch.setattr("image_gen.data.source.build_tokenizer", lambda *_: tokenizer)
    with pytest.raises(DataError, match="set dtype=float32"):
        cache_latents(config(folder, dtype="float16"))


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    for setting in fields(CacheConfig):
        default: Any = setting.default
        shown = {"???": "...", None: "null"}.get(default, str(default))
        assert f"\n  {setting.name}={shown.lower() if isinstance(default, bool) else shown} " in said


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "dataset=folder",
        f"data_path={folder / 'images'}",
        "tokenizer=pixels",
        f"output={folder / 'cache'}",
        "image_size=8",
        "num_workers=1",
        "device=cpu",
    ]
    main(arguments)
    assert "10 images of 2 classes, latents [3, 8, 8], in 1 shard(s)" in capsys.readouterr().out
    for wrong, message in (
        (["dataset"], "is no setting: write python -m"),
        (["dataset=folder", "tokeniser=x"], "did you mean tokenizer"),
        (["dataset=folder", "tokenizer=pixels"], "output has no value"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(wrong)
        assert exit_info.value.code == 2
        error = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert message in error
