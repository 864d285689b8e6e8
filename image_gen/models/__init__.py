"""Networks: the DiT generator and the masked autoencoder whose features the drifting loss compares."""

from image_gen.models.dit import GENERATOR_SIZES, DiT, DiTConfig, build_generator
from image_gen.models.mae import MAE, MAE_SIZES, MaeConfig, build_mae

__all__ = ["GENERATOR_SIZES", "MAE", "MAE_SIZES", "DiT", "DiTConfig", "MaeConfig", "build_generator", "build_mae"]
