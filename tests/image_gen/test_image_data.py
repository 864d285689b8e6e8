"""Readers of labelled images, crops and flips."""

import gzip
import os
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from drift_policy.errors import ConfigurationError, DataError, UserError
from image_gen.data import image_folder
from image_gen.data.base import ArrayImages, TransformedImages, to_tensor
from image_gen.data.build import DATASETS, build_image_set
from image_gen.data.cifar10 import read_cifar10
from image_gen.data.fashion_mnist import read_fashion_mnist
from image_gen.data.image_folder import AllImages, ImageFolder
from image_gen.data.source import open_source
from image_gen.data.transforms import ImageTransform, centre_crop, random_resized_crop
from image_gen.levels import to_levels

DATA = Path(os.environ.get("DRIFT_POLICY_DATA", "/absent"))


def random_pixels(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def make_folder(root: Path, classes: tuple[str, ...] = ("n02", "n01"), images: int = 2) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            colour = (50 * label, 10 * i, 7)
            Image.new("RGB", (9, 6), colour).save(root / name / f"{name}_{i}.JPEG", quality=100, subsampling=0)
    return root


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    images = ImageFolder(make_folder(tmp_path))
    assert images.class_names == ["n01", "n02"]
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert [path.name for path in images.files] == ["n01_0.JPEG", "n01_1.JPEG", "n02_0.JPEG", "n02_1.JPEG"]
    assert images.image(0).shape == (6, 9, 3)
    np.testing.assert_allclose(images.image(1)[0, 0], (50, 10, 7), atol=3)


def test_what_is_hidden_is_no_class_and_no_image(tmp_path: Path) -> None:
    make_folder(tmp_path)
    make_folder(tmp_path / ".ipynb_checkpoints", ("copy",))
    make_folder(tmp_path / "n01", (".thumbnails",))
    (tmp_path / "n02/._n02_0.JPEG").write_bytes(b"no image")
    assert ImageFolder(tmp_path).class_names == ["n01", "n02"]
    assert len(ImageFolder(tmp_path)) == len(AllImages(tmp_path)) == 4


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    assert len(ImageFolder(make_folder(tmp_path / ".cache/images"))) == 4


def test_other_formats_and_colour_spaces_become_rgb(tmp_path: Path) -> None:
    (tmp_path / "a/deep").mkdir(parents=True)
    Image.new("L", (4, 4), 9).save(tmp_path / "a/deep/grey.png")
    Image.new("CMYK", (4, 4)).save(tmp_path / "a/print.jpg")
    (tmp_path / "a/readme.txt").write_text("no image")
    images = ImageFolder(tmp_path)
    assert len(images) == 2
    assert images.image(0).shape == images.image(1).shape == (4, 4, 3)
    assert (images.image(0) == 9).all()


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def test_grey_images_of_16_bits_keep_their_shades(tmp_path: Path) -> None:
    shades = np.array([[0, 257, 300, 32768, 65535]], dtype=np.uint16)
    save(Image.fromarray(shades), tmp_path / "a/0.png")
    save(Image.fromarray(shades.astype(">u2")), tmp_path / "a/1.png", format="TIFF")  # opened by what is in the file
    for index in (0, 1):
        pixels = ImageFolder(tmp_path).image(index)
        assert pixels.dtype == np.uint8
        assert pixels[0].tolist() == [[shade] * 3 for shade in (0, 1, 1, 128, 255)]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_known_range_are_refused(tmp_path: Path, mode: str) -> None:
    save(Image.new(mode, (4, 4), 70000), tmp_path / "a/deep.png", format="TIFF")
    with pytest.raises(DataError, match=rf"deep\.png has the mode '{mode}', numbers of 32 bits"):
        ImageFolder(tmp_path).image(0)


@pytest.mark.filterwarnings("error")
def test_transparency_is_left_out(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4))
    palette.putpalette([50, 100, 150] * 256)
    save(palette, tmp_path / "a/0.png", transparency=bytes([0, 128]))
    save(Image.new("LA", (4, 4), (90, 10)), tmp_path / "a/1.png")
    save(Image.new("RGBA", (4, 4), (1, 2, 3, 0)), tmp_path / "a/2.png")
    save(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "a/3.png", format="TIFF")
    images = ImageFolder(tmp_path)
    found = [images.image(index)[0, 0].tolist() for index in range(4)]
    assert found == [[50, 100, 150], [90, 90, 90], [1, 2, 3], [255, 0, 0]]


def test_broken_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="does not exist"):
        ImageFolder(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no folders"):
        ImageFolder(tmp_path)
    folder = make_folder(tmp_path / "f", ("a",), images=1)
    (folder / "a/a_0.JPEG").write_bytes((folder / "a/a_0.JPEG").read_bytes()[:200])
    with pytest.raises(DataError, match=r"a_0\.JPEG cannot be decoded .*: replace it by a whole image"):
        ImageFolder(folder).image(0)
    Image.new("RGB", (9, 6)).save(folder / "a/a_0.JPEG")
    monkeypatch.setattr(image_folder, "MAX_PIXELS", 50)
    with pytest.raises(DataError, match="9 x 6 pixels, more than 50"):
        ImageFolder(folder).image(0)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        ImageFolder(folder)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def make_fashion_mnist(folder: Path, prefix: str = "train", count: int = 5) -> NDArray[np.uint8]:
    folder.mkdir(exist_ok=True)
    images = random_pixels(28, 28, count).transpose(2, 0, 1).copy()
    write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return images


def test_fashion_mnist(tmp_path: Path) -> None:
    written = {split: make_fashion_mnist(tmp_path, prefix) for split, prefix in (("train", "train"), ("val", "t10k"))}
    for split, images in written.items():
        found = read_fashion_mnist(tmp_path, split)
        np.testing.assert_array_equal(found.images[..., 0], images)
        assert found.labels.tolist() == [0, 1, 2, 3, 4]
        assert found.class_names[4] == "Coat"
        assert found.channels == 1


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    make_fashion_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-30], "is damaged"),
        (b"not gzip", "is damaged"),
        (gzip.compress(b"\x00\x00\x08\x01\x00"), "no idx file of bytes with 3 dimensions"),
        (gzip.compress(b"\x00\x00\x08\x03" + struct.pack(">3I", 2**31, 2**31, 4) + b"1"), "holds 1 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_fashion_mnist(tmp_path, "train")
    path.unlink()
    with pytest.raises(DataError, match="curl"):
        read_fashion_mnist(tmp_path, "train")
    make_fashion_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(4, dtype=np.uint8))
    with pytest.raises(DataError, match="5 images but 4 labels"):
        read_fashion_mnist(tmp_path, "train")


def make_cifar10(folder: Path) -> NDArray[np.uint8]:
    folder.mkdir(parents=True)
    images = random_pixels(32 * 3, 32, 3).reshape(3, 32, 32, 3)
    for part in range(1, 6):
        records = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in enumerate(images)]
        (folder / f"data_batch_{part}.bin").write_bytes(b"".join(records))
    (folder / "test_batch.bin").write_bytes(b"\x07" + images[1].transpose(2, 0, 1).tobytes())
    return images


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path: Path, inside: str) -> None:
    images = make_cifar10(tmp_path / "c" / inside)
    train, val = read_cifar10(tmp_path / "c", "train"), read_cifar10(tmp_path / "c", "val")
    np.testing.assert_array_equal(train.images, np.tile(images, (5, 1, 1, 1)))
    assert train.labels.tolist() == [0, 1, 2] * 5
    np.testing.assert_array_equal(val.image(0), images[1])
    assert val.class_names[val.labels[0]] == "horse"


def test_damaged_cifar10_is_refused(tmp_path: Path) -> None:
    make_cifar10(tmp_path / "c")
    path = tmp_path / "c/data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin has 9,218 bytes"):
        read_cifar10(tmp_path / "c", "train")
    path.write_bytes(b"\x0b" * 3073)
    with pytest.raises(DataError, match="10 classes, but labels from 0 to 11"):
        read_cifar10(tmp_path / "c", "train")
    path.unlink()
    with pytest.raises(DataError, match=r"(?s)data_batch_3\.bin is missing.*cifar-10-binary\.tar\.gz"):
        read_cifar10(tmp_path / "c", "train")


def test_digits_need_no_files() -> None:
    pytest.importorskip("sklearn")
    train, val = build_image_set("digits"), build_image_set("digits", "val")
    assert (len(train), len(val), train.num_classes) == (1500, 297, 10)
    assert train.image(0).shape == (8, 8, 1)
    assert max(int(train.image(i).max()) for i in range(20)) == 255
    assert np.bincount(val.labels).min() >= 27
    with pytest.raises(ConfigurationError, match="leave it out"):
        build_image_set("digits", path="somewhere")


@pytest.mark.skipif(not (DATA / "fashion_mnist").exists(), reason="DRIFT_POLICY_DATA has no fashion_mnist")
def test_the_real_fashion_mnist() -> None:
    val = build_image_set("fashion_mnist", "val")
    assert (len(val), val.num_classes) == (10_000, 10)
    assert np.bincount(val.labels).tolist() == [1000] * 10


@pytest.mark.skipif(not (DATA / "imagenette224").exists(), reason="DRIFT_POLICY_DATA has no imagenette224")
def test_the_real_imagenette() -> None:
    val = build_image_set("imagenette224", "val")
    assert (len(val), val.num_classes) == (500, 10)
    assert val.class_names[0] == "n01440764"
    assert val.image(3).shape == (224, 224, 3)


def test_places_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_POLICY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DRIFT_POLICY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"(?s)data/cifar10 and .*cache/cifar10.*curl -L"):
        build_image_set("cifar10")
    make_cifar10(tmp_path / "cache/cifar10")
    assert len(build_image_set("cifar10")) == 15
    make_cifar10(tmp_path / "data/cifar10")
    (tmp_path / "data/cifar10/data_batch_1.bin").unlink()
    with pytest.raises(DataError, match=r"data/cifar10/data_batch_1\.bin is missing"):
        build_image_set("cifar10")
    assert len(build_image_set("cifar10", path=tmp_path / "cache/cifar10")) == 15


def test_image_folders_by_name(tmp_path: Path) -> None:
    make_folder(tmp_path / "parts/train")
    make_folder(tmp_path / "parts/val", images=1)
    assert len(build_image_set("imagenet256", "train", tmp_path / "parts")) == 4
    assert len(build_image_set("folder", "val", tmp_path / "parts")) == 2
    make_folder(tmp_path / "plain")
    assert len(build_image_set("folder", path=tmp_path / "plain")) == 4
    with pytest.raises(DataError, match="plain/val does not exist"):
        build_image_set("folder", "val", tmp_path / "plain")
    with pytest.raises(ConfigurationError, match="data_path="):
        build_image_set("folder")
    with pytest.raises(ConfigurationError, match=", ".join(DATASETS)):
        build_image_set("mnist")
    with pytest.raises(ConfigurationError, match="train or val"):
        build_image_set("digits", "test")


def test_messages_name_the_options_of_their_program(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    own: dict[str, Any] = {"image_size": 8, "tokenizer": "pixels", "tokenizer_weights": None}
    colour = make_folder(tmp_path / "images")
    for name, path, changes, option in (
        ("folder", None, {}, "{}=..."),
        ("digits", "here", {}, "{}=here"),
        ("digits", None, {"tokenizer_weights": "there"}, " {}tokenizer_weights=there"),
        (
            "digits",
            None,
            {"tokenizer": "sd_vae", "tokenizer_weights": str(tmp_path)},
            "set {}tokenizer_weights=sd-vae-ft-mse",
        ),
    ):
        for prefix, path_option in (("", "data_path"), ("dataset.", "dataset.path")):
            expected = option.format(prefix if "tokenizer" in option else path_option)
            with pytest.raises(UserError, match=re.escape(expected)):
                open_source(name, "train", path, **own | changes, prefix=prefix)
    assert open_source("folder", "train", colour, **own).image_size == 8


@settings(max_examples=30)
@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 24), channels=st.sampled_from([1, 3]))
def test_crops_have_the_asked_size(height: int, width: int, size: int, channels: int) -> None:
    pixels = random_pixels(height, width, channels)
    rng = np.random.default_rng(0)
    for cropped in (centre_crop(pixels, size), random_resized_crop(pixels, size, rng)):
        assert cropped.shape == (size, size, channels)
        assert cropped.dtype == np.uint8


def test_the_centre_is_kept() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200
    assert (centre_crop(pixels, 20) == 200).all()
    np.testing.assert_array_equal(centre_crop(random_pixels(8, 8), 8), random_pixels(8, 8))


def test_random_crops_cover_the_image_and_keep_their_share() -> None:
    height, width = 40, 60
    rows = np.broadcast_to(np.arange(height, dtype=np.uint8)[:, None], (height, width))
    columns = np.broadcast_to(np.arange(width, dtype=np.uint8), (height, width))
    pixels = np.stack([rows, columns, rows], axis=2)
    rng = np.random.default_rng(0)
    crops = [random_resized_crop(pixels, 32, rng).astype(int) for _ in range(200)]
    spans = np.array([[np.ptp(crop[..., 0]) + 1, np.ptp(crop[..., 1]) + 1] for crop in crops])
    shares = spans.prod(axis=1) / (height * width)
    assert shares.min() > 0.15 and shares.max() > 0.8  # resizing blurs the first and last values
    ratios = spans[:, 1] / spans[:, 0]
    assert ratios.min() > 0.68 and ratios.max() < 1.5
    assert min(crop[..., 1].min() for crop in crops) <= 1 and max(crop[..., 1].max() for crop in crops) >= 58


def test_what_is_random_depends_on_seed_epoch_and_index() -> None:
    images = ArrayImages(np.stack([random_pixels(12, 12)] * 64), np.zeros(64, int), ["a"])
    transform = ImageTransform(8, crop="random_resized", flip=True)
    dataset, other = TransformedImages(images, transform, seed=1), TransformedImages(images, transform, seed=1)
    assert torch.equal(dataset[5][0], other[5][0])
    assert not torch.equal(dataset[5][0], dataset[6][0])
    other.set_epoch(1)
    assert not torch.equal(dataset[5][0], other[5][0])


def test_half_of_the_images_are_mirrored() -> None:
    pixels = random_pixels(8, 8)
    images = ArrayImages(np.stack([pixels] * 400), np.zeros(400, int), ["a"])
    dataset = TransformedImages(images, ImageTransform(8, flip=True))
    mirrored = sum(torch.equal(dataset[i][0], to_tensor(pixels[:, ::-1])) for i in range(400))
    plain = sum(torch.equal(dataset[i][0], to_tensor(pixels)) for i in range(400))
    assert mirrored + plain == 400
    assert 160 < mirrored < 240


def test_bytes_and_tensors_round_trip() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    image = to_tensor(pixels)
    assert (float(image.min()), float(image.max())) == (-1.0, 1.0)
    assert torch.equal(image.ravel(), torch.arange(256.0) / 127.5 - 1)
    np.testing.assert_array_equal(to_levels(image).permute(1, 2, 0).numpy(), pixels)
    assert to_levels(torch.tensor([-3.0, 3.0], requires_grad=True)).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"size": 0}, "size"), ({"crop": "random"}, r"^dataset\.crop must be"), ({"min_area": 0.0}, "min_area must be")],
)
def test_impossible_transforms_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ImageTransform(**({"size": 8} | change))  # type: ignore[arg-type]  # wrong on purpose


def test_read_only_pixels_become_tensors_without_a_warning() -> None:
    pixels = np.zeros((2, 2, 1), dtype=np.uint8)
    pixels.flags.writeable = False
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch warns once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert to_tensor(pixels).tolist() == [[[-1.0, -1.0], [-1.0, -1.0]]]
    finally:
        torch.set_warn_always(before)
