from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from drift_policy.errors import CheckpointError, ConfigurationError, DataError
from image_gen.baselines.classifier import ImageClassifier
from image_gen.evaluation import EvaluateConfig, make_judge
from image_gen.metrics import statistics
from image_gen.metrics.judges import ClassifierJudge, InceptionJudge, MaeJudge
from image_gen.metrics.statistics import (
    Moments,
    frechet_distance,
    inception_score,
    moments_of,
    precision_recall,
    read_statistics,
)
from image_gen.reference import to_images
from image_gen.sample_images import SampleConfig
from tests.helpers.image_models import small_mae


def normal(number: int, dims: int, seed: int) -> torch.Tensor:
    return torch.randn(number, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_of_known_normals() -> None:
    # |m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances.
    one = Moments(torch.tensor([0.0, 1.0]), torch.diag(torch.tensor([1.0, 4.0])), 0)
    two = Moments(torch.tensor([3.0, 1.0]), torch.diag(torch.tensor([9.0, 4.0])), 0)
    assert frechet_distance(one, two) == pytest.approx(9 + 4, abs=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_samples_equals_the_matrix_formula() -> None:
    one, two = normal(200, 5, 0) @ normal(5, 5, 1), normal(300, 5, 2) + 0.5
    a, b = (np.cov(x.numpy().T) for x in (one, two))
    expected = float((one.mean(0) - two.mean(0)).square().sum()) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(moments_of(one), moments_of(two)) == pytest.approx(expected, rel=1e-6)


def test_inception_score_of_known_labels() -> None:
    certain = 100 * torch.eye(4).repeat(50, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(4, rel=1e-5)
    assert inception_score(certain, splits=1)[1] == 0, "one part has no deviation"
    assert inception_score(torch.zeros(40, 4), splits=2) == pytest.approx((1, 0), abs=1e-6)
    mean, deviation = inception_score(certain, splits=10)
    assert 3 < mean <= 4 and deviation < 0.5
    for seed in (5, 6):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        assert inception_score(certain) == (mean, deviation)
        assert torch.equal(torch.get_rng_state(), state), "a training may go on as if nothing was measured"


def test_precision_and_recall_of_known_sets() -> None:
    real = normal(400, 2, 0)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)
    # A generator of the right half alone is precise, but reaches half of the data.
    half = normal(400, 2, 1)
    half = half[half[:, 0] > 0]
    precision, recall = precision_recall(half, real)
    assert precision > 0.85
    assert 0.4 < recall < 0.7
    with pytest.raises(ValueError, match="more than num_nearest=3"):
        precision_recall(real[:3], real)


def test_precision_and_recall_on_a_line() -> None:
    # Radii to the nearest other: 1, 1, 2, 4 of the real, 7, 4, 3, 3 of the generated.
    real, generated = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([[-2.0], [5.0], [9.0], [12.0]])
    assert precision_recall(generated, real, num_nearest=1) == (0.5, 1.0)


def test_precision_and_recall_hold_few_distances_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = normal(3000, 2, 0).float(), normal(2500, 2, 1).float()
    distances, most = torch.cdist, []

    def noted(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        most.append(len(one))
        return distances(one, two)

    monkeypatch.setattr(torch, "cdist", noted)
    in_parts = precision_recall(generated, real)
    assert max(most) <= 1024
    monkeypatch.setattr(statistics, "_CHUNK", 5000)
    assert precision_recall(generated, real) == pytest.approx(in_parts, abs=1e-3)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        moments_of(torch.full((3, 2), float("nan")))
    with pytest.raises(ValueError, match="at least 2 images"):
        moments_of(torch.zeros(1, 2))


def test_reference_statistics_are_read_as_adm_writes_them(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "full.npz", mu=np.zeros(3), sigma=np.eye(3), arr_0=images)
    moments, found = read_statistics(tmp_path / "full.npz")
    assert moments is not None and moments.covariance.shape == (3, 3)
    assert found is not None and np.array_equal(found, images)
    assert torch.equal(to_images(found)[0, :, 0, 0], torch.from_numpy(images[0, 0, 0]).float() / 127.5 - 1)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="expected mu and sigma"):
        read_statistics(tmp_path / "other.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(DataError, match="do not fit together"):
        read_statistics(tmp_path / "odd.npz")
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(DataError, match="cannot be read"):
        read_statistics(tmp_path / "objects.npz")
    with pytest.raises(DataError, match="cannot be read"):
        read_statistics(tmp_path / "absent.npz")


@pytest.mark.parametrize("kind", ["empty", "cut", "flipped", "text", "array"])
def test_damaged_statistics_end_with_a_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npz"
    noise = np.random.default_rng(0).standard_normal((40, 40))
    np.savez_compressed(path, mu=noise[0], sigma=noise)
    whole = path.read_bytes()
    half = len(whole) // 2
    np.save(tmp_path / "array.npy", noise)
    contents = {
        "empty": b"",
        "cut": whole[:half],
        "flipped": whole[:half] + bytes(byte ^ 255 for byte in whole[half : half + 99]) + whole[half + 99 :],
        "text": b"<html>not found</html>",
        "array": (tmp_path / "array.npy").read_bytes(),
    }
    path.write_bytes(contents[kind])
    with pytest.raises(DataError, match="cannot be read"):
        read_statistics(path)


def test_reference_statistics_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for shape in ((0, 8, 8, 3), (2, 8, 8, 2)):
        np.savez(path, arr_0=np.zeros(shape, dtype=np.uint8))
        with pytest.raises(DataError, match="1 or 3 channels"):
            read_statistics(path)
    np.savez(path, mu=np.array([0, np.nan]), sigma=np.eye(2))
    with pytest.raises(DataError, match="NaN or infinity"):
        read_statistics(path)


class Unsafe:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_inception_weights_are_read_as_tensors_alone(tmp_path: Path) -> None:
    path, trace = tmp_path / "inception.pth", tmp_path / "ran"
    for held in (Unsafe(trace), {"weight": Unsafe(trace)}):
        torch.save(held, path)
        with pytest.raises(CheckpointError, match=r"(?s)damaged, or holds more than weights.*curl -L --fail"):
            InceptionJudge(str(path), torch.device("cpu"))
    assert not trace.exists()
    torch.save({"weight": torch.zeros(1000)}, path)
    for content in (b"", b"<html>not found</html>", path.read_bytes()[:300], path.read_bytes()[:3000]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            InceptionJudge(str(path), torch.device("cpu"))
    torch.save([torch.zeros(3)], path)
    with pytest.raises(CheckpointError, match="no weights by name"):
        InceptionJudge(str(path), torch.device("cpu"))


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfitting(*arguments: object) -> None:
        torch.nn.Linear(2, 3).load_state_dict({"weight": torch.zeros(3, 2)})

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", unfitting)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not those of the Inception network"):
        InceptionJudge(str(tmp_path / "other.pth"), torch.device("cpu"))


@pytest.mark.parametrize("seed", [-1, 2**32, 10**15])
def test_seeds_have_bounds(seed: int) -> None:
    for kind in (EvaluateConfig, SampleConfig):
        with pytest.raises(ConfigurationError, match="seed must be from 0 to 4294967295"):
            kind(ckpt="x", seed=seed)
    assert EvaluateConfig(ckpt="x", seed=2**32 - 1).seed == 2**32 - 1


def test_missing_inception_weights_name_file_and_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_POLICY_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"(?s)pt_inception-2015-12-05-6726825d\.pth.*curl -L"):
        InceptionJudge(None, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        InceptionJudge(str(tmp_path / "absent.pth"), torch.device("cpu"))


def test_a_classifier_judges_images_as_they_would_be_stored() -> None:
    judge = ClassifierJudge(ImageClassifier(1, 10), "digits", torch.device("cpu"))
    images = torch.linspace(-3, 3, 2 * 16 * 16).reshape(2, 1, 16, 16)
    given, stored = judge(images), judge(images.clamp(-1, 1))
    assert torch.equal(given.features, stored.features)
    assert given.logits is not None and stored.logits is not None
    assert torch.equal(given.logits, stored.logits)


def test_a_masked_autoencoder_judges_by_the_mean_over_positions(tmp_path: Path) -> None:
    mae = small_mae(in_channels=4)
    judge = MaeJudge(str(mae.save_pretrained(tmp_path / "mae")), torch.device("cpu"))
    latents = torch.randn(2, 4, 64, 64)
    with torch.no_grad():
        maps = mae.encoder(mae.fold(latents))["layer4"]
    assert maps.shape[2] * maps.shape[3] > 1
    torch.testing.assert_close(judge(latents).features, maps.flatten(2).mean(dim=2))


def test_judges_without_data_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="trained on images"):
        make_judge("classifier", None, None, torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="network must be"):
        EvaluateConfig(ckpt="x", network="vgg")
    with pytest.raises(ConfigurationError, match="split into 10"):
        EvaluateConfig(ckpt="x", num_samples=5)
    with pytest.raises(ConfigurationError, match="num_manifold=3 must be more than num_nearest=3"):
        EvaluateConfig(ckpt="x", num_manifold=3)
    with pytest.raises(ConfigurationError, match="num_samples=50 must be more than num_nearest=50"):
        EvaluateConfig(ckpt="x", num_samples=50, num_nearest=50)
    with pytest.raises(ConfigurationError, match=r"network_weights=a\.pth are Inception's, but network=classifier"):
        EvaluateConfig(ckpt="x", network="classifier", network_weights="a.pth")
