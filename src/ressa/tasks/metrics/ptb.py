"""Words of captions as the COCO evaluation makes them, without Java.

COCO's scorers run Stanford's PTBTokenizer in lower case and then drop punctuation. This does the same for the English
of captions by rules; on the 1,000 captions of COCO's example results it agreed with the original throughout. Where
Java and `ressa[captions]` are there, `coco.py` uses the original.
"""

from __future__ import annotations

import re

DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "–": "--", "—": "--", "\u00a0": " "})
ABBREVIATED = (
    " jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri mr mrs ms dr drs prof sen "
    "rep gov lt col maj gen adm capt cpl sgt pvt hon rev st ste jr sr inc cos corp co ltd plc etc vs no nos ft fig ave "
    "blvd dept est approx calif fla mass mich minn wash conn ariz tenn tex "
)
WHOLE = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"}
WHOLE |= {"lemme": "lem me", "'tis": "'t is", "'twas": "'t was"}
DOTTED = re.compile(r"(?:[A-Za-z]\.)+$")  # J. a.m. U.S.
CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))$", re.IGNORECASE)
PIECE = re.compile(
    r"""'[nN]'                                  # rock 'n' roll
      | '\d\ds(?!\w)                            # the '90s
      | '(?:s|m|d|ll|re|ve)(?!\w)               # an 80's band
      | <[^\s<>]+>
      | [\w.+-]+@[\w-]+(?:\.\w+)+               # an address
      | \d+(?:[,.:/]\d+)*                       # 1,000  3.5  10:30  1/2
        (?:-?[^\W\d_]+(?:[-'][^\W_]+)*(?![\w.]))?   # 5p  2nd  3-piece
      | [^\W\d_]\w*(?:[-'./&@_]\w+)*            # doesn't  two-story  and/or  a.m  AT&T
      | \.\.\. | -- | [?!]{2,} | \S""",
    re.VERBOSE,
)


def words(caption: str) -> list[str]:
    """The tokens of a caption that count.

    >>> words("A man's dog doesn't like St. Louis, a 3.5 ft. (tall) cat.")
    ['a', 'man', "'s", 'dog', 'does', "n't", 'like', 'st.', 'louis', 'a', '3.5', 'ft.', '-lrb-', 'tall', '-rrb-', 'cat']
    """
    found: list[str] = []
    for chunk in caption.translate(PLAIN).split():
        pieces = [match.group() for match in PIECE.finditer(chunk)]
        for i, piece in enumerate(pieces):
            if piece == "." and i and _keeps_dot(pieces[i - 1]) and found:
                found[-1] += "."
            else:
                found += _split(piece)
    return [word for word in found if word not in DROPPED]


def _keeps_dot(piece: str) -> bool:
    return f" {piece.lower()} " in ABBREVIATED or DOTTED.match(piece + ".") is not None


def _split(piece: str) -> list[str]:
    """A piece in lower case, its clitics apart: doesn't -> does n't, I'd've -> i 'd 've."""
    low = piece.lower()
    if low in WHOLE:
        return WHOLE[low].split()
    if low in BRACKETS or low == '"':
        return [BRACKETS.get(low, "``")]
    tail: list[str] = []
    while match := CLITIC.search(low):
        tail.insert(0, match.group())
        low = low[: match.start()]
    return [low, *tail]
