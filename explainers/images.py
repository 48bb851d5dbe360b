"""Image files into RGB pictures, without trust: formats by name, limits before decoding, a clear reason to refuse.

Format plugins of Pillow are called directly: its own `open` would try every format it knows, and its limits and
warnings are settings of the whole process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

from PIL.BmpImagePlugin import BmpImageFile
from PIL.Image import Image, Transpose, alpha_composite, new
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from explainers.errors import InvalidRequest

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 40_000_000
MAX_PROMPT_PIXELS = 100_000_000
"""Of all images of a prompt together: a few kilobytes can become millions of pixels, which take seconds to decode."""

MAX_SCANS = 32
"""How often a JPEG may go over its picture. Encoders do so a dozen times; a scan of 66 bytes can take 50 ms."""


class QuickJpeg(JpegImageFile):
    """A JPEG file whose EXIF data is left alone: the library decodes as much of it as a file wants."""

    def _read_dpi_from_exif(self) -> None:
        return


FORMATS: Mapping[str, Callable[[BytesIO], Any]] = {
    "image/png": PngImageFile,
    "image/jpeg": QuickJpeg,
    "image/webp": WebPImageFile,
    "image/bmp": BmpImageFile,
}
"""Media type -> what reads such a file."""

ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""

UPRIGHT: Mapping[int, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What sets a picture upright, by its orientation."""

EXIF = b"Exif\0\0"
RUN_LENGTHS = (BmpImageFile.COMPRESSIONS["RLE8"], BmpImageFile.COMPRESSIONS["RLE4"])
"""What the library decodes pixel by pixel in Python: a kilobyte can take half a minute."""

JPEG_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
START_OF_SCAN, END_OF_JPEG = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright RGB picture, and what had to be done to make it one."""

    picture: Image
    notes: tuple[str, ...]


def media_type(data: bytes) -> str | None:
    """The format that a file's first bytes announce; None when it is none of `FORMATS`."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/bmp" if data.startswith(b"BM") else None


def decode(data: bytes, pointer: str | None = None) -> Decoded:
    """The picture in a file; raises InvalidRequest for all that is not a single picture of moderate size."""
    opened = _opened(data, pointer)
    turn = UPRIGHT.get(_orientation(opened))
    try:
        opened.load()
        upright: Image = opened if turn is None else opened.transpose(turn)
        picture, notes = _rgb(upright)
    except Exception as error:  # damaged files break the library in many ways, each with an error of its own
        raise InvalidRequest("the image is cut off or damaged", pointer) from error
    if turn is not None:
        notes = ("turned upright as its EXIF orientation says; rectangles are those of the upright image", *notes)
    return Decoded(picture, notes)


def shown_size(data: bytes) -> tuple[int, int]:
    """Width and height as a viewer shows the picture, from the head of the file; raises InvalidRequest."""
    opened = _opened(data, None)
    lying = _orientation(opened) in (5, 6, 7, 8)
    return (opened.height, opened.width) if lying else (opened.width, opened.height)


def pixels(data: bytes, pointer: str | None = None) -> int:
    """How many pixels a file would become, from its head; raises InvalidRequest."""
    width, height = _opened(data, pointer).size
    return int(width * height)


def _opened(data: bytes, pointer: str | None) -> Any:
    """The file with its head read and its size checked, and nothing decoded yet."""
    if len(data) > MAX_BYTES:
        raise InvalidRequest(f"an image file can have {MAX_BYTES} bytes at most", pointer)
    kind = media_type(data)
    if kind is None:
        raise InvalidRequest("must be an image in PNG, JPEG, WebP or BMP", pointer)
    if kind == "image/webp":  # its reader makes room for all pixels at once
        _check_pixels(*_webp_size(data), pointer)
    try:
        opened = FORMATS[kind](BytesIO(data))
        width, height = opened.size
    except Exception as error:  # as above
        raise InvalidRequest("the image is cut off or damaged", pointer) from error
    _check_pixels(width, height, pointer)
    if getattr(opened, "is_animated", False):
        raise InvalidRequest("the image is animated: send the one frame that is meant", pointer)
    if kind == "image/jpeg" and _scans(data) > MAX_SCANS:
        raise InvalidRequest(f"a JPEG image can have {MAX_SCANS} scans at most", pointer)
    if kind == "image/bmp" and opened.info.get("compression") in RUN_LENGTHS:
        raise InvalidRequest("a BMP image must not be run-length encoded", pointer)
    return opened


def _check_pixels(width: int, height: int, pointer: str | None) -> None:
    if width * height > MAX_PIXELS:
        raise InvalidRequest(f"the image has {width} x {height} pixels; {MAX_PIXELS} in all are read at most", pointer)


def _scans(data: bytes) -> int:
    """How often a JPEG file goes over its picture before it ends (ITU-T T.81, B.1.1)."""
    scans, at = 0, 2
    while (found := JPEG_SEGMENT.search(data, at)) is not None and found[0] != END_OF_JPEG:
        scans += found[0] == START_OF_SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans


def _orientation(opened: Any) -> int:
    """The orientation in the first EXIF directory of the file's head; 1, which is upright, where there is none."""
    head = opened.info.get("exif", b"").removeprefix(EXIF).removeprefix(EXIF)  # some writers name it twice
    order: Literal["little", "big"] = "little" if head.startswith(b"II") else "big"
    first = 2 + int.from_bytes(head[4:8], order)
    entries = int.from_bytes(head[first - 2 : first], order)
    for at in range(first, min(first + 12 * entries, len(head) - 11), 12):
        if int.from_bytes(head[at : at + 2], order) == ORIENTATION:
            return int.from_bytes(head[at + 8 : at + 10], order)
    return 1


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height as the first chunk says them (RFC 9649); 0 where there is none: the reader will refuse it."""
    body = data[20:30]
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        case b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0


def _rgb(image: Image) -> tuple[Image, tuple[str, ...]]:
    """8 bits of red, green and blue; transparent parts over white."""
    if image.mode.startswith(("I", "F")):  # 16 bits of grey
        return image.convert("I").point(lambda level: level * (1 / 257)).convert("L").convert("RGB"), ()
    if not image.has_transparency_data:
        notes = ("converted from CMYK without a colour profile",) if image.mode == "CMYK" else ()
        return image.convert("RGB"), notes
    with_alpha = image.convert("RGBA")
    opaque = with_alpha.getchannel("A").getextrema()[0] == 255
    notes = () if opaque else ("shown on white where it is transparent",)
    return alpha_composite(new("RGBA", image.size, "white"), with_alpha).convert("RGB"), notes
