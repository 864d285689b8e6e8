"""Draw a grid of images from a trained generator."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from drift_policy.device import choose_device
from drift_policy.errors import require
from drift_policy.result_files import require_writable
from image_gen.evaluation import beside
from image_gen.pictures import draw_grid, write_png
from image_gen.sampling import load_sampler, require_seed


@dataclass
class SampleConfig:
    """Settings of the picture."""

    ckpt: str  # run folder, folder of a generator, or hf://name
    classes: list[int] | None = None  # class numbers, one column each; null is the first ten
    per_class: int = 10  # rows
    seed: int = 0  # of noise and styles
    cfg_scale: float = 1.0  # guidance scale; the paper's best are 1.0 (L), 1.1 (B) and 2.0 (ablation)
    flow_steps: int = 50  # network evaluations of a flow model
    device: str = "auto"  # "cpu", "cuda", ...; "auto" takes a GPU if there is one
    tokenizer: str | None = None  # space of the generator; null is as the training noted it
    tokenizer_weights: str | None = None  # folder of its weights
    output: str | None = None  # the PNG file; null is samples.png beside the checkpoint
    batch_size: int = 64  # images at once

    def __post_init__(self) -> None:
        for name in ("per_class", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, but is {getattr(self, name)}.")
        require(self.classes is None or len(self.classes) > 0, "classes must be null or name at least one class.")
        require_seed(self.seed)


def sample(config: SampleConfig, console: Console) -> Path:
    """Draw and write the picture; return its path.

    Raises:
        UserError: anything the user has to change.
    """
    path = Path(config.output) if config.output else beside(config.ckpt) / "samples.png"
    require_writable(path)
    require(path.suffix.lower() == ".png", f"output={path} must end in .png: the picture is a PNG file.")
    device = choose_device(config.device)
    sampler, _ = load_sampler(
        config.ckpt,
        device,
        tokenizer=config.tokenizer,
        tokenizer_weights=config.tokenizer_weights,
        cfg_scale=config.cfg_scale,
        flow_steps=config.flow_steps,
    )
    known = sampler.generator.config.num_classes
    classes = list(range(min(10, known))) if config.classes is None else config.classes
    require(
        all(0 <= number < known for number in classes),
        f"classes must be numbers from 0 to {known - 1}, but are {classes}.",
    )
    class_ids = torch.tensor(classes).repeat(config.per_class)
    started = time.perf_counter()
    images = torch.cat([part.cpu() for part in sampler.stream(class_ids, config.seed, config.batch_size)])
    seconds = time.perf_counter() - started
    write_png(draw_grid(images, len(classes)), path)
    names = sampler.class_names
    shown = [str(number) if names is None else names[number] for number in classes]
    console.print(
        f"{len(images)} images, {sampler.num_evaluations} network evaluation(s) each, {seconds:.1f} s; columns: "
        f"{', '.join(shown)}",
        highlight=False,
    )
    console.print(f"written  {path}", highlight=False, soft_wrap=True)
    return path
