"""The fonts that charts are printed with: which there are, and what layout has to know of them."""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

SYSTEM_FONTS = "/usr/share/fonts"
# Upright Latin text faces of usual weights; anything else in a system's folders may be symbols, another script, or
# print that no chart has.
KNOWN_FACES = """
DejaVuSans DejaVuSans-Bold DejaVuSansCondensed DejaVuSansCondensed-Bold DejaVuSansMono DejaVuSerif DejaVuSerif-Bold
DejaVuSerifCondensed STIXGeneral STIXGeneralBol LiberationSans-Regular LiberationSans-Bold LiberationSansNarrow-Regular
LiberationSansNarrow-Bold LiberationSerif-Regular LiberationSerif-Bold LiberationMono-Regular Arimo-Regular
Tinos-Regular Tinos-Bold Carlito-Regular Carlito-Bold Caladea-Regular Caladea-Bold Lato-Regular OpenSans-Regular
OpenSans-Semibold OpenSans-Bold OpenSans-CondBold Roboto-Regular Roboto-Medium Roboto-Bold RobotoCondensed-Regular
RobotoCondensed-Bold RobotoSlab-Regular RobotoSlab-Bold NotoSans-Regular NotoSans-Bold NotoSansDisplay-Regular
NotoSerif-Regular NotoSerif-Bold NotoSerifDisplay-Regular Ubuntu-R FreeSans FreeSansBold FreeSerif FreeSerifBold
NimbusSans-Regular NimbusSans-Bold NimbusSansNarrow-Regular NimbusRoman-Regular NimbusRoman-Bold P052-Roman P052-Bold
C059-Roman C059-Bold URWGothic-Book LinLibertine_R LinLibertine_RB LinBiolinum_R LinBiolinum_RB EBGaramond12-Regular
EBGaramond12-Bold GenBasR GenBasB GenBkBasR CharisSIL-Regular CharisSIL-Bold Andika-Regular B612-Regular B612-Bold
Cantarell-Regular Cantarell-Bold Cabin-Regular Cabin-SemiBold ClearSans-Regular ClearSans-Medium ClearSans-Bold
Inter-Regular Inter-Medium Inter-Bold Karla-Regular Karla-Bold Manrope-Regular Manrope-SemiBold Sora-Regular
Quicksand-Medium Quicksand-Bold Comfortaa-Regular Dosis-Medium Dosis-Bold Play-Regular Jura-Medium Junction
Oxygen-Sans Oxygen-Sans-Bold PTS55F PTS75F PTN57F PTN77F PTF55F PTF75F Go-Regular Go-Medium Go-Bold
GilliusADF-Regular GilliusADF-Bold SwitzeraADF-Regular SwitzeraADF-Bold UniversalisADFStd-Regular LibrisADFStd-Regular
BaskervaldADFStd BaskervaldADFStd-Bold AccanthisADFStd-Regular RomandeADFStd-Regular OldStandard-Regular
OldStandard-Bold Quattrocento-Regular Vollkorn-Regular Vollkorn-Bold Yrsa-Regular Yrsa-Bold ElstobD-Regular
ElstobD-Bold JunicodeTwoBeta-Regular JunicodeTwoBeta-Bold GFSDidot GFSArtemisia Cardo104s FanwoodText cmunrm cmunbx
cmunss Hack-Regular FiraCode-Regular JetBrainsMono-Regular Inconsolata AveriaSansGWF-Regular AveriaSerifGWF-Regular
YanoneKaffeesatz-Regular ComicNeue-Regular Tuffy"""
HELD_OUT_FACES = ("DejaVuSansCondensed", "DejaVuSansCondensed-Bold", "STIXGeneral", "STIXGeneralBol", "Lato-Regular")


class Face(NamedTuple):
    """A font at one size, with the measures that layout needs, in pixels."""

    font: ImageFont.FreeTypeFont
    cap_height: float
    ascent: float
    descent: float
    boldness: float
    widths: dict[str, float]

    @property
    def line_height(self) -> float:
        return self.ascent + self.descent + 1

    def width(self, text: str) -> float:
        """Return the advance of `text`, which kerning may shorten by a pixel or so."""
        return sum([self.advance(char) for char in text])

    def advance(self, char: str) -> float:
        if char not in self.widths:
            self.widths[char] = self.font.getlength(char)
        return self.widths[char]


@functools.cache
def find_fonts(folders: tuple[str, ...], held_out: bool) -> tuple[str, ...]:
    """Return the paths of the fonts of a split; "" stands for Pillow's own, which is always there.

    Looks among matplotlib's fonts and the system's for faces known to be plain Latin, and takes every TTF or OTF of
    `folders` (a fifth of them held out, by name). Held-out charts use Pillow's own only if nothing else is found.
    """
    matplotlib = importlib.util.find_spec("matplotlib")
    places = [Path(SYSTEM_FONTS)]
    if matplotlib and matplotlib.origin:
        places.append(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf")
    found, known = {}, KNOWN_FACES.split()
    for place in places:
        found |= {path.stem: str(path) for path in _faces(place) if path.stem in known}
    held = {stem for stem in found if stem in HELD_OUT_FACES}
    for folder in folders:
        paths = _faces(Path(folder))
        found |= {path.stem: str(path) for path in paths}
        held |= {path.stem for path in paths if sum(path.stem.encode()) % 5 == 0}
    chosen = tuple(found[stem] for stem in sorted(found) if (stem in held) == held_out)
    return chosen or ("",) if held_out else ("", *chosen)


def _faces(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))


@functools.lru_cache(maxsize=4096)
def load_face(path: str, size: float, boldness: float = 0.0) -> Face:
    """Load a font ("" for Pillow's own) at a size in pixels; `boldness` thickens its strokes by so many pixels."""
    font = (
        ImageFont.load_default(size)
        if path == ""
        else ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    )
    capital, tall, low = (font.getbbox(text, anchor="ls") for text in ("H", "bdl", "gpy"))
    return Face(font, -capital[1], -min(tall[1], capital[1]), low[3], boldness, {})
