"""Weights on disk: our safetensors and the authors' released artifacts. Nothing that is loaded is ever executed."""

from image_gen.artifacts.pretrained import load_generator, load_mae, load_model, save_model

__all__ = ["load_generator", "load_mae", "load_model", "save_model"]
