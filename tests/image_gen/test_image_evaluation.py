"""The evaluation beyond its formulas: devices, references, and what a network can say."""

import json
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from drift_policy.config import parse_config
from drift_policy.errors import ConfigurationError, DataError
from image_gen import evaluation
from image_gen.artifacts import save_model
from image_gen.baselines.classifier import ImageClassifier
from image_gen.classes import Classes, stored_classes
from image_gen.data.cache_latents import CacheConfig, cache_latents
from image_gen.evaluation import EvaluateConfig, evaluate, make_judge, random_rows, require_named, score
from image_gen.metrics.judges import ClassifierJudge, Judge, Judgement, MaeJudge
from image_gen.metrics.statistics import moments_of
from image_gen.models import build_generator, build_mae
from image_gen.reference import Reference, make_reference, to_images, with_channels
from image_gen.sample_images import SampleConfig, sample
from image_gen.sampling import Sampler
from image_gen.tokenizers import Tokenizer
from image_gen.tokenizers.pixels import Pixels
from image_gen.training.config import DataConfig
from image_gen.training.samples import open_samples
from tests.helpers.image_configs import composed

META = torch.device("meta")  # holds no numbers, but refuses what lies on another device
QUIET = Console(quiet=True)


class FakeJudge:
    """Judges by the mean of each channel, and notes what it was given."""

    name = "a fake"
    is_inception = False
    channels = None
    classes: Classes | None = None

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.space = "pixels"

    def __call__(self, images: torch.Tensor) -> Judgement:
        self.seen.append(images)
        means = torch.zeros(len(images), 3) if images.is_meta else images.mean(dim=(2, 3))
        return Judgement(means, torch.zeros(len(images), 4))


def test_the_classifier_judges_where_the_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def untrained(images: torch.Tensor, class_ids: torch.Tensor, num_classes: int) -> ImageClassifier:
        return ImageClassifier(images.shape[1], num_classes)

    monkeypatch.setattr(evaluation, "train_classifier", untrained)
    judged = make_judge("classifier", None, DataConfig(), META)(torch.zeros(3, 1, 8, 8, device=META))
    assert judged.logits is not None
    assert judged.features.device == judged.logits.device == META


def tiny_sampler() -> Sampler:
    sizes = {"hidden_size": 16, "cond_dim": 16, "depth": 1, "num_heads": 2, "n_cls_tokens": 1, "noise_coords": 2}
    return Sampler(build_generator("digits_tiny", **sizes), Pixels(1))


def test_images_of_a_file_are_judged_on_the_device(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((5, 8, 8, 3), dtype=np.uint8))
    sampler, judge = tiny_sampler(), FakeJudge()
    sampler.generator.to(META)
    make_reference(str(tmp_path / "images.npz"), None, judge, sampler, 3, QUIET)
    assert [(len(images), images.device) for images in judge.seen] == [(3, META), (2, META)]


def write_statistics(path: Path, width: int, **images: np.ndarray) -> str:
    np.savez(path, mu=np.zeros(width), sigma=np.eye(width), **images)
    return str(path)


def test_statistics_are_inceptions_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    bare = write_statistics(tmp_path / "bare.npz", 3)
    both = write_statistics(tmp_path / "both.npz", 3, arr_0=pixels)
    with pytest.raises(ConfigurationError, match="Inception's features alone, but the network is a fake"):
        make_reference(bare, None, FakeJudge(), tiny_sampler(), 4, QUIET)
    reference = make_reference(both, None, FakeJudge(), tiny_sampler(), 4, QUIET)
    assert reference.features is not None
    assert torch.equal(reference.moments.mean, reference.features.double().mean(dim=0))  # not mu, which is zero


def test_inception_is_compared_with_statistics_of_its_width(tmp_path: Path) -> None:
    judge = FakeJudge()
    judge.is_inception = True
    with pytest.raises(DataError, match="mu has 3 entries, but Inception has 2048"):
        make_reference(write_statistics(tmp_path / "few.npz", 3), None, judge, tiny_sampler(), 4, QUIET)
    assert judge.seen == []
    pixels = np.zeros((5, 9, 9, 3), dtype=np.uint8)
    full = write_statistics(tmp_path / "full.npz", 2048, arr_0=pixels)
    reference = make_reference(full, None, judge, tiny_sampler(), 5, QUIET)
    assert reference.moments.mean.shape == (2048,)
    assert reference.features is not None and reference.features.shape[0] == 5
    assert judge.seen[0].shape == (5, 3, 9, 9)  # as they are


@pytest.mark.parametrize("network", ["classifier", "mae"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_grey_generator_is_compared_with_grey_images(tmp_path: Path, network: str, kind: str) -> None:
    write_images(tmp_path / "folder", 4)
    levels = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "folder").iterdir())]
    np.savez(tmp_path / "file.npz", arr_0=np.stack(levels))
    if network == "mae":
        mae = build_mae("digits_tiny", base_channels=4, layers=[1, 1, 1, 1])
        judge: Judge = MaeJudge(str(mae.save_pretrained(tmp_path / "mae")), torch.device("cpu"))
    else:
        judge = ClassifierJudge(ImageClassifier(1, 10), "digits", torch.device("cpu"))
    given = tmp_path / ("folder" if kind == "folder" else "file.npz")
    reference = make_reference(str(given), None, judge, tiny_sampler(), 4, QUIET)
    assert reference.features is not None and len(reference.features) == 4


def test_grey_is_what_pil_makes_of_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(float)
    ours = (with_channels(to_images(pixels[None]), 1)[0, 0].numpy() + 1) * 127.5
    assert np.abs(ours - grey).max() < 0.6  # PIL rounds
    assert torch.equal(with_channels(torch.ones(2, 1, 3, 3), 3), torch.ones(2, 3, 3, 3))


class Squares(Tokenizer):
    """Latents are the means of squares of seven pixels."""

    def __init__(self) -> None:
        super().__init__(3, 3, factor=7)

    def _encode(self, images: torch.Tensor, generator: object) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 7)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        levels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")


@pytest.mark.parametrize("folders", [[""], ["one", "two"], ["train/one", "train/two/deep"]])
def test_any_folder_of_images_is_a_reference(tmp_path: Path, folders: list[str]) -> None:
    for name in folders:
        write_images(tmp_path / name, 6 // len(folders))
    (tmp_path / "notes.txt").write_text("no image")
    judge, sampler = FakeJudge(), tiny_sampler()
    sampler.tokenizer = Pixels(3)
    reference = make_reference(str(tmp_path), None, judge, sampler, 4, QUIET)
    assert reference.features is not None and reference.features.shape == (6, 3)
    assert reference.name == str(tmp_path)
    assert reference.facts == {"images": 6, "image_size": 8}


def test_a_folder_has_the_size_and_space_of_the_generator(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    sampler, judge = tiny_sampler(), FakeJudge()
    sampler.tokenizer = Squares()
    make_reference(str(tmp_path), None, judge, sampler, 4, QUIET)
    assert judge.seen[0].shape == (3, 3, 56, 56)
    judge.space = "latents"
    make_reference(str(tmp_path), None, judge, sampler, 4, QUIET)
    assert judge.seen[1].shape == (3, 3, 8, 8)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="no folder with images"):
            make_reference(str(folder), None, FakeJudge(), tiny_sampler(), 4, QUIET)


def test_references_of_too_few_images_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match="at least 2 images"):
        make_reference(str(tmp_path), None, FakeJudge(), tiny_sampler(), 4, QUIET)
    write_images(tmp_path, 3)
    judge = FakeJudge()
    reference = make_reference(str(tmp_path), None, judge, tiny_sampler(), 4, QUIET)
    with pytest.raises(DataError, match=r"has 3 images.*more than num_nearest=3"):
        score(tiny_sampler(), judge, reference, EvaluateConfig(ckpt="x", num_samples=20), QUIET)
    assert len(judge.seen) == 1  # nothing was drawn


def test_features_that_are_not_finite_end_with_a_sentence(tmp_path: Path) -> None:
    class Diverged(FakeJudge):
        def __call__(self, images: torch.Tensor) -> Judgement:
            return Judgement(torch.full((len(images), 3), float("nan")), None)

    write_images(tmp_path, 5)
    with pytest.raises(DataError, match="NaN or infinity"):
        make_reference(str(tmp_path), None, Diverged(), tiny_sampler(), 4, QUIET)
    real = torch.rand(20, 3)
    with pytest.raises(ConfigurationError, match=r"NaN or infinity.*another ckpt"):
        config = EvaluateConfig(ckpt="x", num_samples=20)
        score(tiny_sampler(), Diverged(), Reference(moments_of(real), real, "random"), config, QUIET)


def test_a_data_set_is_named(tmp_path: Path) -> None:
    real = open_samples(DataConfig(split="val"), 0)
    assert make_reference(None, real, FakeJudge(), tiny_sampler(), 100, QUIET).name == "digits, val"
    cache_latents(CacheConfig("digits", "pixels", str(tmp_path / "cache"), num_workers=0), QUIET)
    cached = open_samples(DataConfig(latents=str(tmp_path / "cache")), 0)
    assert make_reference(None, cached, FakeJudge(), tiny_sampler(), 500, QUIET).name == "digits, train"


class LevelJudge(FakeJudge):
    """Says that images lie around ten places, one for each class in turn."""

    def __call__(self, images: torch.Tensor) -> Judgement:
        first = sum(map(len, self.seen))
        self.seen.append(images)
        places = torch.arange(first, first + len(images)) % 10
        return Judgement(around(places), torch.zeros(len(images), 4))


def around(places: torch.Tensor) -> torch.Tensor:
    """Return points [N, 2] close to places [N] on a line."""
    noise = torch.rand(len(places), 2, generator=torch.Generator().manual_seed(len(places)))
    return torch.stack([100.0 * places, 0.0 * places], dim=1) + noise


def test_precision_takes_real_images_of_all_classes() -> None:
    # Sorted by class, as a folder is: the first 200 are of one class of ten.
    real = around(torch.arange(10).repeat_interleave(200))
    config = EvaluateConfig(ckpt="x", num_samples=200, num_manifold=200, splits=1)
    scores = score(tiny_sampler(), LevelJudge(), Reference(moments_of(real), real, "sorted"), config, QUIET)
    assert scores["precision"] > 0.8


def test_recall_takes_all_generated_images() -> None:
    real = around(torch.arange(10).repeat_interleave(10))
    config = EvaluateConfig(ckpt="x", num_samples=200, num_manifold=5, num_nearest=1, splits=1)
    sizes: list[tuple[int, int]] = []

    def noted(generated: torch.Tensor, chosen: torch.Tensor, num_nearest: int) -> tuple[float, float]:
        sizes.append((len(generated), len(chosen)))
        return 0.5, 0.5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "precision_recall", noted)
        score(tiny_sampler(), LevelJudge(), Reference(moments_of(real), real, "sorted"), config, QUIET)
    assert sizes == [(200, 5)]


def test_a_reference_takes_the_place_of_the_training_data(tmp_path: Path) -> None:
    trained_on = asdict(DataConfig(latents=str(tmp_path / "not here")))
    metadata = {"tokenizer": "pixels", "data_config": trained_on}
    sizes = {"hidden_size": 16, "cond_dim": 16, "depth": 1, "num_heads": 2, "n_cls_tokens": 1, "noise_coords": 2}
    generator = save_model(build_generator("digits_tiny", **sizes), tmp_path / "generator", metadata)
    mae = build_mae("digits_tiny", base_channels=4, layers=[1, 1, 1, 1])
    write_images(tmp_path / "images", 8)
    config = EvaluateConfig(
        ckpt=str(generator),
        network=f"mae:{mae.save_pretrained(tmp_path / 'mae')}",
        num_samples=20,
        splits=1,
        batch_size=4,
        reference=str(tmp_path / "images"),
    )
    result = evaluate(config, [], QUIET)
    assert result["reference"]["images"] == 8
    with pytest.raises(DataError, match="not here"):
        evaluate(replace(config, reference=None), [], QUIET)


def test_the_choice_of_real_images_is_seeded_and_without_replacement() -> None:
    features = torch.arange(50.0).unsqueeze(1)
    chosen = random_rows(features, 20, seed=0)
    assert len(set(chosen.ravel().tolist())) == 20
    assert torch.equal(random_rows(features, 20, seed=0), chosen)
    assert not torch.equal(random_rows(features, 20, seed=1), chosen)
    assert torch.equal(random_rows(features, 50, seed=0), features)


@pytest.mark.parametrize("is_trained", [False, True])
def test_an_autoencoder_without_classifier_names_no_classes(tmp_path: Path, is_trained: bool) -> None:
    mae = build_mae("digits_tiny", base_channels=4, layers=[1, 1, 1, 1])
    if is_trained:
        torch.nn.init.ones_(mae.fc.bias)
    judge = MaeJudge(str(mae.save_pretrained(tmp_path / "mae")), torch.device("cpu"))
    real = torch.rand(20, 32)
    config = EvaluateConfig(ckpt="x", num_samples=20, splits=2)
    scores = score(tiny_sampler(), judge, Reference(moments_of(real), real, "random"), config, QUIET)
    assert f"Frechet distance in {judge.name} features" in scores
    assert ("accuracy" in scores) is is_trained
    assert any("exp(KL)" in name for name in scores) is is_trained


@pytest.mark.parametrize(
    ("of_judge", "of_generator", "difference"),
    [
        (Classes(10), Classes(10), None),
        (Classes(2, ["a", "b"]), Classes(2), None),
        (Classes(2, ["a", "b"]), Classes(2, ["a", "b"]), None),
        (Classes(1000), Classes(10, ["a"] * 10), "1000 classes instead of 10"),
        (Classes(2, ["a", "c"]), Classes(2, ["a", "b"]), "class 1 is 'c' instead of 'b'"),
    ],
)
def test_accuracy_is_of_the_same_classes(of_judge: Classes, of_generator: Classes, difference: str | None) -> None:
    assert of_judge.difference(of_generator) == difference


def test_names_that_fit_the_number_are_read() -> None:
    assert stored_classes({"class_names": [0, 1]}, 2) == Classes(2, ["0", "1"])
    for metadata in ({}, {"class_names": None}, {"class_names": ["a"]}):
        assert stored_classes(metadata, 2) == Classes(2, None)


def evaluated_by(
    tmp_path: Path, mae_metadata: dict[str, object], cfg_scale: object = 1.0, method: str = "drift", **mae: object
) -> tuple[dict[str, object], str]:
    """Evaluate a generator of ten digits by an autoencoder with these metadata; return the result and the console."""
    metadata = {"tokenizer": "pixels", "class_names": list("0123456789"), "method": method}
    torch.manual_seed(0)
    network = tiny_sampler().generator
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # a new one draws the same image from any noise
    generator = save_model(network, tmp_path / "generator", metadata)
    judge = build_mae("digits_tiny", base_channels=4, layers=[1, 1, 1, 1], **mae)
    torch.nn.init.ones_(judge.fc.bias)  # as if the classifier were trained
    save_model(judge, tmp_path / "mae", mae_metadata)
    write_images(tmp_path / "images", 8)
    config = EvaluateConfig(
        ckpt=str(generator),
        network=f"mae:{tmp_path / 'mae'}",
        num_samples=20,
        splits=1,
        batch_size=4,
        reference=str(tmp_path / "images"),
        cfg_scale=cfg_scale,
    )
    console = Console(record=True, quiet=False, file=StringIO(), width=500)
    return evaluate(config, [], console), console.export_text()


def test_accuracy_of_other_classes_is_left_out(tmp_path: Path) -> None:
    result, said = evaluated_by(tmp_path, {"class_names": list("0123456789")})
    assert "accuracy" in result["scores"] and "left out" not in said
    result, said = evaluated_by(tmp_path, {"class_names": list("abcdefghij")})
    assert "accuracy" not in result["scores"]
    assert "accuracy is left out" in said and "class 0 is 'a' instead of '0'" in said
    result, said = evaluated_by(tmp_path, {}, num_classes=7)
    assert "accuracy" not in result["scores"] and "7 classes instead of 10" in said


def test_networks_of_other_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="of 3 channels, but the generator draws 1"):
        evaluated_by(tmp_path, {}, in_channels=3)
    mae = build_mae("digits_tiny", base_channels=4, layers=[1, 1, 1, 1], in_channels=3)
    judge = MaeJudge(str(mae.save_pretrained(tmp_path / "colour")), torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="of 3 channels, but those of the data have 1"):
        make_reference(None, open_samples(DataConfig(split="val"), 0), judge, tiny_sampler(), 100, QUIET)


def test_what_is_wrong_is_said_before_a_classifier_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(evaluation, "train_classifier", fail)
    colour = build_generator("digits_tiny", in_channels=3, out_channels=3, input_size=8)
    ckpt = str(save_model(colour, tmp_path / "generator", {"tokenizer": "pixels"}))
    config = EvaluateConfig(ckpt, network="classifier", dataset=DataConfig(), num_samples=20)
    with pytest.raises(ConfigurationError, match="of 1 channels, but the generator draws 3"):
        evaluate(config, [], QUIET)
    with pytest.raises(DataError, match=r"reference=absent\.npz does not exist"):
        evaluate(replace(config, reference="absent.npz"), [], QUIET)


def test_settings_of_the_data_need_their_name() -> None:
    require_named(None)
    require_named(composed("evaluate", "ckpt=x", "dataset=digits", "dataset.split=val")["dataset"])
    with pytest.raises(ConfigurationError, match=r"^dataset\.split=\.\.\. is a setting of no data set"):
        require_named(composed("evaluate", "ckpt=x", "+dataset.split=val")["dataset"])


def test_several_guidance_scales_are_scored_at_once(tmp_path: Path) -> None:
    one, said = evaluated_by(tmp_path, {}, cfg_scale=2.0)
    assert one["cfg_scale"] == 2 and "sweep" not in one and "best" not in said
    result, said = evaluated_by(tmp_path, {}, cfg_scale=[1, 2.0, 3.5])
    assert [entry["cfg_scale"] for entry in result["sweep"]] == [1, 2, 3.5]
    assert result["sweep"][1]["scores"] == one["scores"]
    (distance,) = (name for name in result["scores"] if name.startswith("Frechet"))
    best = min(result["sweep"], key=lambda entry: entry["scores"][distance])
    assert (result["cfg_scale"], result["scores"]) == (best["cfg_scale"], best["scores"])
    assert len({entry["scores"][distance] for entry in result["sweep"]}) == 3
    assert f"best     cfg_scale={best['cfg_scale']:g}" in said
    assert json.loads((tmp_path / "generator/evaluation.json").read_text()) == result


def test_an_earlier_evaluation_is_kept_unless_it_asked_the_same(tmp_path: Path) -> None:
    first, said = evaluated_by(tmp_path, {}, cfg_scale=2.0)
    assert said.startswith("Frechet distance")  # bars leave no empty lines where there is no terminal
    assert "kept" not in said and "kept" not in evaluated_by(tmp_path, {}, cfg_scale=2.0)[1]
    second, said = evaluated_by(tmp_path, {}, cfg_scale=3.0)
    kept = tmp_path / "generator/evaluation_1.json"
    assert f"kept     the earlier evaluation, of other weights or settings: {kept}" in said
    assert json.loads(kept.read_text())["scores"] == first["scores"]
    assert json.loads((tmp_path / "generator/evaluation.json").read_text()) == second
    config = EvaluateConfig(**second["settings"], ckpt=str(tmp_path / "generator"))  # type: ignore[arg-type]
    network = tiny_sampler().generator
    save_model(network, tmp_path / "generator", {"tokenizer": "pixels"})
    evaluate(replace(config, output=str(kept)), [], QUIET)  # a named file is replaced
    assert len(list((tmp_path / "generator").glob("evaluation*"))) == 2
    evaluate(config, [], QUIET)
    assert json.loads((tmp_path / "generator/evaluation_2.json").read_text()) == second


def test_an_output_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file/scores.json"):
        with pytest.raises(ConfigurationError, match=r"choose another, output="):
            evaluate(EvaluateConfig("absent", output=str(output)), [], QUIET)
        with pytest.raises(ConfigurationError, match=r"choose another, output="):
            sample(SampleConfig("absent", output=str(output)), QUIET)


def test_a_flow_model_takes_no_guidance(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a flow model: leave it at 1"):
        evaluated_by(tmp_path, {}, cfg_scale=[1.0, 1.5], method="flow")


@pytest.mark.parametrize("given", [0.5, [], [1.0, 1], [2, 0.9], "high", True, [float("nan")], [float("inf")], None])
def test_guidance_scales_are_different_numbers(given: object) -> None:
    with pytest.raises(ConfigurationError, match="cfg_scale must be a number of at least 1, or a list"):
        EvaluateConfig(ckpt="x", cfg_scale=given)


def test_guidance_scales_come_from_the_command_line() -> None:
    for override, scales in (("cfg_scale=1.5", [1.5]), ("cfg_scale=[1,1.5,2]", [1, 1.5, 2])):
        assert parse_config(EvaluateConfig, composed("evaluate", "ckpt=x", override)).scales == scales
