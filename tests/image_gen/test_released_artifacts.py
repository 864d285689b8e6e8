"""The authors' format: read without JAX, written back, and refused where anything is wrong with it."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from drift_policy.errors import CheckpointError
from image_gen import load_generator, load_mae
from image_gen.artifacts import flax_tree
from image_gen.artifacts.flax_tree import read_tree, write_tree
from image_gen.artifacts.released import write_released
from tests.helpers.image_models import GOLDEN, small_generator, small_mae

RELEASED = GOLDEN / "generator/latent_tiny"
PARAMETERS, METADATA = "ema_params.msgpack", "metadata.json"
Tree = dict[str, Any]


def array(value: np.ndarray[Any, Any]) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))


def unpacked() -> Tree:
    tree: Tree = msgpack.unpackb((RELEASED / PARAMETERS).read_bytes())
    return tree


def artifact(folder: Path, change: Callable[[Tree], Any] = lambda tree: None) -> Path:
    """Copy the recorded artifact and change its tree."""
    shutil.copytree(RELEASED, folder)
    tree = unpacked()
    change(tree)
    (folder / PARAMETERS).write_bytes(msgpack.packb(tree))
    return folder


def with_metadata(folder: Path, change: Callable[[Tree], Any]) -> Path:
    shutil.copytree(RELEASED, folder)
    content = json.loads((folder / METADATA).read_text())
    change(content)
    (folder / METADATA).write_text(json.dumps(content))
    return folder


def test_parameters_are_those_of_the_file() -> None:
    generator = load_generator(RELEASED)
    tree = unpacked()["LightningDiT_0"]["blocks_1"]["Attention_0"]["TorchLinear_0"]["Dense_0"]
    shape, _, data = msgpack.unpackb(tree["kernel"].data)
    kernel = np.frombuffer(data, np.float32).reshape(shape)
    np.testing.assert_array_equal(generator.get_parameter("blocks.1.attn.qkv.weight").detach().numpy(), kernel.T)
    assert all(parameter.requires_grad for parameter in generator.parameters())
    assert not generator.training


def test_run_folders_are_read(tmp_path: Path) -> None:
    shutil.copytree(RELEASED, tmp_path / "run/params_ema")
    assert load_generator(tmp_path / "run").config.num_classes == 11


@pytest.mark.parametrize("plain", [False, True])
def test_a_written_generator_has_the_recorded_names_and_comes_back(tmp_path: Path, plain: bool) -> None:
    source = GOLDEN / "generator" / ("plain_dit_tiny" if plain else "latent_tiny")
    generator = load_generator(source)
    write_released(generator, tmp_path / "out", {"step": 7, "ema_decay": 0.999})
    assert read_tree(tmp_path / "out" / PARAMETERS).keys() == read_tree(source / PARAMETERS).keys()
    assert (tmp_path / "out" / PARAMETERS).read_bytes() == (source / PARAMETERS).read_bytes()
    written, recorded = (json.loads((folder / METADATA).read_text()) for folder in (tmp_path / "out", source))
    assert written["model_config"] == recorded["model_config"]
    assert {key: written[key] for key in ("kind", "step", "ema_decay")} == {
        key: recorded[key] for key in ("kind", "step", "ema_decay")
    }
    torch.testing.assert_close(load_generator(tmp_path / "out").state_dict(), generator.state_dict())


def test_a_written_mae_comes_back(tmp_path: Path) -> None:
    mae = small_mae(input_patch_size=2)
    write_released(mae, tmp_path, {})
    names = read_tree(tmp_path / PARAMETERS).keys()
    assert {"encoder/stages_1/layers_0/proj_gn/scale", "decoder/up43/concat_norm_fn/bias", "fc/kernel"} <= names
    assert {"encoder/layer1_norm/scale", "encoder/conv1/kernel", "decoder/bridge/conv/kernel"} <= names
    torch.testing.assert_close(load_mae(tmp_path).state_dict(), mae.state_dict())


def test_divided_arrays_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small_generator()
    monkeypatch.setattr(flax_tree, "MAX_CHUNK_BYTES", 1000)
    write_released(generator, tmp_path, {})
    assert b"__msgpack_chunked_array__" in (tmp_path / PARAMETERS).read_bytes()
    torch.testing.assert_close(load_generator(tmp_path).state_dict(), generator.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = torch.randn(11, 64).to(dtype)
    payload = (weights.shape, str(dtype).removeprefix("torch."), weights.view(torch.uint16).numpy().tobytes())
    folder = artifact(
        tmp_path / "a",
        lambda tree: tree["Embed_0"].update(embedding=msgpack.ExtType(1, msgpack.packb(payload))),
    )
    torch.testing.assert_close(load_generator(folder).class_embed.weight.detach(), weights.float())


def set_embedding(value: Any) -> Callable[[Tree], Any]:
    return lambda tree: tree["Embed_0"].update(embedding=value)


EMBEDDING = np.ones((11, 64), np.float32)
DIVIDED = {"__msgpack_chunked_array__": True, "shape": {"0": 11, "1": 64}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("Embed_0"), "lacks Embed_0/embedding"),
        (lambda tree: tree["Embed_0"].pop("embedding"), "lacks Embed_0/embedding"),
        (lambda tree: tree.update(extra=array(EMBEDDING)), "has the unknown array extra"),
        (lambda tree: tree["Embed_0"].update(more=array(EMBEDDING)), "has the unknown array Embed_0/more"),
        (set_embedding(array(EMBEDDING[:5])), r"Embed_0/embedding has shape \[5, 64\]"),
        (set_embedding(array(EMBEDDING.reshape(-1))), r"Embed_0/embedding has shape \[704\]"),
        (set_embedding(array(np.full_like(EMBEDDING, np.nan))), "Embed_0/embedding holds NaN or infinity"),
        (set_embedding(array(np.full_like(EMBEDDING, -np.inf))), "Embed_0/embedding holds NaN or infinity"),
        (set_embedding(array(EMBEDDING.astype(np.int32))), "of type 'int32'"),
        (set_embedding(array(EMBEDDING.astype(np.float64))), "of type 'float64'"),
        (set_embedding(msgpack.ExtType(1, msgpack.packb(([11, 64], "object", b"x")))), "of type 'object'"),
        (set_embedding(msgpack.ExtType(1, msgpack.packb(([11, 64], "float32", b"1234")))), "with 4 bytes"),
        (set_embedding(msgpack.ExtType(1, msgpack.packb(([2**40, 2**40], "float32", b"")))), "with 0 bytes"),
        (set_embedding(msgpack.ExtType(1, msgpack.packb(([-1, 64], "float32", b"")))), r"of shape \[-1, 64\]"),
        (set_embedding(msgpack.ExtType(1, msgpack.packb([1] * 9))), "truncated, damaged"),
        (set_embedding(msgpack.ExtType(1, b"\xc1")), "truncated, damaged"),
        (set_embedding(msgpack.ExtType(3, b"")), "extension type 3"),
        (set_embedding(7.5), "'Embed_0/embedding' is a float"),
        (set_embedding("text"), "'Embed_0/embedding' is a str"),
        (set_embedding(b"bytes"), "truncated, damaged"),
        (set_embedding([1.0, 2.0]), "truncated, damaged"),
        (set_embedding(None), "'Embed_0/embedding' is a NoneType"),
        (lambda tree: tree.update({"a/b": array(EMBEDDING)}), "entry named 'a/b'"),
        (lambda tree: tree.update({"x" * 300: array(EMBEDDING)}), "truncated, damaged"),
        (set_embedding(DIVIDED | {"chunks": {"0": array(np.ones(700, np.float32))}}), "with 700 numbers"),
        (set_embedding(DIVIDED | {"chunks": {"1": array(np.ones(704, np.float32))}}), "not numbered from 0"),
        (set_embedding(DIVIDED | {"chunks": {"0": array(EMBEDDING)}}), "parts that are no arrays"),
        (set_embedding(DIVIDED), "without shape or parts"),
    ],
)
def test_wrong_trees_are_refused(tmp_path: Path, change: Callable[[Tree], Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_generator(artifact(tmp_path / "a", change))


def test_deep_trees_are_refused(tmp_path: Path) -> None:
    tree: Tree = {"leaf": array(EMBEDDING)}
    for _ in range(40):
        tree = {"down": tree}
    with pytest.raises(CheckpointError, match="deeper than 16 levels"):
        load_generator(artifact(tmp_path / "a", lambda top: top.update(tree)))
    deep = b"\x81\xa1a" * 100_000 + b"\xc0"
    (tmp_path / "deep.msgpack").write_bytes(deep)
    with pytest.raises(CheckpointError, match="truncated, damaged"):
        read_tree(tmp_path / "deep.msgpack")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9999])
def test_truncated_files_are_refused(tmp_path: Path, kept: float) -> None:
    folder = artifact(tmp_path / "a")
    content = (folder / PARAMETERS).read_bytes()
    (folder / PARAMETERS).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match="truncated|empty"):
        load_generator(folder)


def test_bytes_after_the_tree_and_other_formats_are_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a")
    with (folder / PARAMETERS).open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(CheckpointError, match="truncated, damaged"):
        load_generator(folder)
    for content in (b"\x80\x04\x95", b"PK\x03\x04", b"\xc3", b"\x80"):
        (folder / PARAMETERS).write_bytes(content)
        with pytest.raises(CheckpointError, match=PARAMETERS):
            load_generator(folder)


def test_claimed_sizes_cost_nothing(tmp_path: Path) -> None:
    huge_map = b"\xdf\xff\xff\xff\xff"
    huge_extension = b"\x81\xa1a\xc9\xff\xff\xff\xff\x01"
    for content in (huge_map, huge_extension):
        (tmp_path / "huge.msgpack").write_bytes(content)
        begin = time.perf_counter()
        with pytest.raises(CheckpointError, match="truncated, damaged"):
            read_tree(tmp_path / "huge.msgpack")
        assert time.perf_counter() - begin < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(kind="policy"), "the kind 'policy'; expected 'gen' or 'mae'"),
        (lambda content: content.update(kind=["gen"]), "the kind"),
        (lambda content: content.pop("model_config"), "entry 'model_config'"),
        (lambda content: content["model_config"].pop("depth"), "lacks the setting 'depth'"),
        (lambda content: content["model_config"].update(colour=1), "unknown setting 'colour'"),
        (lambda content: content["model_config"].update(depth="2"), "depth is '2'"),
        (lambda content: content["model_config"].update(depth=True), "depth is True"),
        (lambda content: content["model_config"].update(depth=10**12), "depth must be between"),
        (lambda content: content["model_config"].update(depth=3), "lacks LightningDiT_0/blocks_2"),
        (lambda content: content["model_config"].update(num_classes=12), r"asks for \[12, 64\]"),
        (lambda content: content["model_config"].update(use_swiglu=False), "unknown array .*SwiGLUFFN_0"),
        (lambda content: content["model_config"].update(mlp_ratio=float("nan")), "mlp_ratio must be"),
    ],
)
def test_wrong_metadata_are_refused(tmp_path: Path, change: Callable[[Tree], Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_generator(with_metadata(tmp_path / "a", change))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_metadata_are_refused(tmp_path: Path, content: bytes) -> None:
    folder = artifact(tmp_path / "a")
    (folder / METADATA).write_bytes(content)
    with pytest.raises(CheckpointError, match=METADATA):
        load_generator(folder)


@pytest.mark.parametrize("missing", [PARAMETERS, METADATA])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    folder = artifact(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"{missing} is missing"):
        load_generator(folder)


def test_a_generator_is_no_mae() -> None:
    with pytest.raises(CheckpointError, match="holds a generator, but a mae was asked for: use load_generator"):
        load_mae(RELEASED)


def test_trees_round_trip(tmp_path: Path) -> None:
    tensors = {"a/b": torch.randn(3, 4), "a/c/d": torch.randn(()), "e": torch.zeros(0, 2)}
    write_tree(tmp_path / "tree.msgpack", tensors)
    torch.testing.assert_close(read_tree(tmp_path / "tree.msgpack"), tensors)
