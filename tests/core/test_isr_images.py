"""Canonical pixels, digest and encoding of every kind of picture (docs/definitions.md, section 5)."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms, ImageFile, ImageOps

from isr import images
from isr.errors import IntegrityError, ProblemsError, UsageError
from isr.images import FileMemo, ImageError, as_image, check_images

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(7)


def picture(height: int = 9, width: int = 7, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: np.ndarray, colour: int, depth: int, *extra: bytes, filters: bool = False) -> bytes:
    """A PNG made by hand from (H, W, C) samples: every row filter in turn where asked (PNG specification, section 9)."""
    height, width, channels = samples.shape
    if depth < 8:
        bits = ((samples[:, :, 0][..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(height, -1).astype(np.uint8)
        rows = [row.tobytes() for row in np.packbits(bits, axis=1)]
    else:
        rows = [row.tobytes() for row in samples.astype(">u2" if depth == 16 else np.uint8)]
    step = max(1, channels * depth // 8)
    raw, above = b"", bytes(len(rows[0]))
    for number, row in enumerate(rows):
        kind = number % 5 if filters else 0
        out = bytearray()
        for i, value in enumerate(row):
            a = row[i - step] if i >= step else 0
            b, c = above[i], above[i - step] if i >= step else 0
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            out.append((value - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        raw += bytes([kind]) + bytes(out)
        above = row
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")  # fmt: skip


def encoded(image: Image.Image, kind: str = "PNG", **settings_: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings_)
    return buffer.getvalue()


def pixels(source: object) -> np.ndarray:
    return as_image(source).array()


# ------------------------------------------------------------------------------------- one digest for one picture


@settings(max_examples=20, deadline=None)
@given(array=hnp.arrays(np.uint8, st.tuples(st.integers(5, 12), st.integers(5, 12), st.just(3))), filters=st.booleans())
def test_one_picture_has_one_digest_and_one_png_in_every_container(
    array: np.ndarray, filters: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("p") / "a.png"
    path.write_bytes(encoded(Image.fromarray(array)))
    chw = np.ascontiguousarray(array.transpose(2, 0, 1))
    sources = {
        "str": str(path), "path": path, "bytes": path.read_bytes(), "file": io.BytesIO(path.read_bytes()),
        "hand-made": png(array, 2, 8, filters=filters), "hf": {"bytes": None, "path": str(path)},
        "bmp": encoded(Image.fromarray(array), "BMP"), "tiff": encoded(Image.fromarray(array), "TIFF"),
        "webp": encoded(Image.fromarray(array), "WEBP", lossless=True), "ppm": encoded(Image.fromarray(array), "PPM"),
        "pil": Image.fromarray(array), "lazy pil": Image.open(path), "uint8": array, "uint8 chw": chw,
        "uint16": array.astype(np.uint16) * 257, "float64": array / 255, "float32": array / np.float32(255),
        "float16": (array / 255).astype(np.float16), "big-endian": (array.astype(np.uint16) * 257).astype(">u2"),
        "tensor chw": torch.from_numpy(chw), "tensor hwc": torch.from_numpy(array.copy()),
        "tensor float": torch.from_numpy(chw) / 255, "tensor half": (torch.from_numpy(chw) / 255).half(),
        "tensor with gradient": (torch.from_numpy(chw) / 255).requires_grad_(), "fortran": np.asfortranarray(array),
        "rgba": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        "16-bit png": png(array.astype(np.uint16) * 257, 2, 16, filters=filters),
    }  # fmt: skip
    expected = hashlib.sha256(b"isr rgb8 %d %d\n" % (array.shape[1], array.shape[0]) + array.tobytes()).hexdigest()
    for kind, source in sources.items():
        ref = as_image(source)
        assert ref.digest == expected, kind
        assert ref.size == (array.shape[1], array.shape[0]), kind
        sent = Image.open(io.BytesIO(ref.png()))
        assert (sent.format, sent.mode) == ("PNG", "RGB"), kind
        assert np.array_equal(np.asarray(sent), array), kind
        assert np.array_equal(np.asarray(ref.pil()), array), kind


def test_digest_depends_on_size_and_pixels() -> None:
    array = picture(4 + 1, 10)
    flipped = array.copy()
    flipped[0, 0, 0] ^= 1
    digests = {as_image(a).digest for a in (array, flipped, array.reshape(10, 5, 3), array[:, :, ::-1])}
    assert len(digests) == 4
    assert all(len(d) == 64 and int(d, 16) >= 0 for d in digests)


def test_shape_rules() -> None:
    square = picture(3, 3)
    assert np.array_equal(pixels(square), square)  # an array is (H, W, C) where both readings fit …
    tensor = torch.from_numpy(square.copy())
    assert np.array_equal(pixels(tensor), square.transpose(1, 2, 0))  # … and a tensor is (C, H, W)
    grey = picture(6, 8, 1)
    for source in (grey, grey[:, :, 0], grey.transpose(2, 0, 1), torch.from_numpy(grey[:, :, 0].copy())):
        assert np.array_equal(pixels(source), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), r"a batch of shape \(2, 3, 8, 8\)"),
        (np.zeros((8, 8, 2), np.uint8), r"expected shape .* got \(8, 8, 2\)"),
        (np.zeros(8, np.uint8), r"expected shape"),
        (np.zeros((0, 8, 3), np.uint8), r"no pixels \(size 8×0\)"),
        (np.zeros((8, 8, 3), np.int64), r"expected dtype uint8 .* got int64; .*astype\(numpy\.uint8\)"),
        (torch.zeros((3, 8, 8), dtype=torch.int64), r"got int64; .*\.to\(torch\.uint8\)"),
        (np.zeros((8, 8, 3), bool), r"got bool; multiply by 255"),
        (np.full((8, 8, 3), 200.0), r"from 200 to 200; it looks like 0–255: divide by 255"),
        (np.linspace(-1, 1, 192).reshape(8, 8, 3), r"looks like \[-1, 1\]: use x / 2 \+ 0\.5"),
        (np.full((8, 8, 3), 1.5), r"clip or rescale"),
        (np.full((8, 8, 3), np.nan), r"192 of 192 values are NaN or infinite"),
        (np.where(np.arange(192).reshape(8, 8, 3) == 5, np.inf, 0.5), r"1 of 192 values are NaN or infinite"),
        (torch.full((3, 8, 8), float("nan")), r"NaN or infinite"),
        (np.ma.masked_equal(np.zeros((8, 8, 3), np.uint8), 0), r"masked values"),
        (np.array([[{}]], dtype=object), r"array of objects"),
        (3.5, r"expected a path, bytes, a PIL image, a numpy array or a torch tensor, got float"),
        ([1, 2], r"got list"),
        ("", r"empty path"),
        ("a\0b.png", r"NUL"),
        ("https://example.org/a.png", r"not downloaded"),
        ("no/such/file.png", r"no such file"),
        (Path(), r"a folder"),
        (b"", r"empty \(0 bytes\)"),
        (b"hello", r"not a picture that can be read; expected PNG"),
        (b"<!DOCTYPE html><html>", r"looks like an HTML page"),
        (io.StringIO("text"), r"binary mode"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\\" in value else None,
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_with_a_reason(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        as_image(source, name="item 7").check()
    assert str(caught.value).startswith("item 7: ")
    assert isinstance(caught.value, UsageError)


def test_floats_round_to_nearest_and_may_overshoot_by_rounding_error() -> None:
    values = np.array([0.0, 1 / 255, 0.499 / 255, 0.501 / 255, 1.0, 1.00005, -0.00005, 0.5])
    # 255 v = 0, 1, 0.499, 0.501, 255, 255.01, -0.01, 127.5 (to even: 128)
    assert pixels(np.tile(values, (5, 1)))[0, :, 0].tolist() == [0, 1, 0, 1, 255, 255, 0, 128]


# -------------------------------------------------------------------------------------------------------- 16 bits


@pytest.mark.parametrize("filters", [False, True], ids=["no filter", "all filters"])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "rgb", "la", "rgba"])
def test_16_bit_png_is_rounded_not_cut(colour: int, channels: int, filters: bool, tmp_path: Path) -> None:
    samples = RNG.integers(0, 65536, (11, 6, channels), dtype=np.uint16)
    samples[0, :3] = [[128] * channels, [129] * channels, [65535] * channels]
    data = png(samples, colour, 16, filters=filters)
    exact = samples.astype(float)
    rgb = exact[:, :, :3] if channels >= 3 else exact[:, :, :1]
    if channels in (2, 4):
        alpha = exact[:, :, -1:] / 65535
        rgb = rgb * alpha + 65535 * (1 - alpha)
    expected = np.broadcast_to(np.rint(rgb / 257), (11, 6, 3)).astype(np.uint8)
    assert np.array_equal(pixels(data), expected)
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(pixels(tmp_path / "a.png"), expected)
    assert np.array_equal(pixels(Image.open(tmp_path / "a.png")), expected)  # opened, not yet loaded
    if channels != 2:
        assert np.array_equal(pixels(samples), expected)  # the same values as an array


def test_16_bit_rounding_by_hand() -> None:
    # round(v / 257): 128 → 0.498 → 0; 129 → 0.502 → 1; 385 → 1.498 → 1; 386 → 1.502 → 2; 65407 → 254.502 → 255
    values = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 2, 254, 255, 255]
    assert pixels(np.repeat(values[:, :, None], 3, axis=2))[0, :, 0].tolist() == expected
    assert pixels(png(np.repeat(values[:, :, None], 3, axis=2), 2, 16))[0, :, 1].tolist() == expected
    assert pixels(Image.fromarray(values))[0, :, 2].tolist() == expected


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_tiff(byteorder: str, compression: str | None, channels: int, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    samples = RNG.integers(0, 65536, (8, 5, channels), dtype=np.uint16)
    photometric = "rgb" if channels == 3 else "minisblack"
    stored = samples if channels == 3 else samples[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", stored, byteorder=byteorder, compression=compression, photometric=photometric)
    assert np.array_equal(pixels(tmp_path / "a.tif"), pixels(samples))


def test_16_bit_ppm() -> None:
    samples = RNG.integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    grey = b"P5 5 4 65535\n" + samples[:, :, 0].astype(">u2").tobytes()
    assert np.array_equal(pixels(grey), pixels(samples[:, :, 0]))
    colour = b"P6 5 4 65535\n" + samples.astype(">u2").tobytes()
    assert np.array_equal(pixels(colour), pixels(samples))


# ------------------------------------------------------------------------------------------ modes and transparency


def test_alpha_goes_over_white() -> None:
    rgba = np.zeros((5, 4, 4), np.uint8)
    rgba[:, :, 0] = 200
    rgba[:, :, 3] = [0, 51, 128, 255]
    # red 200 a + 255 (1 - a) with a = 0, 0.2, 128/255, 1: 255, 244, 227.39, 200; green 0: 255, 204, 127, 0
    for source in (rgba, Image.fromarray(rgba), png(rgba, 6, 8), encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)):  # fmt: skip
        got = pixels(source)
        assert got[0, :, 0].tolist() == [255, 244, 227, 200]
        assert got[0, :, 1].tolist() == [255, 204, 127, 0]
    assert np.array_equal(pixels(torch.from_numpy(rgba.transpose(2, 0, 1).copy()) / 255), got)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, (5, 5, 4)))
def test_alpha_is_rounded_once(rgba: np.ndarray) -> None:
    alpha = rgba[:, :, 3:] / 255
    expected = np.rint(rgba[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    assert np.array_equal(pixels(rgba), expected)
    assert np.array_equal(pixels(rgba / 255.0), expected)


def test_grey_palette_one_bit_and_cmyk() -> None:
    grey = picture(6, 5, 1)[:, :, 0]
    three = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(pixels(Image.fromarray(grey)), three)
    assert np.array_equal(pixels(png(grey[:, :, None], 0, 8, filters=True)), three)
    la = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (5, 6), 0)])
    assert (pixels(la) == 255).all()
    bits = (grey > 127).astype(np.uint8)
    assert np.array_equal(
        pixels(Image.fromarray(bits * 255).convert("1")), np.repeat(bits[:, :, None] * 255, 3, axis=2)
    )
    assert np.array_equal(pixels(png(bits[:, :, None], 0, 1)), np.repeat(bits[:, :, None] * 255, 3, axis=2))
    two = grey[:, :, None] >> 6
    assert np.array_equal(pixels(png(two, 0, 2)), np.repeat(two * 85, 3, axis=2))
    palette = Image.new("P", (5, 6))
    colours = [(10, 20, 30), (40, 50, 60), (70, 80, 90), (0, 0, 0)]
    palette.putdata((grey % 4).ravel().tolist())
    palette.putpalette([v for c in colours for v in c])
    expected = np.array(colours, np.uint8)[grey % 4]
    assert np.array_equal(pixels(palette), expected)
    assert np.array_equal(pixels(encoded(palette)), expected)
    assert np.array_equal(pixels(encoded(palette, "GIF")), expected)
    see_through = expected.copy()
    see_through[grey % 4 == 1] = 255
    assert np.array_equal(pixels(encoded(palette, transparency=1)), see_through)
    assert np.array_equal(pixels(encoded(palette, transparency=b"\xff\x00\xff\xff")), see_through)
    cmyk = Image.new("CMYK", (5, 5), (0, 255, 255, 0))
    assert (pixels(cmyk) == [255, 0, 0]).all()
    assert (pixels(Image.new("YCbCr", (5, 5), (255, 128, 128))) == 255).all()
    with pytest.raises(ImageError, match="mode 'LAB'"):
        pixels(Image.new("LAB", (5, 5)))
    with pytest.raises(ImageError, match="32-bit integer"):
        pixels(Image.new("I", (5, 5)))
    assert (pixels(Image.new("F", (5, 5), 0.2)) == 51).all()


@pytest.mark.parametrize(("colour", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)])
def test_a_transparent_colour_is_white(colour: int, depth: int) -> None:
    channels = 3 if colour == 2 else 1
    samples = RNG.integers(0, 2**depth, (6, 7, channels), dtype=np.uint16)
    samples[2, 3] = 1
    key = struct.pack(f">{channels}H", *[1] * channels)
    scaled = np.rint(samples * (255 / (2**depth - 1)))
    scaled[(samples == 1).all(axis=2)] = 255
    expected = np.broadcast_to(scaled, (6, 7, 3)).astype(np.uint8)
    assert np.array_equal(pixels(png(samples, colour, depth, chunk(b"tRNS", key))), expected)


# --------------------------------------------------------------------------------------------- orientation, colour


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation(turn: int, kind: str) -> None:
    image = Image.fromarray(picture(16, 24))
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(image, kind, exif=exif)
    stored = Image.open(io.BytesIO(data))
    expected = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(pixels(data), expected)
    assert as_image(data).size == ((24, 16) if turn < 5 else (16, 24))
    assert np.array_equal(pixels(Image.open(io.BytesIO(data))), expected)


def wide_profile() -> bytes:
    """A display profile whose red and green are swapped with respect to sRGB: unmistakable, and made without a file."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    entries = {data[132 + 12 * i : 136 + 12 * i].decode(): 132 + 12 * i for i in range(count)}
    red, green = entries["rXYZ"], entries["gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data)


def test_colour_profiles_are_converted() -> None:
    array = picture(8, 8)
    swapped = wide_profile()
    for kind, extra in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        got = pixels(encoded(Image.fromarray(array), kind, icc_profile=swapped, **extra)).astype(int)
        assert np.abs(got - array[:, :, [1, 0, 2]]).max() <= 2, kind  # the colour engine's own rounding
    alpha = np.dstack([array, np.full((8, 8), 255, np.uint8)])
    got = pixels(encoded(Image.fromarray(alpha), icc_profile=swapped)).astype(int)
    assert np.abs(got - array[:, :, [1, 0, 2]]).max() <= 2
    deep = png(array.astype(np.uint16) * 257, 2, 16, chunk(b"iCCP", b"x\0\0" + zlib.compress(swapped)))
    assert np.abs(pixels(deep).astype(int) - array[:, :, [1, 0, 2]]).max() <= 2


def test_a_profile_that_is_srgb_leaves_the_pixels_exact() -> None:
    array = picture(32, 32)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(pixels(encoded(Image.fromarray(array), icc_profile=srgb)), array)


def test_a_profile_for_other_pixels_is_left_out_and_a_broken_one_refused() -> None:
    grey = picture(8, 8, 1)[:, :, 0]
    leftover = Image.fromarray(grey)
    leftover.info["icc_profile"] = wide_profile()
    assert np.array_equal(pixels(leftover), np.repeat(grey[:, :, None], 3, axis=2))
    broken = encoded(Image.fromarray(picture()), icc_profile=b"not a profile")
    with pytest.raises(ImageError, match="colour profile cannot be read"):
        pixels(broken)


# ------------------------------------------------------------------------------------------------- damaged, hostile


def test_every_truncation_of_a_file_is_noticed() -> None:
    array = picture(40, 40)
    for kind, settings_ in (
        ("PNG", {}),
        ("JPEG", {"quality": 90}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", {}),
    ):
        whole = encoded(Image.fromarray(array), kind, **settings_)
        for part in (0.1, 0.5, 0.9):
            with pytest.raises(ImageError):
                as_image(whole[: int(len(whole) * part)], name=kind).check()


def test_truncation_is_noticed_where_other_code_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encoded(Image.fromarray(picture(64, 64)), "JPEG", quality=95)
    with pytest.raises(ImageError, match="truncated"):
        pixels(whole[: len(whole) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # and the other code gets its setting back


def test_damaged_png() -> None:
    good = png(picture(), 2, 8)
    with pytest.raises(ImageError, match="without an IEND"):
        pixels(good[:-12])
    flipped = bytearray(good)
    flipped[good.index(b"IDAT") + 10] ^= 1
    with pytest.raises(ImageError, match="wrong checksum in its IDAT chunk"):
        pixels(bytes(flipped))
    with pytest.raises(ImageError, match="does not start with an IHDR"):
        pixels(good[:8] + chunk(b"tEXt", b"a\0b") + good[8:])
    with pytest.raises(ImageError, match="a second IHDR"):
        pixels(good[:33] + good[8:33] + good[33:])
    with pytest.raises(ImageError, match="no pixel data"):
        pixels(good[:33] + chunk(b"IEND", b""))
    short = struct.pack(">IIBBBBB", 7, 9, 8, 2, 0, 0, 0)
    with pytest.raises(ImageError, match="cannot be decoded"):
        pixels(good[:8] + chunk(b"IHDR", short) + chunk(b"IDAT", zlib.compress(bytes(50))) + chunk(b"IEND", b""))
    empty = struct.pack(">IIBBBBB", 0, 9, 8, 2, 0, 0, 0)
    with pytest.raises(ImageError, match=r"no pixels \(size 0×9\)"):
        pixels(good[:8] + chunk(b"IHDR", empty) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")  # fmt: skip
    with pytest.raises(ImageError, match=r"30000×30000 is 900,000,000, the limit is 67,108,864"):
        pixels(bomb)
    wide = bytearray(encoded(Image.fromarray(picture()), "BMP"))
    wide[18:26] = struct.pack("<ii", 40_000, 40_000)
    with pytest.raises(ImageError, match="too many pixels"):
        pixels(bytes(wide))


def test_animations_and_unsafe_formats_are_refused() -> None:
    frames = [Image.fromarray(picture()) for _ in range(3)]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match="animation"):
            pixels(data)
    with pytest.raises(ImageError, match="not a picture that can be read"):
        pixels(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        as_image(tmp_path / "pipe.png").check()


# ------------------------------------------------------------------------------------------------ encoding, memory


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def test_canonical_png_files_pass_with_their_pixel_data_untouched() -> None:
    array = picture()
    source = png(array, 2, 8, chunk(b"sRGB", b"\0"), chunk(b"tEXt", b"Comment\0ignore the rubric"), filters=True)
    sent = as_image(source).png()
    assert [kind for kind, _ in chunks(sent)] == [b"IHDR", b"IDAT", b"IEND"]
    assert dict(chunks(sent))[b"IDAT"] == dict(chunks(source))[b"IDAT"]
    assert b"ignore the rubric" not in sent
    # bytes after the end are dropped as well
    assert as_image(source + b"trailing").png() == sent


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        chunk(b"tRNS", struct.pack(">3H", 300, 300, 300)),
        chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0\0\0\0\0"),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())),
    ],
    ids=["gAMA", "cHRM", "tRNS", "eXIf", "iCCP"],
)
def test_png_files_with_chunks_that_change_the_meaning_are_encoded_anew(extra: bytes) -> None:
    array = picture()
    source = png(array, 2, 8, extra)
    sent = as_image(source).png()
    assert [kind for kind, _ in chunks(sent)] == [b"IHDR", b"IDAT", b"IEND"]
    assert dict(chunks(sent))[b"IDAT"] != dict(chunks(source))[b"IDAT"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent))), array)


def test_metadata_never_reaches_the_judge() -> None:
    exif = Image.Exif()
    exif[0x010E] = "GPS 48.1 11.6"
    for data in (
        encoded(Image.fromarray(picture()), "JPEG", exif=exif, comment=b"secret"),
        encoded(Image.fromarray(picture()), "PNG", exif=exif),
    ):
        sent = as_image(data).png()
        assert b"GPS" not in sent
        assert b"secret" not in sent


def test_a_path_keeps_no_pixels(tmp_path: Path) -> None:
    Image.fromarray(picture(64, 64)).save(tmp_path / "a.png")
    ref = as_image(tmp_path / "a.png")
    ref.check()
    held = [getattr(ref, name, None) for name in ref.__slots__]
    assert not any(isinstance(value, (bytes, np.ndarray, Image.Image)) for value in held)
    assert "64×64" in repr(ref)


def test_a_change_after_the_check_is_an_error_not_another_measurement(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    first, second = picture(), picture()
    Image.fromarray(first).save(path)
    ref = as_image(path)
    digest = ref.digest
    Image.fromarray(first).save(path, compress_level=0)  # other bytes, same pixels: nothing changed
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(ref.png()))), first)
    Image.fromarray(second).save(path)
    for use in (ref.array, ref.png, ref.pil):
        with pytest.raises(
            IntegrityError, match=r"a\.png changed between the check and its use: its pixels are others"
        ):
            use()
    path.unlink()
    with pytest.raises(IntegrityError, match="no such file"):
        ref.png()
    assert ref.digest == digest
    array = first.copy()
    held = as_image(array, name="edits[0]")
    held.check()
    array[0, 0, 0] ^= 1
    with pytest.raises(IntegrityError, match=r"edits\[0\] changed"):
        held.png()


def test_pixels_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        as_image(picture()).array()[0, 0, 0] = 1


def test_shrunk() -> None:
    array = picture(40, 100)
    ref = as_image(array, name="wide")
    assert ref.shrunk(100) is ref
    small = ref.shrunk(50)
    assert (small.size, small.max_side, small.name) == ((50, 20), 50, "wide")
    expected = np.asarray(Image.fromarray(array).resize((50, 20), Image.Resampling.LANCZOS))
    assert np.array_equal(small.array(), expected)
    assert small.digest == as_image(expected).digest
    assert ref.shrunk(1).size == (1, 1)
    for wrong in (0, -1, True, 2.5):
        with pytest.raises(UsageError, match="max_side must be a positive whole number"):
            ref.shrunk(wrong)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- memo


class Counting(dict):  # type: ignore[type-arg]
    gets = 0

    def get(self, key: object, default: object = None) -> object:
        type(self).gets += 1
        return super().get(key, default)


def test_the_memo_saves_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Counting()
    Image.fromarray(picture(60, 80)).save(tmp_path / "a.jpg", quality=95)
    memo = FileMemo(store)
    cold = as_image(tmp_path / "a.jpg")
    cold.check(memo)
    small = cold.shrunk(40)
    small.check(memo)
    decoded = []
    original = images.ref.from_file_bytes
    monkeypatch.setattr(images.ref, "from_file_bytes", lambda data: decoded.append(1) or original(data))
    warm = as_image(tmp_path / "a.jpg")
    assert (warm.check(memo), warm.shrunk(40).check(memo)) == (cold.check(), small.check())
    assert decoded == []
    assert np.array_equal(warm.array(), cold.array())
    assert decoded  # the pixels themselves are never in the memo
    assert all(isinstance(key, str) and isinstance(value, dict) for key, value in store.items())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_looks_the_same_is_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(picture()).save(path)
    memo = FileMemo()
    cold = [as_image(path) for path in paths]
    check_images(cold, memo=memo, threads=threads)
    sent = [ref.png() for ref in cold]
    monkeypatch.setattr(images.ref, "file_hash", lambda data: pytest.fail("a file was hashed again"))
    warm = [as_image(path) for path in paths]
    check_images(warm, memo=memo, threads=threads)
    assert [ref.check() for ref in warm] == [ref.check() for ref in cold]
    assert [ref.png() for ref in warm] == sent


@pytest.mark.parametrize("blind", ["checksum", "times"])
def test_a_file_of_other_content_is_told_by_its_times_or_by_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind: str
) -> None:
    """Same path, inode and size, mtime set back; and one of the two signs that are left is taken away."""
    path, first, second = tmp_path / "a.bmp", picture(), picture()
    Image.fromarray(first).save(path)
    before = path.stat()
    memo = FileMemo()
    if blind == "checksum":
        monkeypatch.setattr(images.ref.zlib, "crc32", lambda data: 7)
    else:
        fstat = os.fstat

        def timeless(handle: int) -> os.stat_result:
            values = list(fstat(handle))
            return os.stat_result(values, {"st_mtime_ns": 1, "st_ctime_ns": 1})

        monkeypatch.setattr(images.ref.os, "fstat", timeless)
    held = as_image(path)
    check_images([held], memo=memo)
    time.sleep(0.05)  # a file system's clock ticks every few milliseconds
    other = io.BytesIO()
    Image.fromarray(second).save(other, "BMP")
    with path.open("r+b") as file:
        file.write(other.getvalue())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    again = as_image(path)
    check_images([again], memo=memo)
    assert again.digest == as_image(second).digest != held.digest
    with pytest.raises(IntegrityError, match="its pixels are others now"):
        held.png()


@pytest.mark.parametrize(
    "value",
    [None, "x", 3, {}, {"digest": "0" * 63, "size": [1, 1], "as_is": False}, {"digest": "0" * 64, "size": [1], "as_is": 1},
     {"digest": "0" * 64, "size": [1, -1], "as_is": True}, {"digest": "../" + "0" * 61, "size": [1, 1], "as_is": True}],
)  # fmt: skip
def test_a_memo_value_of_another_shape_counts_as_absent(value: object) -> None:
    class Odd(dict):  # type: ignore[type-arg]
        def get(self, key: object, default: object = None) -> object:
            return value

    data = encoded(Image.fromarray(picture()))
    ref = as_image(data)
    ref.check(FileMemo(Odd()))
    assert ref.digest == as_image(data).digest


def test_check_images_lists_everything_at_once(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-20])
    (tmp_path / "empty.jpg").touch()
    names = ["good.png", "cut.png", "empty.jpg", "missing.png"]
    refs = [as_image(tmp_path / name, name=name) for name in names]
    for threads in (1, 3):
        with pytest.raises(ProblemsError) as caught:
            check_images(refs, threads=threads)
        assert [p.item for p in caught.value.problems] == names[1:]
        assert "truncated" in caught.value.problems[0].what
    check_images(refs[:1])
    assert refs[1].problem is not None
    assert refs[0].problem is None


def test_one_lazy_pil_image_may_be_used_from_many_threads(tmp_path: Path) -> None:
    array = picture(200, 200)
    Image.fromarray(array).save(tmp_path / "a.png")
    for _ in range(5):
        shared = Image.open(tmp_path / "a.png")
        refs = [as_image(shared, name=str(i)) for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda ref: ref.digest, refs))
        assert found == [as_image(array).digest] * 8
