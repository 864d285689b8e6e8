"""What a bare GPU machine needs to train from cached latents: torch, numpy, einops and safetensors."""

import subprocess
import sys
from pathlib import Path

from tests.helpers.image_models import small_generator, small_mae

ROOT = Path(__file__).parents[2]
ABSENT = "omegaconf,PIL,msgpack,rich,diffusers,transformers,sklearn,huggingface_hub,platformdirs,hydra,scipy,requests"
PROGRAM = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
from image_gen import load_generator, load_mae
from image_gen.data.latents import CachedLatents
from image_gen.encoders.mae import MaeFeatures
from image_gen.feature_loss import feature_drift_loss, target_features

generator, encoder = load_generator(sys.argv[1] + "/generator"), MaeFeatures(load_mae(sys.argv[1] + "/mae"))
targets = target_features(encoder.features, torch.randn(2, 3, 3, 8, 8), torch.randn(2, 2, 3, 8, 8))
gen = generator(torch.randn(8, 3, 8, 8), torch.arange(2).repeat_interleave(4), 1.5).unflatten(0, (2, 4))
feature_drift_loss(encoder.features, gen, targets, torch.tensor([1.5, 1.5])).total.backward()
print(all(parameter.grad is not None for parameter in generator.parameters()))
"""


def test_an_update_needs_no_other_package(tmp_path: Path) -> None:
    small_generator().save_pretrained(tmp_path / "generator")
    small_mae().save_pretrained(tmp_path / "mae")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), ABSENT], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"
