"""Pictures as data URIs, small enough for a page that holds them all."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageSequence, UnidentifiedImageError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.gif')
MAX_WIDTH = 1800
# Base64 makes four bytes of three; the page stays below 10 MB.
MAX_BYTES = 6_500_000
_ANIMATION = dict(widths=(960, 800, 640, 480, 320), frames=40)


class Picture(NamedTuple):
    """An embedded picture."""

    title: str
    alt: str
    src: str
    still: str | None  # of an animation: its first frame
    width: int
    height: int


def find_pictures(folder: Path) -> list[Path]:
    """Returns the pictures of a folder and of the folders in it, sorted.

    Those that a visualizer of mmengine keeps beside its logs are not among
    them.
    """
    return sorted(
        path
        for pattern in ('*', '*/*')
        for path in folder.glob(pattern)
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith('.')
        and 'vis_data' not in path.parts
    )


def embed_all(
    paths: list[Path], budget: int = MAX_BYTES
) -> Iterator[tuple[Path, Picture | str]]:
    """Yields each picture, or a sentence that says why it is left out.

    All together have at most ``budget`` bytes.
    """
    for path in paths:
        try:
            picture, size = embed(path, min(budget, MAX_BYTES // 2))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            yield path, f'{path.name} is left out: {error}'
            continue
        if size > budget:
            yield path, f'{path.name} is left out: the page would be too big.'
            continue
        budget -= size
        yield path, picture


def embed(path: Path, budget: int) -> tuple[Picture, int]:
    """Returns a picture scaled down, and its bytes.

    Args:
        path: PNG, JPEG or GIF. Its text ``Description`` (PNG) or comment
            (GIF) becomes the alternative text.
        budget: Bytes that an animation is scaled down to, if it can be.

    Raises:
        OSError: If it cannot be read.
    """
    with Image.open(path) as image:
        alt = _description(image) or f'Picture {path.name}'
        still = None
        if getattr(image, 'n_frames', 1) > 1:
            data, size = _animation(image, path, budget)
            image.seek(0)
            first = _jpeg(image.convert('RGB').resize(size))
            still = _uri(first, 'jpeg')
            src, total = _uri(data, 'gif'), len(data) + len(first)
        else:
            size = _fit(image.size, MAX_WIDTH)
            data = _jpeg(_opaque(image).resize(size, Image.LANCZOS))
            src, total = _uri(data, 'jpeg'), len(data)
    picture = Picture(path.stem.replace('_', ' '), alt, src, still, *size)
    return picture, total


def _description(image: Image.Image) -> str:
    text = image.info.get('Description') or image.info.get('comment') or ''
    if isinstance(text, bytes):
        text = text.decode('utf-8', 'replace')
    return ' '.join(str(text).split())[:500]


def _fit(size: tuple[int, int], width: int) -> tuple[int, int]:
    scale = min(1.0, width / size[0])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _opaque(image: Image.Image) -> Image.Image:
    """On white: a JPEG has no transparency."""
    image = image.convert('RGBA')
    ground = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(ground, image).convert('RGB')


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, 'JPEG', quality=84, optimize=True)
    return stream.getvalue()


def _animation(
    image: Image.Image, path: Path, budget: int
) -> tuple[bytes, tuple[int, int]]:
    """The file itself if it fits, else fewer frames of smaller size."""
    data = path.read_bytes()
    if len(data) <= budget:
        return data, image.size
    every = -(-image.n_frames // _ANIMATION['frames'])
    for width in _ANIMATION['widths']:
        size = _fit(image.size, width)
        frames = [
            frame.convert('RGB').resize(size, Image.LANCZOS)
            for number, frame in enumerate(ImageSequence.Iterator(image))
            if number % every == 0
        ]
        stream = io.BytesIO()
        frames[0].save(
            stream,
            'GIF',
            save_all=True,
            append_images=frames[1:],
            duration=every * (image.info.get('duration') or 200),
            loop=0,
        )
        data = stream.getvalue()
        if len(data) <= budget:
            break
    return data, size


def _uri(data: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
