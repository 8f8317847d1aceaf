"""Finds pictures that cannot be used, and names them."""

import os
from pathlib import Path

import mmcv

# The end of a JPEG file, and how far from the end of the file it may be.
JPEG_START, JPEG_END, JPEG_TAIL = b'\xff\xd8', b'\xff\xd9', 4096


class PictureError(ValueError):
    """A picture is missing, cut short or cannot be decoded."""


def check_picture(path: str) -> None:
    """Refuses a picture that is missing, empty or cut short.

    The decoder fills what is missing of a JPEG with grey, without an error.

    Raises:
        PictureError: With the path and what is wrong.
    """
    try:
        with open(path, 'rb') as file:
            start = file.read(2)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - JPEG_TAIL))
            end = file.read()
    except OSError as error:
        raise PictureError(
            f'picture {path} cannot be read ({error.strerror})'
        ) from error
    if not start or (start == JPEG_START and JPEG_END not in end):
        raise PictureError(
            f'picture {path} is cut short ({size} bytes); copy it again'
        )


def decode_picture(path: str) -> None:
    """Raises :class:`PictureError` if a picture cannot be decoded."""
    picture = mmcv.imfrombytes(Path(path).read_bytes(), flag='unchanged')
    if picture is None:
        raise PictureError(f'picture {path} cannot be decoded; copy it again')
