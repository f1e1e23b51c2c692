"""Tones as styles of a terminal.

Owns every colour of the picture. A heat map that is read by colour alone is lost on many: signs and
figures say the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.color import Color, blend_rgb
from rich.color_triplet import ColorTriplet
from rich.style import Style
from rich.text import Text

from eplbd.top.wording import Line

STYLES = {
    "": Style(),
    "good": Style.parse("green3"),
    "warn": Style.parse("orange1"),
    "bad": Style.parse("bold red1"),
    "dim": Style.parse("grey62"),
    "head": Style.parse("bold"),
}

# Cold to hot through a dark grey that draws no eye: what is near the mean is nobody's worry.
_SCALE = (
    (40, ColorTriplet(0x1F, 0x4E, 0x8C)),
    (100, ColorTriplet(0x38, 0x38, 0x38)),
    (125, ColorTriplet(0x8A, 0x6D, 0x1B)),
    (150, ColorTriplet(0xC7, 0x6A, 0x15)),
    (200, ColorTriplet(0xD3, 0x2F, 0x2F)),
)
_INK = Color.parse("#ffffff")


def heat_colour(percent: int) -> ColorTriplet:
    """Of a load, in percent of the mean."""
    below, colour = _SCALE[0]
    for above, hotter in _SCALE[1:]:
        if percent <= above:
            share = (max(percent, below) - below) / (above - below)
            return blend_rgb(colour, hotter, share)
        below, colour = above, hotter
    return colour


def style(tone: str) -> Style:
    """Of a tone, `heat:137` among them."""
    if tone.startswith("heat:"):
        ground = heat_colour(int(tone.removeprefix("heat:")))
        return Style(color=_INK, bgcolor=Color.from_triplet(ground))
    return STYLES[tone]


def drawn(lines: Iterable[Line]) -> Text:
    """Lines as text with styles."""
    return Text("\n").join(
        Text.assemble(*((span.text, style(span.tone)) for span in line)) for line in lines
    )
