"""Image files of all kinds, sound and hostile: a picture, or one clear reason."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from io import BytesIO
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageFile, ImageOps

from explainers.errors import InvalidRequest
from explainers.images import MAX_BYTES, MAX_PIXELS, MAX_SCANS, decode, media_type, shown_size
from tests.explainers.plain_images import encoded, png

PICTURE = Pillow.open(BytesIO(png(20, 12, 3))).convert("RGB")


def colour_at(data: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    colour = decode(data).picture.getpixel((x, y))
    assert isinstance(colour, tuple)
    return colour


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_formats_and_modes(form: str, mode: str) -> None:
    source = PICTURE.convert(mode)
    if (form, mode) == ("JPEG", "P"):
        pytest.skip("there is no such file")
    data = encoded(source, form, **({"lossless": True} if form == "WEBP" else {}))
    found = decode(data)
    assert (found.picture.mode, found.picture.size, found.notes) == ("RGB", (20, 12), ())
    assert shown_size(data) == (20, 12)
    assert media_type(data) == f"image/{form.lower()}"
    difference = np.abs(np.asarray(found.picture).astype(int) - np.asarray(source.convert("RGB")).astype(int))
    assert difference.max() == 0 or form == "JPEG"


def test_sixteen_bits_of_grey_keep_their_levels() -> None:
    levels = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    data = encoded(Pillow.fromarray(levels))
    assert [colour_at(data, x)[0] for x in range(3)] == [0, 100, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_white(mode: str) -> None:
    clear = Pillow.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 255))
    data = encoded(clear.convert(mode))
    assert (colour_at(data), colour_at(data, 1)) == ((255, 255, 255), (0, 0, 0))
    assert decode(data).notes == ("shown on white where it is transparent",)
    assert decode(encoded(PICTURE.convert("RGBA"))).notes == (), "nothing of it is transparent"


def test_a_palette_may_have_a_transparent_colour() -> None:
    found = decode(encoded(Pillow.new("P", (4, 4), 0), transparency=0))
    assert found.picture.getpixel((0, 0)) == (255, 255, 255)
    assert found.notes


def test_cmyk_becomes_rgb_and_says_so() -> None:
    data = encoded(Pillow.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = colour_at(data)
    assert red > 200 and green < 50 and blue < 50
    assert "CMYK" in decode(data).notes[0]


def test_a_turned_picture_is_set_upright_and_says_so() -> None:
    source = Pillow.new("RGB", (20, 10), "white")
    source.paste("black", (0, 0, 4, 4))
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was held to the right: upright after a turn to the right
    data = encoded(source, "PNG", exif=exif)
    found = decode(data)
    assert found.picture.size == shown_size(data) == (10, 20)
    assert found.picture.getpixel((9, 0)) == (0, 0, 0)
    assert "upright" in found.notes[0]
    exif[0x0112] = 1
    assert decode(encoded(source, "PNG", exif=exif)).notes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_orientation_is_set_upright_as_the_library_does(form: str, orientation: int) -> None:
    source = Pillow.new("RGB", (32, 16), "white")
    source.paste("black", (0, 0, 8, 8))
    for order in ("<", ">"):
        exif = Pillow.Exif()
        exif.endian = order
        exif[0x010F], exif[0x0112] = "a maker", orientation
        data = encoded(source, form, exif=exif.tobytes(), quality=100)
        expected = ImageOps.exif_transpose(Pillow.open(BytesIO(data))).convert("RGB")
        found = decode(data).picture
        assert found.size == expected.size == shown_size(data)
        assert found.tobytes() == expected.tobytes()


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        decode(data, "/prompt/0/data")
    assert type(refused.value) is InvalidRequest
    assert refused.value.pointer == "/prompt/0/data"
    return str(refused.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"hello, I am no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"\x00" * 5000],
)
def test_what_is_no_image_is_said(data: bytes) -> None:
    assert refusal(data) == "must be an image in PNG, JPEG, WebP or BMP"


@pytest.mark.parametrize("form", ["GIF", "TIFF", "ICO", "PPM", "EPS"])
def test_other_formats_are_not_read(form: str) -> None:
    assert "PNG, JPEG, WebP or BMP" in refusal(encoded(PICTURE, form))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.03, 0.3, 0.6, 0.97])
def test_a_cut_off_file_is_said(form: str, part: float) -> None:
    data = encoded(PICTURE, form)
    assert "cut off or damaged" in refusal(data[: max(12, int(len(data) * part))])


@pytest.mark.parametrize("head", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\x00\x00\x00WEBPVP8 ", b"BM"])
def test_a_head_without_a_picture_is_said(head: bytes) -> None:
    for tail in (b"", b"\x00" * 100, b"\xff" * 100):
        assert "image" in refusal(head + tail)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused(form: str) -> None:
    data = encoded(PICTURE, form, save_all=True, append_images=[PICTURE.rotate(180)])
    assert "animated" in refusal(data)


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that would become `width` x `height` pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\x00" * 1000)) + chunk(b"IEND", b"")


def huge_webp(side: int) -> bytes:
    size = (side - 1).to_bytes(3, "little")
    return b"RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + size + size


def huge_bmp(width: int, height: int) -> bytes:
    data = bytearray(encoded(Pillow.new("RGB", (2, 2)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def huge_jpeg(side: int) -> bytes:
    data = bytearray(encoded(PICTURE, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        huge_png(100_000, 100_000),
        huge_png(2**31 - 1, 1),
        huge_webp(16_383),
        huge_bmp(60_000, 60_000),
        huge_jpeg(65_000),
    ],
    ids=["png", "one row", "webp", "bmp", "jpeg"],
)
def test_bombs_are_refused_before_they_are_decoded(data: bytes) -> None:
    tracemalloc.start()
    message = refusal(data)
    assert str(MAX_PIXELS) in message
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    with pytest.raises(InvalidRequest):
        shown_size(data)


def test_the_largest_picture_is_read_and_one_more_row_is_not() -> None:
    side = 4000
    assert decode(encoded(Pillow.new("1", (side, MAX_PIXELS // side)))).picture.size == (side, MAX_PIXELS // side)
    assert str(MAX_PIXELS) in refusal(encoded(Pillow.new("1", (side, MAX_PIXELS // side + 1))))


def test_large_files_are_refused_unread() -> None:
    assert str(MAX_BYTES) in refusal(png(4, 4, 0) + b"\x00" * MAX_BYTES)


def test_text_that_would_unpack_to_gigabytes_is_refused() -> None:
    bomb = zlib.compress(b"\x00" * 2**26, 9)
    body = b"Comment\x00\x00" + bomb
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = png(4, 4, 0)
    assert "damaged" in refusal(data[:33] + chunk + data[33:])


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of grey that is refined again and again; a scan takes 66 bytes and all of its blocks."""
    segments = [b"\xff\xd8", b"\xff\xdb" + struct.pack(">HB", 67, 0) + b"\x01" * 64]
    segments.append(b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\x01\x11\x00")
    segments.append(b"\xff\xc4" + struct.pack(">HB", 20, 0) + b"\x00\x01" + b"\x00" * 14 + b"\x00")
    segments.append(b"\xff\xc4" + struct.pack(">HB", 21, 16) + b"\x00\x02" + b"\x00" * 14 + b"\xe0\x00")
    runs = b"\x3f\xff\x00" * (1 + (side // 8) ** 2 // 32767)  # "all empty" for 32,767 blocks each
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0x10) + runs
    return b"".join(segments) + scan * scans + b"\xff\xd9"


def test_a_jpeg_may_not_go_over_its_picture_for_ever() -> None:
    assert decode(many_scans(64, MAX_SCANS)).picture.size == (64, 64)
    message = refusal(many_scans(64, MAX_SCANS + 1))
    assert message == f"a JPEG image can have {MAX_SCANS} scans at most"
    usual = encoded(PICTURE, "JPEG", progressive=True, quality=95)
    assert decode(usual + many_scans(64, 2 * MAX_SCANS)).picture.size == PICTURE.size  # behind its end is nothing


def test_scans_are_counted_where_broken_files_hide_them() -> None:
    data = many_scans(64, MAX_SCANS + 1)
    at = data.rindex(b"\xff\xda")
    for hiding in (b"\xff\x01\xff\x00", b"\xff\xd0\x70\x00", b"\xff\xff\xff", b"\xff\x02\x70\x00", b"\x00\xff\x00"):
        assert "scans" in refusal(data[:at] + hiding + data[at:])


def test_run_lengths_in_a_bmp_are_refused() -> None:
    data = bytearray(encoded(Pillow.new("P", (4, 4)), "BMP"))
    data[30] = 1
    assert refusal(bytes(data)) == "a BMP image must not be run-length encoded"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_of_exif_only_the_orientation_is_read(form: str) -> None:
    count = 7000  # fractions, which the library would make objects of
    entries = struct.pack("<HHHIIHHII", 2, 0x0112, 3, 1, 6, 0x011A, 5, count, 38)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries + b"\0" * 4 + struct.pack("<II", 3, 7) * count
    data = encoded(Pillow.new("RGB", (20, 10)), form, exif=exif)
    with mock.patch.object(Pillow.Exif, "load", side_effect=AssertionError):
        assert decode(data).picture.size == shown_size(data) == (10, 20)


def test_the_librarys_own_settings_stay_as_they_are() -> None:
    before = (Pillow.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    decode(png(4, 4, 0))
    refusal(huge_png(100_000, 100_000))
    after = (Pillow.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert after == before


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
)
@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_a_picture_or_a_reason(form: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(PICTURE, form))
    for at, value in damage:
        data[at % len(data)] = value
    try:
        assert decode(bytes(data)).picture.mode == "RGB"
    except InvalidRequest as error:
        assert "image" in str(error)
