"""Pixels of every kind as 8-bit RGB: greater ranges scaled to 0..255, transparency on white, turned upright.

Pillow's own `convert("RGB")` clips what lies above 255, so that 16-bit pictures become white and floats from 0 to 1
black, and drops the alpha channel, under which most programs leave black.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of more than 8 bits
RANGES = (2**8 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)
BITS, SAMPLES, PHOTOMETRIC = 258, 339, 262  # tags of TIFF
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DARKEST = 64  # of 255: what a picture reaches at least, if a range that was guessed is the right one


class NoRangeError(ValueError):
    """A picture whose numbers are not those of a picture, or do not tell which one is white."""


def turn(image: Image.Image) -> Image.Transpose | None:
    """How a picture, once it is loaded, is turned upright, as its EXIF says; None if it is, or if that is damaged.

    `ImageOps.exif_transpose` also writes the EXIF anew, which fails for tags that no one needs here.
    """
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever parsing damaged EXIF runs into: the pixels are sound
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` (as opened, so that its format is known) as 8-bit RGB, upright.

    Raises:
        NoRangeError: 32-bit numbers that are negative, infinite or NaN, or far below any range.
    """
    image.load()
    plain, turned = _plain(image), turn(image)
    return plain if turned is None else plain.transpose(turned)


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:
        return Image.fromarray(_eight_bits(np.asarray(image), image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _eight_bits(values_HW: np.ndarray, image: Image.Image) -> np.ndarray:
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(SAMPLES, (1,))[0] == 1:
        values_HW = values_HW.view(np.uint32)  # Pillow knows signed ones only
    top = _top(values_HW, image, tags)
    grey_HW = np.clip(values_HW.astype(np.float64) * (255 / top), 0, 255)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero, which Pillow minds up to 8 bits
        grey_HW = 255 - grey_HW
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey_HW = np.where(values_HW == clear, 255, grey_HW)
    return np.rint(grey_HW).astype(np.uint8)


def _top(values_HW: np.ndarray, image: Image.Image, tags: Any) -> float:
    """The number that is white: the format's, or where a format has none (32-bit TIFF, PFM), by the greatest one."""
    if image.mode.startswith("I;16"):
        return 2**16 - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 2**16 - 1
    least, most = float(values_HW.min()), float(values_HW.max())
    if not (np.isfinite(values_HW).all() and least >= 0):
        raise NoRangeError(f"its numbers go from {least:g} to {most:g}, which are no brightnesses; save it with 8 bits")
    if image.mode == "I" and tags.get(BITS) == (16,):
        return 2**15 - 1  # signed
    if most == 0 or (image.mode == "F" and most <= 1.01):  # resampling overshoots a little
        return 1
    top = next((top for top in RANGES if most <= top), most)
    if most * 255 / top < DARKEST:
        raise NoRangeError(f"its brightest number is {most:g}, which does not tell its range; save it with 8 bits")
    return top
