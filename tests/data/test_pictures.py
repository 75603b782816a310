"""One picture as every model can have it, or the reason why not."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from PIL import Image, ImageFile

import official
from ressa.preparation.pictures import normalise
from ressa.preparation.unusable import Unusable


def opened(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as image:
        image.load()
        return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_needs_no_change_keeps_its_bytes(kind):
    data = official.encoded(official.photo(1), kind)
    assert normalise(data).data is data
    assert normalise(data, max_side=48).data is data


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_other_formats_become_jpeg_or_without_loss_png(kind):
    image = official.photo(1) if kind != "GIF" else official.photo(1).quantize(32)
    made = normalise(official.encoded(image, kind))
    assert made.suffix == (".jpg" if kind == "WEBP" else ".png")
    if kind != "WEBP":
        assert opened(made.data).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb_and_is_counted(mode):
    kind = "TIFF" if mode in ("CMYK", "F") else "PNG"
    image = official.photo(1).convert(mode) if mode != "I;16" else Image.new("I;16", (48, 32), 200)
    made = normalise(official.encoded(image, kind))
    assert opened(made.data).mode == "RGB"
    assert len(made.changes) == 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_moving_pictures_and_pages_the_first_is_taken(kind):
    frames = [official.photo(i) for i in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    made = normalise(official.encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert "animated" in made.changes
    near = opened(made.data)
    assert not getattr(near, "is_animated", False)
    pairs = zip(near.tobytes(), frames[0].tobytes(), strict=True)
    assert sum(abs(a - b) for a, b in pairs) / len(near.tobytes()) < 6  # GIF has 256 colours, a JPEG is not exact


@pytest.mark.parametrize("orientation", range(2, 9))
def test_pictures_are_turned_upright_as_their_exif_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    made = normalise(official.encoded(official.photo(1), "PNG", exif=exif))
    assert made.changes == ("turned upright",)
    assert opened(made.data).size == ((32, 48) if orientation > 4 else (48, 32))
    assert normalise(made.data).changes == ()


def test_what_is_made_needs_no_further_change_and_carries_nothing_of_the_originals_metadata():
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    data = official.encoded(official.photo(1).convert("L"), exif=exif, comment=b"where I live")
    made = normalise(data, max_side=20)
    assert opened(made.data).size == (20, 13)
    assert b"where I live" not in made.data
    assert normalise(made.data, max_side=20).data is made.data


@pytest.mark.parametrize(
    ("size", "told"),
    [((60_000, 50_000), "3000000000 pixels"), ((400, 300), "400 x 300"), ((600, 500), "300000 pixels")],
)
def test_an_enormous_picture_is_not_decoded(size, told, monkeypatch):
    if size[0] < 1000:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as those who call it do
        with pytest.raises(Unusable, match=told) as caught:
            normalise(official.enormous(*size))
    assert caught.value.reason == "enormous"


@pytest.mark.parametrize(("name", "reason"), official.UNUSABLE.items())
def test_what_cannot_be_used_has_its_reason(name, reason):
    with pytest.raises(Unusable) as caught:
        normalise(official.odd(name, 3))
    assert caught.value.reason == reason
    assert "\n" not in caught.value.detail


def test_postscript_is_not_run():
    with pytest.raises(Unusable, match="not a picture"):
        normalise(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


def test_every_cut_and_every_flipped_byte_gives_a_picture_or_a_reason():
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        data = official.encoded(official.photo(2, (24, 16)), kind)
        for at in range(0, len(data), 7):
            for broken in (data[:at], data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]):
                try:
                    made = normalise(broken)
                except Unusable:
                    continue
                assert opened(made.data).mode == "RGB"


def test_the_same_bytes_give_the_same_file_from_many_threads():
    data = [official.odd(name, n) for n in range(5) for name in official.CONVERTED]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(normalise, data)) == [normalise(entry) for entry in data]
