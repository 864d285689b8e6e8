"""Images are drawn from the noise of their number, with the class, scale or time that was asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from drift_policy.errors import ConfigurationError
from image_gen.sample_images import SampleConfig, sample
from image_gen.sampling import DRIFT, FLOW, Sampler, load_sampler
from image_gen.tokenizers.base import Randomness, Tokenizer
from tests.helpers.image_models import small_generator

CLASSES = torch.tensor([4, 0, 2, 2, 1])
Given = tuple[Tensor, Tensor, Any, Tensor]  # noise, classes, scale or time, styles


def recording_sampler(**settings: Any) -> tuple[Sampler, list[Given]]:
    """A sampler of latents, and what its generator is given."""
    generator, seen = small_generator(), list[Given]()
    generator.register_forward_pre_hook(lambda _, given: seen.append(given))
    return Sampler(generator, None, **settings), seen


def test_an_image_is_a_function_of_its_number_and_not_of_its_batch() -> None:
    sampler, seen = recording_sampler()
    whole = sampler.draw(CLASSES, seed=3)
    parts = list(sampler.stream(CLASSES, seed=3, batch_size=2))
    assert [len(part) for part in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    for position in (0, 1, 3):  # noise, classes and styles
        assert torch.equal(torch.cat([given[position] for given in seen[1:]]), seen[0][position])
    assert len(seen[0][0].flatten(1).unique(dim=0)) == len(CLASSES)
    assert len(seen[0][3].unique(dim=0)) > 1, "images have styles of their own"
    sampler.draw(CLASSES, seed=4)
    assert not torch.isin(seen[-1][0], seen[0][0]).any()


def test_a_drifting_model_is_given_the_classes_and_the_guidance_scale() -> None:
    sampler, seen = recording_sampler(cfg_scale=2.5)
    drawn = sampler.draw(CLASSES, seed=0)
    ((noise, class_ids, cfg_scale, styles),) = seen
    assert torch.equal(class_ids, CLASSES) and cfg_scale == 2.5
    with torch.inference_mode():
        assert torch.equal(drawn, sampler.generator(noise, CLASSES, 2.5, styles))
        assert not torch.equal(drawn, sampler.generator(noise, CLASSES, 1.0, styles))


def test_a_flow_model_is_given_the_classes_and_the_time() -> None:
    sampler, seen = recording_sampler(method=FLOW, flow_steps=4)
    drawn = sampler.draw(CLASSES, seed=0)
    assert [float(time) for _, _, time, _ in seen] == pytest.approx([0, 250, 500, 750])
    assert all(torch.equal(class_ids, CLASSES) for _, class_ids, _, _ in seen)
    assert all(torch.equal(styles, seen[0][3]) for *_, styles in seen)
    with torch.inference_mode():
        velocities = [sampler.generator(*given) for given in list(seen)]
    torch.testing.assert_close(drawn, seen[0][0] + sum(velocities) / 4)


def test_an_image_takes_one_evaluation_or_the_steps_of_the_flow() -> None:
    for method, evaluations in ((DRIFT, 1), (FLOW, 4)):
        sampler, seen = recording_sampler(method=method, flow_steps=4)
        sampler.draw(CLASSES, seed=0)
        assert sampler.num_evaluations == len(seen) == evaluations


def test_the_size_of_an_image_is_that_after_decoding() -> None:
    sampler, _ = recording_sampler()
    assert (sampler.image_size, sampler.image_channels) == (8, 3)
    sampler.tokenizer = Doubled(1, 3, factor=4)
    assert (sampler.image_size, sampler.image_channels) == (32, sampler.tokenizer.image_channels)


@pytest.mark.parametrize("settings", [{"cfg_scale": 0.5}, {"flow_steps": 0}])
def test_scales_and_steps_below_one_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ConfigurationError, match=f"{name} must be at least 1, but is {value}"):
        load_sampler("nowhere", torch.device("cpu"), **settings)


class Doubled(Tokenizer):
    """Images are twice their latents."""

    def _encode(self, images: Tensor, generator: Randomness) -> Tensor:
        return images / 2

    def _decode(self, latents: Tensor) -> Tensor:
        return 2 * latents


@pytest.mark.parametrize("method", [DRIFT, FLOW])
def test_what_is_drawn_is_decoded(method: str) -> None:
    sampler, _ = recording_sampler(method=method, flow_steps=2)
    latents = sampler.draw(CLASSES, seed=3)
    channels = sampler.generator.config.out_channels
    sampler.tokenizer = Doubled(channels, channels, factor=1)
    torch.testing.assert_close(sampler.draw(CLASSES, seed=3), 2 * latents)


def test_a_picture_is_called_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.jpg must end in \.png"):
        sample(SampleConfig("nowhere", output=str(tmp_path / "a.jpg")), Console(quiet=True))
