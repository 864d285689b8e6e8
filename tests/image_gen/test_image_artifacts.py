"""Our own format, the Hub, and the command that converts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import image_gen
from drift_policy.errors import CheckpointError
from image_gen import load_generator, load_mae
from image_gen.artifacts import load_model
from image_gen.artifacts.convert import main
from image_gen.models import dit
from tests.helpers.image_models import GOLDEN, small_generator, small_mae

huggingface_hub = pytest.importorskip("huggingface_hub")
RELEASED = GOLDEN / "generator/latent_tiny"


def test_generators_come_back(tmp_path: Path) -> None:
    generator = small_generator()
    generator.train()
    loaded = load_generator(generator.save_pretrained(tmp_path / "g", {"step": 3}))
    assert loaded.config == generator.config
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), generator.state_dict(), rtol=0, atol=0)
    assert load_model(tmp_path / "g", "generator")[1] == {"step": 3}
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"config.json", "model.safetensors"}


def test_reading_a_description_computes_no_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_generator().save_pretrained(tmp_path)
    monkeypatch.setattr(dit, "sincos_positions", None)  # calling it fails
    assert load_generator(folder).config.hidden_size == 32


def test_masked_autoencoders_come_back(tmp_path: Path) -> None:
    mae = small_mae(dropout_prob=0.1)
    loaded = load_mae(mae.save_pretrained(tmp_path))
    assert loaded.config == mae.config
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(loaded.features(x), mae.features(x))
    with pytest.raises(CheckpointError, match="use load_mae"):
        load_generator(tmp_path)


def test_the_package_offers_the_loaders() -> None:
    assert image_gen.load_generator is load_generator
    with pytest.raises(AttributeError, match="load_policy"):
        _ = image_gen.load_policy


def damage_tensor(name: str, tensor: torch.Tensor | None) -> Any:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
        save_file(tensors, folder / "model.safetensors")

    return change


def damage_config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_tensor("pos_embed", None), "lacks pos_embed"),
        (damage_tensor("more", torch.ones(1)), "has the unknown array more"),
        (damage_tensor("pos_embed", torch.ones(3)), r"pos_embed has shape \[3\]"),
        (damage_tensor("pos_embed", torch.ones(1, 16, 32).long()), "has type torch.int64"),
        (damage_tensor("pos_embed", torch.full((1, 16, 32), torch.inf)), "holds NaN or infinity"),
        (damage_config(format_version=2), "format version 2"),
        (damage_config(kind="policy"), "neither a generator nor an MAE"),
        (damage_config(model={"depth": 1}), "lacks the setting"),
        (damage_config(model=[]), "neither a generator nor an MAE"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12"), "is damaged"),
        (lambda folder: (folder / "metadata.json").write_text("{}"), "two checkpoints"),
        (lambda folder: (folder / "config.json").unlink(), "holds neither config.json nor metadata.json"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    folder = small_generator().save_pretrained(tmp_path / "g")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_generator(folder)


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent does not exist.*hf://"):
        load_generator(tmp_path / "absent")


def test_a_file_is_not_called_absent(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file, no folder\. Give the folder of a run"):
        load_generator(path)


@pytest.mark.parametrize(
    ("load", "name", "repository", "folder"),
    [
        (load_generator, "latent_L_sota", "Goodeat/drifting", "models/gen/jax/latent_L_sota"),
        (load_mae, "mae_latent_640", "Goodeat/drifting", "models/mae/jax/mae_latent_640"),
        (load_generator, "lab/images", "lab/images", ""),
        (load_mae, "lab/images/encoders/a", "lab/images", "encoders/a"),
    ],
)
def test_hub_names(
    load: Any, name: str, repository: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_generator() if load is load_generator else small_mae()
    model.save_pretrained(tmp_path / folder)
    requests: list[Any] = []

    def download(repository: str, *, allow_patterns: list[str], revision: str | None) -> str:
        requests.append((repository, allow_patterns, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load(f"hf://{name}").config == load(f"hf://{name}@v2").config == model.config
    files = [
        f"{folder}/{file}".lstrip("/")
        for file in ("config.json", "model.safetensors", "metadata.json", "ema_params.msgpack")
    ]
    assert requests == [(repository, files, None), (repository, files, "v2")]


def test_absent_hub_models_and_bad_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path))
    with pytest.raises(CheckpointError, match="Goodeat/drifting has no generator in its folder models/gen/jax/none"):
        load_generator("hf://none")
    for name in ("a/../b", "", "a//b"):
        with pytest.raises(CheckpointError, match="is not a name"):
            load_generator(f"hf://{name}")


def test_a_failed_download_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    response: Any = SimpleNamespace(headers={}, request=None, status_code=404)

    def download(name: str, **_: Any) -> str:
        raise HfHubHTTPError("404 Not Found", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"hf://lab/none could not be read.*404"):
        load_generator("hf://lab/none")


def test_convert_goes_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(RELEASED), str(tmp_path / "ours")])
    assert "generator with" in capsys.readouterr().out
    generator, metadata = load_model(tmp_path / "ours", "generator")
    assert metadata == {"step": 7, "ema_decay": 0.999, "backend": "jax", "source": str(RELEASED)}
    torch.testing.assert_close(generator.state_dict(), load_generator(RELEASED).state_dict(), rtol=0, atol=0)
    main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "released"])
    again = (tmp_path / "theirs/ema_params.msgpack").read_bytes()
    assert again == (RELEASED / "ema_params.msgpack").read_bytes()


def test_convert_recognises_encoders(tmp_path: Path) -> None:
    small_mae().save_pretrained(tmp_path / "mae")
    main([str(tmp_path / "mae"), str(tmp_path / "released"), "--to", "released"])
    assert load_mae(tmp_path / "released").config == small_mae().config


def test_convert_spares_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(SystemExit) as exit_info:
        main([str(RELEASED), str(tmp_path)])
    assert exit_info.value.code == 2
    assert "is not empty" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
