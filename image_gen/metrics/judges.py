"""Networks that judge images: their features give distances, their logits classes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from drift_policy.data.cache import cache_folder
from drift_policy.errors import CheckpointError
from image_gen.artifacts import load_model
from image_gen.baselines.classifier import ImageClassifier
from image_gen.classes import Classes, stored_classes
from image_gen.levels import to_levels
from image_gen.models import MAE

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_FEATURES = 2048
_INCEPTION_CLASSES = 1008


class Judgement(NamedTuple):
    """What a network says about images."""

    features: Tensor  # [B, D]
    logits: Tensor | None  # [B, classes]; None where it has no classifier


class Judge(Protocol):
    """A network that judges images."""

    name: str  # of the network, as results call it
    is_inception: bool  # whether the distance in its features is the FID
    space: str  # "pixels", or "latents": what it takes
    channels: int | None  # of what it takes; None if it takes any
    classes: Classes | None  # that its logits are of; None if they say nothing of the data's

    def __call__(self, images: Tensor) -> Judgement:
        """Judge images [B, C, H, W] in [-1, 1], or latents."""


class ClassifierJudge:
    """The small classifier of `image_gen.baselines.classifier`.

    Args:
        classifier: trained.
        dataset: that it was trained on.
        device: where to judge.
        class_names: of the data set, if they are known.
    """

    is_inception = False
    space = "pixels"

    def __init__(
        self, classifier: ImageClassifier, dataset: str, device: torch.device, class_names: list[str] | None = None
    ) -> None:
        self.name = f"a small classifier of {dataset}"
        self.channels: int | None = classifier.channels
        self.classes: Classes | None = Classes(classifier.head.out_features, class_names)
        self._classifier = classifier.to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Judgement:
        """Judge images."""
        # As they would be stored: clipped.
        features = self._classifier.features(images.clamp(-1, 1))
        return Judgement(features, self._classifier.head(features))


class MaeJudge:
    """A masked autoencoder: the mean over positions of its last stage, and its classifier if that was trained.

    Args:
        folder: what `image_gen.load_mae` takes.
        device: where to judge.

    Raises:
        CheckpointError: it cannot be loaded.
    """

    is_inception = False
    space = "latents"

    def __init__(self, folder: str, device: torch.device) -> None:
        self.name = f"the MAE {folder}"
        mae, metadata = load_model(folder, "mae")
        assert isinstance(mae, MAE)  # load_model has checked the kind
        self.channels: int | None = mae.config.in_channels
        self.classes = stored_classes(metadata, mae.config.num_classes) if mae.has_classifier else None
        self._mae = mae.to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Judgement:
        """Judge images or latents in the space of the autoencoder."""
        features = self._mae.encoder(self._mae.fold(images))["layer4"].mean(dim=(2, 3))
        return Judgement(features, None if self.classes is None else self._mae.fc(features))


class InceptionJudge:
    """Inception-v3 as the published FID uses it: the TensorFlow weights of 2015, through torchmetrics.

    Args:
        weights: their file; without it, it is looked for in the cache.
        device: where to judge.

    Raises:
        CheckpointError: torch-fidelity or the weights are missing, or the weights are damaged.
    """

    name = "Inception-v3 (2015-12-05)"
    is_inception = True
    space = "pixels"
    channels: int | None = None
    classes: Classes | None = None

    def __init__(self, weights: str | None, device: torch.device) -> None:
        path = Path(weights) if weights is not None else cache_folder() / "inception" / INCEPTION_FILE
        how = f"Get them with\n  mkdir -p {path.parent} && curl -L --fail -o {path} {_INCEPTION_URL}\nor judge with "
        how += "another network: network=classifier."
        if not path.is_file():
            raise CheckpointError(f"The Inception weights are not at {path}. {how}")
        _require_tensors(path, how)
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            network = NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES), "logits_unbiased"], str(path))
        except ModuleNotFoundError as error:
            raise CheckpointError(
                "The Inception network comes with torch-fidelity: pip install torch-fidelity (it needs torchvision), "
                "or judge with another network: network=classifier."
            ) from error
        except (RuntimeError, KeyError) as error:  # of load_state_dict
            raise CheckpointError(f"The weights in {path} are not those of the Inception network. {how}") from error
        self._network = network.to(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Judgement:
        """Judge images; grey ones are repeated to three channels."""
        levels = to_levels(images)
        levels = levels.expand(-1, 3, -1, -1) if levels.shape[1] == 1 else levels
        # Its own forward method drops the second output.
        features, logits = self._network._torch_fidelity_forward(levels)
        return Judgement(features.flatten(1), logits.reshape(len(images), _INCEPTION_CLASSES))


def _require_tensors(path: Path, how: str) -> None:
    """Require a file that holds tensors alone: torch-fidelity reads it by torch.load, which may run what is in it.

    Raises:
        CheckpointError: it is damaged, or holds anything else.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is damaged, or holds more than weights ({reason}). {how}") from error
    if not (isinstance(held, dict) and all(isinstance(value, Tensor) for value in held.values())):
        raise CheckpointError(f"{path} holds no weights by name. {how}")
