"""Small LeRobot data sets in the layouts that lerobot writes: v2.1 and v3.0, with images and videos."""

import io
import json
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

FPS = 20
HEIGHT, WIDTH = 32, 48
LENGTHS = (5, 3, 4)
VIDEO_KEY, IMAGE_KEY = "observation.images.front", "observation.images.wrist"
Columns = dict[str, NDArray[Any]]


def demonstrations(lengths: tuple[int, ...] = LENGTHS) -> Columns:
    """Every column of the data set, one row a step; images as grey levels [N] that tell the steps apart."""
    rng = np.random.default_rng(0)
    n_steps = sum(lengths)
    frame = np.concatenate([np.arange(length) for length in lengths])
    return {
        "observation.state": rng.normal(size=(n_steps, 4)).astype(np.float32),
        "action": rng.normal(size=(n_steps, 2)).astype(np.float32),
        "observation.tactile": rng.integers(0, 9, (n_steps, 2, 3)),
        "next.done": frame == np.repeat(lengths, lengths) - 1,
        "timestamp": (frame / FPS).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(n_steps),
        "task_index": np.zeros(n_steps, dtype=np.int64),
    }


def levels(n_steps: int = sum(LENGTHS)) -> NDArray[np.uint8]:
    """The grey level of each step's image."""
    return (20 + 16 * np.arange(n_steps)).astype(np.uint8)


def features(video: bool, image: bool) -> dict[str, Any]:
    """The entry `features` of info.json."""
    axes = ["height", "width", "channels"]
    entries: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [4], "names": ["a", "b", "c", "d"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "observation.tactile": {"dtype": "int64", "shape": [2, 3], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
    }
    if video:
        facts = {"video.fps": FPS, "video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
        entries[VIDEO_KEY] = {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": axes, "info": facts}
    if image:
        entries[IMAGE_KEY] = {"dtype": "image", "shape": [3, HEIGHT, WIDTH], "names": ["channels", "height", "width"]}
    entries["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        entries[name] = {"dtype": "int64", "shape": [1], "names": None}
    return entries


def write_v21(root: Path, *, video: bool = False, image: bool = False, lengths: tuple[int, ...] = LENGTHS) -> Path:
    """Write a v2.1 data set: a parquet file and a video an episode."""
    columns, grey = demonstrations(lengths), levels(sum(lengths))
    info = {
        **_common_info("v2.1", lengths, features(video, image)),
        "total_videos": len(lengths) * video,
        "total_chunks": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    write_info(root, info)
    rows = [{"episode_index": i, "tasks": ["push"], "length": length} for i, length in enumerate(lengths)]
    _write_lines(root / "meta" / "episodes.jsonl", rows)
    _write_lines(root / "meta" / "tasks.jsonl", [{"task_index": 0, "task": "push"}])
    _write_lines(
        root / "meta" / "episodes_stats.jsonl", [{"episode_index": i, "stats": {}} for i in range(len(lengths))]
    )
    for index, end in enumerate(np.cumsum(lengths)):
        part = slice(end - lengths[index], end)
        write_rows(root / f"data/chunk-000/episode_{index:06d}.parquet", columns, grey if image else None, part)
        if video:
            write_video(root / f"videos/chunk-000/{VIDEO_KEY}/episode_{index:06d}.mp4", grey[part])
    return root


def write_v30(root: Path, *, video: bool = False, image: bool = False, lengths: tuple[int, ...] = LENGTHS) -> Path:
    """Write a v3.0 data set: the last episode in a file of its own, the others together in another."""
    columns, grey = demonstrations(lengths), levels(sum(lengths))
    info = {
        **_common_info("v3.0", lengths, features(video, image)),
        "fps": float(FPS),
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    write_info(root, info)
    (root / "meta" / "stats.json").write_text("{}")
    pq.write_table(pa.table({"task_index": [0], "__index_level_0__": ["push"]}), root / "meta" / "tasks.parquet")
    ends, n_first = np.cumsum(lengths), sum(lengths[:-1])
    episodes = []
    for index, (length, end) in enumerate(zip(lengths, ends.tolist(), strict=True)):
        number = int(index == len(lengths) - 1)
        start = 0 if number else end - length
        row = {"episode_index": index, "tasks": ["push"], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": number}
        row |= {"dataset_from_index": end - length, "dataset_to_index": end, "stats/action/mean": [0.0, 0.0]}
        if video:
            row |= {f"videos/{VIDEO_KEY}/chunk_index": 0, f"videos/{VIDEO_KEY}/file_index": number}
            row |= {
                f"videos/{VIDEO_KEY}/{name}_timestamp": at / FPS
                for name, at in (("from", start), ("to", start + length))
            }
        episodes.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    for number, part in enumerate((slice(0, n_first), slice(n_first, None))):
        write_rows(root / f"data/chunk-000/file-{number:03d}.parquet", columns, grey if image else None, part)
        if video:
            write_video(root / f"videos/{VIDEO_KEY}/chunk-000/file-{number:03d}.mp4", grey[part])
    return root


def write_info(root: Path, info: dict[str, Any]) -> None:
    """Write meta/info.json."""
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(info, indent=4))


def change_info(root: Path, **changes: Any) -> None:
    """Change entries of meta/info.json."""
    write_info(root, {**json.loads((root / "meta" / "info.json").read_text()), **changes})


def write_rows(file: Path, columns: Columns, grey: NDArray[np.uint8] | None, part: slice) -> None:
    """Write rows as the datasets library does: fixed-size lists of one axis, lists within lists of more."""
    arrays: dict[str, pa.Array] = {}
    for name, values in columns.items():
        rows = values[part]
        if rows.ndim == 2:
            flat = pa.array(rows.reshape(-1))
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
        else:
            arrays[name] = pa.array(rows.tolist() if rows.ndim > 2 else rows)
    if grey is not None:
        structs = [{"bytes": png(level), "path": f"frame-{i:06d}.png"} for i, level in enumerate(grey[part])]
        arrays[IMAGE_KEY] = pa.array(structs, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(arrays).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {}}})})
    pq.write_table(table, file)


def picture(level: int) -> NDArray[np.uint8]:
    """An image of one grey level, its left edge black, its right edge white."""
    image = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
    image[:, :8], image[:, -8:] = 0, 255
    return image


def png(level: int) -> bytes:
    """The same as PNG."""
    stream = io.BytesIO()
    Image.fromarray(picture(level)).save(stream, "PNG")
    return stream.getvalue()


def write_video(file: Path, grey: NDArray[np.uint8], fps: float = FPS) -> None:
    """Write a frame for each grey level."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(file), (WIDTH, HEIGHT), fps=fps, quality=9, macro_block_size=1)
    writer.send(None)
    for level in grey:
        writer.send(np.ascontiguousarray(picture(int(level))))
    writer.close()


def _common_info(version: str, lengths: tuple[int, ...], described: dict[str, Any]) -> dict[str, Any]:
    return {
        "codebase_version": version,
        "robot_type": "test",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "features": described,
    }


def _write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
