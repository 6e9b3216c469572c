"""Widths of text without a font: the text of a drawing is measured before it is known which font will show it.

The widths are those of DejaVu Sans, which is wider than other common fonts without serifs, rounded up. So a text is
at most as wide as it was measured, and rarely more than an eighth narrower.
"""

import re
import unicodedata

_CHARACTERS = {  # thousandths of the size of the font
    300: "IJijl",
    350: " ,./:;\\|",
    400: "!()-[]ft",
    450: "r",
    500: '"*_`',
    550: "?csz'",
    600: "FLkvxy",
    650: "$0123456789EPSTYabdeghnopqu{}",
    700: "ABCKRVXZ",
    750: "NU",
    800: "&DGHOQ",
    850: "#+<=>^w~×·",
    900: "M",
    950: "%",
    1000: "@Wm…",
}
_WIDTHS = {character: width for width, characters in _CHARACTERS.items() for character in characters}
_WIDEST = 1100  # of characters that are not listed, such as those of Chinese, and emoji
_BOLD = 1.27  # the most by which a bold character is wider
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufff9-\uffff]")


def clean(text: str) -> str:
    """Returns the text on one line. Characters that XML forbids, or that would reorder or hide others, become U+FFFD."""
    return _UNSEEN.sub("\ufffd", " ".join(text.split()))


def width(text: str, size: float, *, bold: bool = False) -> float:
    """Returns the greatest width of a text in a font of this size, in the unit of the size."""
    return sum(map(_width_of, text)) * size * (_BOLD if bold else 1) / 1000


def _width_of(character: str) -> int:
    known = _WIDTHS.get(character)
    if known is None:
        if unicodedata.category(character) in ("Mn", "Me", "Cf"):
            known = 0
        else:  # a letter with an accent is as wide as the letter
            known = _WIDTHS.get(unicodedata.normalize("NFD", character)[0], _WIDEST)
        if len(_WIDTHS) < 10_000:
            _WIDTHS[character] = known
    return known


def shortened(text: str, most: float, size: float, *, bold: bool = False) -> str:
    """Returns the text, or as much of its beginning as fits into the width `most`, with an ellipsis."""
    if width(text, size, bold=bold) <= most:
        return text
    return text[: _fitting(text, most - width("…", size, bold=bold), size, bold)].rstrip() + "…"


def wrapped(text: str, most: float, size: float, lines: int) -> list[str]:
    """Returns the text in lines that fit into the width `most`. The last of at most `lines` lines is shortened."""
    made: list[str] = []
    while text:
        if len(made) == lines - 1 or width(text, size) <= most:
            return [*made, shortened(text, most, size)]
        end = _fitting(text, most, size, bold=False)
        space = text.rfind(" ", 0, end + 1)
        cut = space if space > 0 else max(end, 1)
        made.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return made


def _fitting(text: str, most: float, size: float, bold: bool) -> int:
    """Returns the number of characters from the beginning of the text that fit into the width `most`."""
    left = most * 1000 / size / (_BOLD if bold else 1)
    for number, character in enumerate(text):
        left -= _width_of(character)
        if left < 0:
            return number
    return len(text)
