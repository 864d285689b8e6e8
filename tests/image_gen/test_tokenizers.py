"""Tokenizers: parity of taef2 with recorded arrays, the Stable Diffusion VAE on a small network, refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from drift_policy.errors import CheckpointError, ConfigurationError, DataError
from image_gen.data.base import to_tensor
from image_gen.tokenizers import Tokenizer, build_tokenizer
from image_gen.tokenizers.taef2 import Taef2, _decoder, _encoder

DATA = Path(os.environ.get("DRIFT_POLICY_DATA", ""))
needs_taef2 = pytest.mark.skipif(
    "DRIFT_POLICY_DATA" not in os.environ or not (DATA / "taef2").exists(),
    reason="DRIFT_POLICY_DATA does not name a folder with taef2",
)


def random_taef2(folder: Path) -> Path:
    """Write the two files of a taef2 with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, network in (("encoder", _encoder()), ("decoder", _decoder())):
        save_file({key: value.half() for key, value in network.state_dict().items()}, folder / f"{name}.safetensors")
    return folder


@needs_taef2
def test_taef2_equals_the_recorded_arrays() -> None:
    with np.load(DATA / "taef2/reference.npz", allow_pickle=False) as archive:
        reference = dict(archive)
    images = torch.stack([to_tensor(np.asarray(Image.open(DATA / name))) for name in reference["image_files"]])
    tokenizer = Taef2(DATA / "taef2")
    with torch.no_grad():
        latents = tokenizer.encode(images)
        decoded = tokenizer.decode(torch.from_numpy(reference["latent"]))
    np.testing.assert_allclose(latents.numpy(), reference["latent"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose((decoded.numpy() + 1) / 2, reference["decoded"], atol=2e-3)  # recorded in half precision


def test_taef2_reads_both_kinds_of_files(tmp_path: Path) -> None:
    folder = random_taef2(tmp_path / "two")
    published = {f"encoder.layers.{key}": value for key, value in load_file(folder / "encoder.safetensors").items()}
    for key, value in load_file(folder / "decoder.safetensors").items():
        layer, _, rest = key.partition(".")
        published[f"decoder.layers.{int(layer) - 1}.{rest}"] = value
    (tmp_path / "one").mkdir()
    save_file(published, tmp_path / "one/taef2.safetensors")
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    two, one = Taef2(folder), Taef2(tmp_path / "one")
    latents = two.encode(images)
    assert latents.shape == (1, 32, 2, 3)
    torch.testing.assert_close(one.encode(images), latents)
    torch.testing.assert_close(one.decode(latents), two.decode(latents))
    with torch.no_grad():  # the networks are of images in 0 .. 1
        torch.testing.assert_close(latents, two.encoder((images + 1) / 2))
        torch.testing.assert_close(two.decode(latents), 2 * two.decoder(latents) - 1)


def test_decoding_passes_gradients_to_latents_only(tmp_path: Path) -> None:
    tokenizer = Taef2(random_taef2(tmp_path))
    latents = torch.randn(1, 32, 2, 2, requires_grad=True)
    tokenizer.decode(latents).sum().backward()
    assert latents.grad is not None
    assert all(parameter.grad is None for parameter in tokenizer.parameters())


def test_damaged_taef2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)encoder\.safetensors is missing: .*hf download madebyollin/taef2"):
        Taef2(tmp_path)
    folder = random_taef2(tmp_path / "t")
    tensors = load_file(folder / "decoder.safetensors")
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != "1.bias"},
        tensors | {"1.bias": torch.zeros(3)},
    ):
        save_file(changed, folder / "decoder.safetensors")
        with pytest.raises(CheckpointError, match="holds another network"):
            Taef2(folder)
    save_file(tensors | {"1.bias": torch.full((64,), torch.nan)}, folder / "decoder.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        Taef2(folder)
    (folder / "decoder.safetensors").write_bytes(b"12345678910")
    with pytest.raises(CheckpointError, match="is damaged"):
        Taef2(folder)


def small_vae(folder: Path) -> Path:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, **blocks).save_pretrained(folder)
    return folder


def test_the_stable_diffusion_vae_scales_its_latents(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("sd_vae", small_vae(tmp_path))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = tokenizer.encode(images, torch.Generator().manual_seed(0))
    assert latents.shape == (2, 4, 8, 8)
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    distribution = tokenizer.vae.encode(images).latent_dist  # type: ignore[operator,union-attr]  # of diffusers
    expected = distribution.sample(torch.Generator().manual_seed(0)) * 0.18215
    torch.testing.assert_close(latents, expected)
    rows = [torch.Generator().manual_seed(seed) for seed in (5, 0)]
    torch.testing.assert_close(
        tokenizer.encode(images, rows)[1:], tokenizer.encode(images[1:], torch.Generator().manual_seed(0))
    )
    with pytest.raises(ValueError, match="2 generators for 1 images"):
        tokenizer.encode(images[:1], rows)
    decoded = tokenizer.vae.decode(latents / 0.18215).sample  # type: ignore[operator,union-attr]  # of diffusers
    torch.testing.assert_close(tokenizer.decode(latents), decoded)


def test_absent_vae_weights_are_explained(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(CheckpointError, match="hf download stabilityai/sd-vae-ft-mse --local-dir"):
        build_tokenizer("sd_vae", tmp_path)


def test_without_a_network_the_vae_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    hub = pytest.importorskip("huggingface_hub")

    def absent(repository: str, **options: object) -> None:
        raise hub.errors.LocalEntryNotFoundError(f"no network to {repository}.")

    monkeypatch.setattr(hub, "snapshot_download", absent)
    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", None)  # tries again for a minute
    with pytest.raises(CheckpointError, match=r"(?s)no network to stabilityai/sd-vae-ft-mse\)\. .*hf download"):
        build_tokenizer("sd_vae")


def test_incomplete_vae_weights_are_refused(tmp_path: Path) -> None:
    path = small_vae(tmp_path) / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="decoder.conv_in.bias"):
        build_tokenizer("sd_vae", tmp_path)


def test_pixels_are_their_own_latents() -> None:
    tokenizer = build_tokenizer("pixels", image_channels=1)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(tokenizer.decode(tokenizer.encode(images)), images)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 3, 12, 16), (1, 3, 16, 12), (3, 16, 16)])
def test_wrong_images_and_latents_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tokenizer: Tokenizer = Taef2(random_taef2(tmp_path))
    with pytest.raises(ValueError, match=r"expected \[B, 3, H, W\] with sides that are multiples of 8"):
        tokenizer.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected \[B, 32, height, width\]"):
        tokenizer.decode(torch.zeros(shape))


def test_choices_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="expected one of pixels, taef2, sd_vae"):
        build_tokenizer("vq")
    with pytest.raises(ConfigurationError, match="'pixels' has no weights"):
        build_tokenizer("pixels", tmp_path)
    with pytest.raises(ConfigurationError, match="takes images with 3 channels, but the data have 1"):
        build_tokenizer("taef2", random_taef2(tmp_path / "t"), image_channels=1)
    monkeypatch.delenv("DRIFT_POLICY_DATA", raising=False)
    monkeypatch.setenv("DRIFT_POLICY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"(?s)'taef2' was looked for in .*cache/taef2.*hf download"):
        build_tokenizer("taef2")
