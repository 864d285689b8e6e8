"""Frames of LeRobot's mp4 files, decoded in order: frame k of an episode is step k of its rows.

LeRobot writes one frame a step at a constant rate, so counting frames is exact, where seeking by time is not. Files are
decoded by the ffmpeg that imageio-ffmpeg brings along (H.264, HEVC, AV1, VP9, ...), one frame in memory at a time.
"""

from collections.abc import Callable, Generator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drift_policy.data.readers.lerobot_columns import check_image_size, resized
from drift_policy.data.readers.lerobot_folder import GET_AGAIN, Clip, Feature, LerobotFolder, damage_reported
from drift_policy.errors import ConfigurationError, DataError

# The container is named and other protocols are shut: a file that is a playlist in disguise could open other files.
_INPUT = ["-protocol_whitelist", "file", "-f", "mp4", "-noautorotate"]
_OUTPUT = ["-fps_mode", "passthrough"]  # every frame once, instead of repeating and dropping some to keep time
_FPS_TOLERANCE = 0.01  # containers store frame rates as fractions


def read_video(
    folder: LerobotFolder,
    name: str,
    feature: Feature,
    clips: list[Clip],
    size: tuple[int, int] | None,
    target: NDArray[Any],
    advance: Callable[[], None],
) -> None:
    """Fill `target` [N, H, W, 3] with the frames of a camera.

    Args:
        folder: the data set.
        name: the camera, of dtype "video".
        feature: what info.json says about it.
        clips: where the frames of each episode are, in the order of the episodes.
        size: height and width to scale to, None for none.
        target: uint8.
        advance: called after every frame.

    Raises:
        ConfigurationError: imageio-ffmpeg is not installed.
        DataError: a video is missing, damaged, of another size or frame rate, or has not the frames of its episodes.
    """
    first = 0
    for file, group in groupby(clips, key=lambda clip: clip.file):
        of_file = list(group)
        position = 0  # in the video
        frames = _frames(file, name, feature, folder.fps)
        try:
            for clip in of_file:
                if clip.start < position:
                    raise DataError(f"{file}: the episodes of '{name}' overlap at frame {clip.start}. {GET_AGAIN}")
                for _ in range(clip.start - position):
                    _next(frames, file, name)
                for _ in range(clip.length):
                    target[first] = resized(Image.fromarray(_next(frames, file, name)), size)
                    first += 1
                    advance()
                position = clip.start + clip.length
            if not folder.is_packed and next(frames, None) is not None:
                raise DataError(
                    f"{file} has more frames than its episode has steps ({of_file[0].length}): which of them belong "
                    "together is unknown. Record or convert this episode again."
                )
        finally:
            frames.close()


def check_videos_exist(clips: list[Clip], name: str) -> None:
    """Require the video files of a camera; DataError names the first that is missing."""
    for clip in clips:
        if not clip.file.is_file():
            raise DataError(
                f"{clip.file} is missing: '{name}' is stored as video. Download the folder videos/ too, or leave this "
                "camera out of the task's observations."
            )


def _next(frames: Generator[NDArray[np.uint8], None, None], file: Path, name: str) -> NDArray[np.uint8]:
    frame = next(frames, None)
    if frame is None:
        raise DataError(f"{file}: the video of '{name}' ends before its episodes do. {GET_AGAIN}")
    return frame


def _frames(file: Path, name: str, feature: Feature, fps: float) -> Generator[NDArray[np.uint8], None, None]:
    """Yield the frames of a file, [H, W, 3] each."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ConfigurationError(
            "Videos are decoded with the package imageio-ffmpeg, which is not installed: pip install "
            "'drift-policy[train]'."
        ) from error
    with damage_reported(file, "the video"):
        reader = imageio_ffmpeg.read_frames(
            str(file.resolve()), pix_fmt="rgb24", input_params=_INPUT, output_params=_OUTPUT
        )
        try:
            facts = next(reader)
            width, height = facts["size"]
            check_image_size((height, width), feature, file, name)
            if abs(facts["fps"] / fps - 1) > _FPS_TOLERANCE:
                raise DataError(
                    f"{file} has {facts['fps']:g} frames a second, but meta/info.json says {fps:g}: frames and steps "
                    "do not belong together."
                )
            for content in reader:
                yield np.frombuffer(content, dtype=np.uint8).reshape(height, width, 3)
        finally:
            reader.close()
