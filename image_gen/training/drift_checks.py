"""What a drifting training needs, asked before its masked autoencoder is trained: that may take hours."""

from __future__ import annotations

from drift_policy.device import choose_device
from drift_policy.errors import require
from drift_policy.training.parallel import Processes
from drift_policy.training.weight_update import use_precision
from image_gen.training.config import GeneratorTrainConfig
from image_gen.training.objective import share_of
from image_gen.training.samples import RealSamples, require_shareable

PUSH_SETTING = "drift.bank.push_per_step"


def check_drift(config: GeneratorTrainConfig, samples: RealSamples, processes: Processes) -> None:
    """Require settings that fit the data and the machine.

    Raises:
        ConfigurationError: more real samples a step than there are, labels that cannot be shared, queues that cannot
            hold the samples, or a device or precision that is not there.
    """
    bank = config.drift.bank
    require_shareable(samples, bank.push_per_step, processes, PUSH_SETTING)
    share_of(config.drift.labels_per_step, config.trainer.gradient_accumulation_steps, processes)
    use_precision(config.trainer, processes)
    if bank.device != "auto":
        choose_device(bank.device, "drift.bank.device")
    # Bytes stand for numbers from -1 to 1, which latents exceed.
    require(
        bank.storage != "uint8" or samples.tokenizer == "pixels",
        f"drift.bank.storage=uint8 holds images in [-1, 1], but the data are latents of {samples.tokenizer}, which it "
        "would clip: set drift.bank.storage=float32, bfloat16 or float16.",
    )
