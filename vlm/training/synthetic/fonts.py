"""The fonts that charts are printed with: which there are, and what layout has to know of them."""

import functools
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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
Quicksand-Medium Quicksand-Bold Comfortaa-Regular Dosis-Medium Dosis-Bold Play-Regular Jura-Medium Junction Oxygen-Sans
Oxygen-Sans-Bold PTS55F PTS75F PTN57F PTN77F PTF55F PTF75F Go-Regular Go-Medium Go-Bold GilliusADF-Regular
GilliusADF-Bold SwitzeraADF-Regular SwitzeraADF-Bold UniversalisADFStd-Regular LibrisADFStd-Regular BaskervaldADFStd
BaskervaldADFStd-Bold AccanthisADFStd-Regular RomandeADFStd-Regular OldStandard-Regular OldStandard-Bold
Quattrocento-Regular Vollkorn-Regular Vollkorn-Bold Yrsa-Regular Yrsa-Bold ElstobD-Regular ElstobD-Bold
JunicodeTwoBeta-Regular JunicodeTwoBeta-Bold GFSDidot GFSArtemisia Cardo104s FanwoodText cmunrm cmunbx cmunss
Hack-Regular FiraCode-Regular JetBrainsMono-Regular Inconsolata AveriaSansGWF-Regular AveriaSerifGWF-Regular
YanoneKaffeesatz-Regular ComicNeue-Regular Tuffy AbyssinicaSIL-Regular AccanthisADFStd-Bold Akatab-Bold Akatab-Regular
Amiri-Bold Amiri-Regular Andika-Bold Arapey-Regular AveriaSansGWF-Bold AveriaSerifGWF-Bold B612Mono-Regular
BIZUDPGothic-Bold BIZUDPGothic-Regular BIZUDPMincho-Regular BerenisADFPro-Bold BerenisADFPro-Regular Cardob101
CaslonBold Comfortaa-Bold Dustismo Dustismo_Roman Dustismo_Roman_Bold EBGaramond08-Regular ElstobD-18pt ElstobD-8pt
ElstobD-8ptBold GFSArtemisiaBold GFSDidotBold GFSNeohellenicBold Garuda Gayathri-Bold Gayathri-Regular
GemunuLibre-Regular GemunuLibre-SemiBold GenBkBasB GilliusADF-BoldCond GilliusADF-Cond Go-Mono GoudyBookletter1911
IkariusADFStd-Bold IkariusADFStd-Regular Inter-Light Inter-SemiBold InterDisplay-Regular IrianisADFStd-Bold
JetBrainsMono-Bold JunicodeTwoBeta-Condensed JunicodeTwoBeta-Expanded JunicodeTwoBeta-ExpandedBold Jura-Bold
Karla-Medium Laksaman Laksaman-Bold LeagueMono-Condensed LeagueMono-Regular LeagueSpartan-Regular
LeagueSpartan-SemiBold LiberationMono-Bold LibrisADFStd-Bold Loma Loma-Bold Manjari-Bold Manjari-Regular Manrope-Bold
MekanusADFStd-Bold Mplus1-Bold Mplus1-Medium Mplus1-Regular NanumBarunGothic NanumBarunGothicBold NanumGothic
NanumGothicBold NanumMyeongjo NanumMyeongjoBold NanumSquareB NanumSquareR NanumSquareRoundR NimbusMonoPS-Bold
NimbusSansNarrow-Bold NotoSansMono-Regular NotoSerifDisplay-Bold PTC75F PTM55F PTZ55F Play-Bold Prociono
Quicksand-Regular RobotoCondensed-Medium RomandeADFStd-DemiBold Sora-SemiBold SwitzeraADF-BoldCond SwitzeraADF-Cond
SwitzeraADF-Ext TribunADFStd-Bold TribunADFStd-BoldCond TribunADFStd-Cond TribunADFStd-Regular Tuffy_Bold
URWBookman-Demi URWBookman-Light URWGothic-Demi UniversalisADFStd-Bold Vollkorn-SemiBold YanoneKaffeesatz-Bold
Yrsa-SemiBold cmunobx cmunorm cmunssdc cmunsx cmunvt dustismo_bold lmmono10-regular lmmonoproplt10-bold lmroman12-bold
lmroman8-regular lmsansquot8-bold lmsansquot8-regular mononoki-Regular routed-gothic routed-gothic-narrow
sawarabi-gothic-medium tiresias_lpfont tiresias_pcfont"""
HELD_OUT_FACES = ("DejaVuSansCondensed", "DejaVuSansCondensed-Bold", "STIXGeneral", "STIXGeneralBol", "Lato-Regular")


# Without eq, and loaded when first asked for: of the faces of a look not all are printed with.
@dataclass(eq=False)
class Face:
    """A font ("" for Pillow's own) at one size, with the measures that layout needs, in pixels.

    It keeps the ink of its characters: hinting an outline takes longer than all else that makes a picture.
    """

    path: str
    size: float
    boldness: float = 0.0
    _inks: dict[str, tuple[int, int, np.ndarray]] = field(default_factory=dict)
    """(left, top) of a character's ink from where it begins on the baseline, and the ink, uint8 [height, width]."""
    _kerns: dict[str, int] = field(default_factory=dict)
    """How much further two characters stand apart, in 64ths of a pixel."""

    @functools.cached_property
    def font(self) -> ImageFont.FreeTypeFont:
        if self.path == "":
            return ImageFont.load_default(self.size)
        return ImageFont.truetype(self.path, self.size, layout_engine=ImageFont.Layout.BASIC)

    @functools.cached_property
    def cap_height(self) -> float:
        return -self.font.getbbox("H", anchor="ls")[1]

    @functools.cached_property
    def ascent(self) -> float:
        return max(-self.font.getbbox("bdl", anchor="ls")[1], self.cap_height)

    @functools.cached_property
    def descent(self) -> float:
        return self.font.getbbox("gpy", anchor="ls")[3]

    @functools.cached_property
    def widths(self) -> "_Widths":
        return _Widths(self.font)

    @property
    def line_height(self) -> float:
        return self.ascent + self.descent + 1

    def width(self, text: str) -> float:
        """Return the advance of `text`, which kerning may shorten by a pixel or so."""
        return sum(map(self.widths.__getitem__, text))

    def advance(self, char: str) -> float:
        return self.widths[char]

    def ink(self, text: str) -> tuple[int, int, np.ndarray]:
        """Return (left, top, ink uint8 [height, width]) of a line of text from where it begins on the baseline.

        It is what Pillow draws, to the grey level, but for `boldness`, which is left out.
        """
        parts, reach, last, kerned = [], 0, "", _is_kerned(self.path)
        for char in text:
            if kerned and last:
                reach += self._kern(last + char)
            left, top, ink = self._glyph(char)
            if ink.size:
                parts.append(((reach + 32) // 64 + left, top, ink))
            reach += round(64 * self.advance(char))
            last = char
        if not parts:
            return 0, 0, np.zeros((0, 0), dtype=np.uint8)
        x0, y0 = min([x for x, _, _ in parts]), min([y for _, y, _ in parts])
        x1, y1 = max([x + ink.shape[1] for x, _, ink in parts]), max([y + ink.shape[0] for _, y, ink in parts])
        total = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
        right = x0
        for x, y, ink in parts:
            under = total[y - y0 : y - y0 + ink.shape[0], x - x0 : x - x0 + ink.shape[1]]
            under[:] = ink if x >= right else _screened(under, ink)
            right = max(right, x + ink.shape[1])
        return x0, y0, total

    def _glyph(self, char: str) -> tuple[int, int, np.ndarray]:
        if char not in self._inks:
            mask, (left, top) = self.font.getmask2(char, "L", anchor="ls")
            self._inks[char] = left, top, np.array(mask, dtype=np.uint8).reshape(mask.size[::-1])
        return self._inks[char]

    def _kern(self, pair: str) -> int:
        if pair not in self._kerns:
            self._kerns[pair] = round(64 * (self.font.getlength(pair) - self.width(pair)))
        return self._kerns[pair]


class _Widths(dict):
    """The advance of each character that was asked for."""

    def __init__(self, font: ImageFont.FreeTypeFont):
        super().__init__()
        self._font = font

    def __missing__(self, char: str) -> float:
        self[char] = self._font.getlength(char)
        return self[char]


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
    """Return a font ("" for Pillow's own) at a size in pixels; `boldness` thickens its strokes by so many pixels."""
    return Face(path, size, boldness)


def _screened(under: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Return what Pillow makes of the ink of a character where there is ink already."""
    product = under.astype(np.uint32) * (255 - ink) + 128
    return ink + (((product >> 8) + product) >> 8).astype(np.uint8)


@functools.cache
def _is_kerned(path: str) -> bool:
    """Return whether a font has the only table of kerning that FreeType reads; Pillow's own ("") has none."""
    if path == "":
        return False
    with open(path, "rb") as file:
        num_tables = int.from_bytes(file.read(12)[4:6], "big")
        tables = file.read(16 * num_tables)
    return b"kern" in (tables[start : start + 4] for start in range(0, len(tables), 16))
