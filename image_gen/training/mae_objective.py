"""The masked autoencoder's training step: reconstruct what is hidden; classify in the last steps."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import step_generator
from drift_policy.training.stepped_training import Metrics
from image_gen.models import MAE
from image_gen.training.config import MaeRecipe
from image_gen.training.objective import Objective
from image_gen.training.samples import SampleStream
from image_gen.training.schedule import classification_weight


class MaeStep(NamedTuple):
    """The rows of one process."""

    images: Tensor  # [n, C, H, W]
    class_ids: Tensor  # [n]
    mask: Tensor  # [n, 1, h, w]
    lambda_cls: float


class MaeLossModule(nn.Module):
    """A masked autoencoder whose forward pass is its loss, as several processes want it."""

    def __init__(self, mae: MAE) -> None:
        super().__init__()
        self.mae = mae

    def forward(self, images: Tensor, class_ids: Tensor, mask: Tensor, lambda_cls: float) -> tuple[Tensor, Metrics]:
        """Return the mean loss and detached metrics."""
        losses = self.mae.losses(images, class_ids, mask, lambda_cls)
        metrics = {
            "reconstruction": losses.reconstruction.mean().detach(),
            "classification": losses.classification.mean().detach(),
            "accuracy": losses.correct.mean(),
        }
        return losses.total.mean(), metrics


class MaeObjective(Objective[MAE, MaeStep]):
    """Trains a masked autoencoder. Rows are images.

    Args:
        network: the autoencoder.
        processes: who trains together.
        stream: of images or latents.
        recipe: see `MaeRecipe`.
        seed: of the masks.
    """

    def __init__(
        self, network: MAE, processes: Processes, *, stream: SampleStream, recipe: MaeRecipe, seed: int
    ) -> None:
        super().__init__(network, processes)
        self._stream, self._recipe, self._seed = stream, recipe, seed
        self.samples_per_step = recipe.batch_size

    @property
    def rows_per_step(self) -> int:
        """Images of a step."""
        return self._recipe.batch_size

    def module(self) -> nn.Module:
        """Return the autoencoder with its loss."""
        return MaeLossModule(self.network)

    def begin(self, step: int) -> MaeStep:
        """Load this process's images and draw the masks of all."""
        images, class_ids = self._stream.own(step)
        shape_of_all = images[:1].expand(self._recipe.batch_size, *images.shape[1:])
        masks = self.network.draw_mask(shape_of_all, self._recipe.mask_ratio, step_generator(step, self._seed))
        first = self.processes.rank * len(images)
        weight = classification_weight(step, self._recipe)
        return MaeStep(images, class_ids, masks[first : first + len(images)], weight)

    def loss(self, module: nn.Module, step: MaeStep, rows: slice) -> tuple[Tensor, Metrics]:
        """Return the mean loss of some rows."""
        return module(step.images[rows], step.class_ids[rows], step.mask[rows], step.lambda_cls)

    def rows_of(self, part: int, parts: int) -> slice:
        """Return the rows of a part, among this process's own ones."""
        share = self.own_rows(parts)
        return slice(part * share, (part + 1) * share)

    def close(self) -> None:
        """End the worker processes of the stream."""
        self._stream.close()
