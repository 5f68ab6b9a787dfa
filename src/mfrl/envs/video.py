"""Videos: as files, and in TensorBoard."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mfrl.errors import free_bytes
from mfrl.system.files import replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def write_video(frames: np.ndarray, path: str | Path, fps: float = 20.0) -> Path:
    """Write frames to a file, which appears complete or not at all.

    Args:
        frames: uint8 ``(frames, height, width, 3)``.
        path: ends in ``.mp4`` (H.264, plays in browsers) or ``.gif``.
        fps: frames per second; GIF players round to hundredths of a second a frame.

    Raises:
        ValueError: another ending, or frames of another type or shape.
        OSError: it could not be written.
    """
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"a video is .mp4 or .gif, not {path.name!r}")
    _check(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        if path.suffix == ".mp4":
            _write_mp4(frames, part, fps)
        else:
            part.write_bytes(gif_bytes(frames, fps))
    return path


def gif_bytes(frames: np.ndarray, fps: float = 20.0) -> bytes:
    """An endlessly repeating GIF of uint8 frames ``(frames, height, width, 3)``."""
    import imageio.v3 as iio

    _check(frames)
    return iio.imwrite("<bytes>", frames, extension=".gif", duration=1000.0 / fps, loop=0)


def tensorboard_gif(writer: SummaryWriter, tag: str, frames: np.ndarray, step: int, fps: float = 20) -> None:
    """Show uint8 frames ``(frames, height, width, 3)`` as a moving image in TensorBoard's image tab.

    ``SummaryWriter.add_video`` would need moviepy for nothing more than this encoding.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(
        height=frames.shape[1],
        width=frames.shape[2],
        colorspace=3,
        encoded_image_string=gif_bytes(frames, fps),
    )
    # The call that every add_* method of the writer ends in; there is no public one that takes encoded bytes.
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def _check(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"frames are uint8 (frames, height, width, 3), not {frames.dtype} {frames.shape}")


def _write_mp4(frames: np.ndarray, path: Path, fps: float) -> None:
    import imageio.v2 as imageio
    import imageio_ffmpeg

    # The pixel format that browsers play halves the colours' resolution, so sides must be even.
    video: Any
    with imageio.get_writer(path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2) as video:
        for frame in frames:
            video.append_data(frame)
    # ffmpeg ends in silence where it could not write all of it, and leaves a file that no player opens.
    with suppress(RuntimeError):
        if imageio_ffmpeg.count_frames_and_secs(str(path))[0] == len(frames):
            return
    full = free_bytes(path.parent) < frames.nbytes
    raise OSError(
        errno.ENOSPC if full else errno.EIO, os.strerror(errno.ENOSPC) if full else "ffmpeg failed", str(path)
    )
