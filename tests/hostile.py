"""A hundred texts and more that a terminal, a table, a plot, a spreadsheet or a file system would obey or choke on."""

from __future__ import annotations

ESC, CSI, OSC, ST, BEL = "\x1b", "\x9b", "\x9d", "\x9c", "\x07"

TERMINAL = [
    f"{ESC}[31mred{ESC}[0m",
    f"{ESC}[2J{ESC}[H all is well",
    f"{ESC}[1A{ESC}[2Kover the line above",
    f"{ESC}]0;a title{BEL}",
    f"{ESC}]8;;https://example.org{ESC}\\a link{ESC}]8;;{ESC}\\",
    f"{ESC}]52;c;Y2xpcGJvYXJk{BEL}",
    f"{ESC}P+q544e{ESC}\\",
    f"{ESC}_Ga=T;AAAA{ESC}\\",
    f"{ESC}^a message{ESC}\\",
    f"{ESC}c reset",
    f"{ESC}(0lines",
    f"{ESC}[6n",
    f"{ESC}[?1049h",
    f"{ESC}[8m hidden",
    f"{ESC}#8",
    f"{CSI}31mred",
    f"{OSC}0;title{ST}",
    f"x{BEL}{BEL}{BEL}",
    "abc\b\b\bxyz",
    "name.png\rok: all is well",
    "a\nressa: all is well",
    "a\r\nb",
    "a\tb\vc\fd",
    "a\0b",
    "\x01\x02\x03\x04\x05\x06",
    "\x0e\x0f\x10\x11\x12\x13",
    "\x1c\x1d\x1e\x1f",
    "a\x7fb",
    "a\x85b",
    "\x80\x81\x90\x9e\x9f",
    "x" + ESC,
]
UNICODE = [
    "\u202egpj.exe",
    "\u202dabc\u202c",
    "\u2066a\u2069",
    "\u2067a\u2069b",
    "\u200eleft\u200fright",
    "\u061carabic mark",
    "zero\u200bwidth",
    "zero\u200djoiner",
    "word\u2060joiner",
    "soft\u00adhyphen",
    "\ufeffmark of order",
    "a\u2028b",
    "a\u2029b",
    "no\u00a0break",
    "wide\u3000space",
    "\u3164filler",
    "\ufff9a\ufffab\ufffb",
    "\U000e0041\U000e0042 tags",
    "\ue000 private",
    "\uffff\ufdd0",
    "\U0010ffff",
    "half \ud83d of a pair",
    "other half \udc4d",
    "byte \udc80\udcff",
    "e\u0301\u0301\u0301\u0301" * 20,
    "👩\u200d👩\u200d👧",
    "🏳\ufe0f\u200d🌈",
    "日本語のテキスト",
    "שלום עולם",
    "नमस्ते",
    "ﷺ",
]
MARKUP = [
    "[red]x[/red]",
    "[/oops]",
    "[link=https://example.org]x[/link]",
    "[bold",
    ":warning:",
    "$x_1^2$",
    "$$",
    r"$\frac{$",
    r"\u001b[31m",
    "**bold** _it_ `code`",
    "![x](https://example.org/x.png)",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt;&#27;",
    "]]><!--",
    "{{ 7 * 7 }}",
    "{0.__class__}",
    "{",
    "%s%s%n%d",
    "%(name)s",
]
NAMES = [
    "../../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "~root",
    ".",
    "..",
    "CON",
    "nul.png",
    "name.",
    " leading and trailing ",
    "--help",
    "-rf",
    "$(touch x)",
    "`touch x`",
    "a;b|c&d>e",
    "*?",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(1)",
    "long " * 2000,
]
VALUES = [*TERMINAL, *UNICODE, *MARKUP, *NAMES]


def raw(text: str) -> str:
    """What in `text` is neither a letter that can be seen nor the end of a line."""
    return "".join(sorted({letter for letter in text if not (letter.isprintable() or letter == "\n")}))


def sayable(value: str) -> bool:
    """Whether UTF-8 can hold it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)
