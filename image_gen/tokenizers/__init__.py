"""Autoencoders between images and the latents that a generator draws, and the identity for pixels."""

from __future__ import annotations

from image_gen.tokenizers.base import Tokenizer
from image_gen.tokenizers.build import TOKENIZERS, build_tokenizer

__all__ = ["TOKENIZERS", "Tokenizer", "build_tokenizer"]
