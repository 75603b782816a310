"""One picture as every model can have it: RGB, upright, one frame, not too large; enormous ones are not decoded."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from ressa.data.images import FORMATS
from ressa.data.pixels import DEEP, NoRangeError, to_rgb, turn
from ressa.preparation.unusable import DAMAGED, ENORMOUS, OTHER, RANGELESS, Unusable

LOSSLESS = ("PNG", "GIF", "BMP", "TIFF", "PPM")
SUFFIX = {"JPEG": ".jpg", "PNG": ".png"}
MODES = {
    "CMYK": "cmyk",
    "YCCK": "cmyk",
    "L": "grey",
    "1": "grey",
    "P": "palette",
    "RGBA": "alpha",
    "LA": "alpha",
    "RGB": "alpha",
}
SCALED = "scaled down"


@dataclass(frozen=True)
class Made:
    """The file to write, and what had to be changed for it ("animated", "cmyk", "turned upright", ...)."""

    data: bytes
    suffix: str
    changes: tuple[str, ...]


def normalise(data: bytes, max_side: int | None = None) -> Made:
    """`data` itself if nothing has to be changed, else a JPEG (quality 95), or a PNG if the original was lossless.

    The same bytes give the same file. Callers ignore Pillow's warnings: changing their filters is not for threads.

    Raises:
        Unusable: not a picture, damaged, or more pixels than `PIL.Image.MAX_IMAGE_PIXELS` by its header.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            kind = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with previews behind it
            _refuse_enormous(image)
            image.load()  # damaged files are found out here
            changes = _changes(image, kind, max_side)
            if not changes and kind in SUFFIX:
                return Made(data, SUFFIX[kind], ())
            return _encoded(image, kind, changes, max_side)
    except Unusable:
        raise
    except NoRangeError as error:
        raise Unusable(RANGELESS, str(error)) from None
    except UnidentifiedImageError:
        raise Unusable(OTHER, f"{len(data):,} bytes that begin with {data[:12]!r}") from None
    except Image.DecompressionBombError as error:  # of more than twice the limit Pillow does not tell the sides
        raise Unusable(ENORMOUS, str(error).partition(",")[0]) from None
    except Exception as error:  # decoders of damaged files raise whatever their parsing ran into
        raise Unusable(DAMAGED, str(error) or type(error).__name__) from None


def _refuse_enormous(image: Image.Image) -> None:
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise Unusable(ENORMOUS, f"its header says {width:,} x {height:,} pixels")


def _changes(image: Image.Image, kind: str, max_side: int | None) -> tuple[str, ...]:
    found = []
    if kind != "JPEG" and getattr(image, "is_animated", False):
        found.append("animated")
        image.seek(0)
    if image.mode != "RGB" or image.has_transparency_data:
        found.append(MODES.get(image.mode, "deep" if image.mode in DEEP else f"mode {image.mode}"))
    if turn(image) is not None:
        found.append("turned upright")
    if max_side is not None and max(image.size) > max_side:
        found.append(SCALED)
    return tuple(found)


def _encoded(image: Image.Image, kind: str, changes: tuple[str, ...], max_side: int | None) -> Made:
    plain = to_rgb(image)
    if max_side is not None:
        plain.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    plain.info.clear()  # or Pillow would write what the original said of itself
    target, out = "PNG" if kind in LOSSLESS else "JPEG", BytesIO()
    plain.save(out, target, quality=95)
    return Made(out.getvalue(), SUFFIX[target], changes)
