"""Pictures in a row become a GIF, an MP4 or a folder of PNGs."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from projects.VAD.drawing.layers import PREDICTION_COLOUR, TRUTH_COLOUR

# A GIF above this is drawn smaller, step by step.
GIF_BYTES = 8_000_000
GIF_WIDTHS = (1280, 1024, 800, 640, 480)
# Browsers play VP9; OpenCV's own encoder, MPEG-4, is there as well.
CODECS = ('vp09', 'mp4v')
# Thin lines keep their colour, however rare it is: red, green, blue.
_KEPT_COLOURS = [
    tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    for colour in (
        TRUTH_COLOUR,
        PREDICTION_COLOUR,
        *('#d6006e', '#20242c', '#1769c9', '#8a3fc2', '#c8261c'),
        *('#ffffff', '#000000', '#848b94'),
    )
]
_PALETTE_SIZE = 256


def sequence_kind(path: str | Path) -> str:
    """Returns ``gif``, ``mp4``, ``png`` (one picture) or ``folder``.

    Raises:
        ValueError: If the suffix is another, or the path is of another kind.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in ('.gif', '.mp4', '.png') and not path.is_dir():
        return suffix[1:]
    if suffix == '' and not path.is_file():
        return 'folder'
    raise ValueError(
        '--out must name a PNG file, a GIF, an MP4 or a folder for PNGs, '
        f'found {path}.'
    )


def write_sequence(
    frames: Iterable[np.ndarray],
    path: str | Path,
    fps: float,
    description: str = '',
) -> None:
    """Writes pictures in their order.

    A file is written beside its place and renamed, so that no reader meets
    half of it. PNGs go to ``frame_0000.png`` and so on; older ones that the
    folder has beyond the new ones are removed.

    Args:
        frames: ``[H, W, 3]`` uint8 RGB, all of one size; taken one at a time.
        path: ``*.gif``, ``*.mp4``, or a folder.
        fps: Pictures per second.
        description: Becomes the comment of a GIF.

    Raises:
        ValueError: If there is no picture, or no codec for an MP4.
    """
    path, kind = Path(path), sequence_kind(path)
    if kind == 'folder':
        _write_folder(frames, path)
        return
    with _replaced(path) as partial:
        if kind == 'mp4':
            _write_mp4(frames, partial, fps)
        else:
            _write_gif(frames, partial, fps, description)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Yields a place beside the path, which becomes the path on success."""
    partial = path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_folder(frames: Iterable[np.ndarray], folder: Path) -> None:
    number = -1
    for number, frame in enumerate(frames):
        folder.mkdir(parents=True, exist_ok=True)
        with _replaced(folder / f'frame_{number:04d}.png') as partial:
            Image.fromarray(frame).save(partial)
    if number < 0:
        raise ValueError(f'there is no picture to write to {folder}.')
    for old in folder.glob('frame_*.png'):
        with suppress(ValueError):
            if int(old.stem.removeprefix('frame_')) > number:
                old.unlink()


def _write_mp4(frames: Iterable[np.ndarray], path: Path, fps: float) -> None:
    writer, count = None, 0
    try:
        for frame in frames:
            # Codecs halve the colour planes: both sides must be even.
            height, width = (side // 2 * 2 for side in frame.shape[:2])
            if writer is None:
                writer = _open_writer(path, fps, (width, height))
            writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
            count += 1
    finally:
        if writer is not None:
            writer.release()
    found = _count_frames(path)
    if not count or found != count:
        raise ValueError(
            f'{count} pictures were given for {path.name} and {found} can be '
            'read from it; check the space on the disk or choose a GIF.'
        )


def _open_writer(
    path: Path, fps: float, size: tuple[int, int]
) -> cv2.VideoWriter:
    for codec in CODECS:
        code = cv2.VideoWriter_fourcc(*codec)
        writer = cv2.VideoWriter(str(path), code, fps, size)
        if writer.isOpened():
            return writer
    raise ValueError(
        f'this OpenCV {cv2.__version__} has none of the codecs '
        f'{", ".join(CODECS)}; choose a GIF or a folder.'
    )


def _count_frames(path: Path) -> int:
    reader = cv2.VideoCapture(str(path))
    count = 0
    while reader.isOpened() and reader.grab():
        count += 1
    reader.release()
    return count


def _write_gif(
    frames: Iterable[np.ndarray], path: Path, fps: float, description: str
) -> None:
    largest = GIF_WIDTHS[0]
    pictures = [_scaled(Image.fromarray(frame), largest) for frame in frames]
    if not pictures:
        raise ValueError(f'there is no picture to write to {path.name}.')
    for width in GIF_WIDTHS:
        data = _encode_gif(
            [_scaled(picture, width) for picture in pictures],
            fps,
            description,
        )
        if len(data) <= GIF_BYTES:
            break
    path.write_bytes(data)


def _scaled(picture: Image.Image, width: int) -> Image.Image:
    if picture.width <= width:
        return picture
    height = max(1, round(picture.height * width / picture.width))
    return picture.resize((width, height), Image.LANCZOS)


def _encode_gif(
    pictures: Sequence[Image.Image], fps: float, description: str
) -> bytes:
    """One palette for all; no dithering, which would double the size."""
    palette = _shared_palette(pictures)
    indexed = [
        picture.quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in pictures
    ]
    stream = io.BytesIO()
    indexed[0].save(
        stream,
        'GIF',
        save_all=True,
        append_images=indexed[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
        comment=description.encode()[:255],
    )
    return stream.getvalue()


def _shared_palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """An image with the palette: kept colours and those of the pictures."""
    few = pictures[:: max(1, len(pictures) // 6)]
    tiles = [np.asarray(picture.resize((320, 200))) for picture in few]
    mosaic = Image.fromarray(np.concatenate(tiles))
    count = _PALETTE_SIZE - len(_KEPT_COLOURS)
    found = mosaic.quantize(count, method=Image.Quantize.MEDIANCUT)
    colours = np.array(found.getpalette()).reshape(-1, 3)[:count]
    palette = Image.new('P', (1, 1))
    palette.putpalette([*np.ravel(_KEPT_COLOURS), *colours.ravel()])
    return palette
