"""Draw a chart's contents in a given look, and tell where everything printed stands."""

from dataclasses import dataclass
from random import Random

from PIL import Image

from vlm.training.synthetic.boxes import Box, Character, shrunk
from vlm.training.synthetic.canvas import Canvas, Colour, DoesNotFit, age, rescale
from vlm.training.synthetic.layouts import LAYOUTS
from vlm.training.synthetic.layouts.furniture import (
    place_footer,
    place_header,
    place_legend,
    place_notes,
    place_toolbar,
)
from vlm.training.synthetic.layouts.sheet import Sheet
from vlm.training.synthetic.layouts.surroundings import place_surroundings
from vlm.training.synthetic.spec import ChartSpec
from vlm.training.synthetic.style import Style, colour_name

MARK_NOUNS = {"line": "point", "area": "point", "scatter": "point", "pie": "slice", "table": "row"}


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One bar, point or slice, or a cell of a table.

    value: as printed, or as it would be where `Chart.values_printed` is false.
    value_box: of the printed value, or of the mark's tip where no value is printed.
    series_box: of the legend's entry, None in a chart of one series.
    shade: its colour as (red, green, blue).
    """

    series: str
    label: str
    value: str
    number: float
    colour: str
    shade: Colour
    label_box: Box
    value_box: Box
    mark_box: Box
    series_box: Box | None = None


# Without eq, so that what is worked out of a chart can be cached.
@dataclass(frozen=True, kw_only=True, eq=False)
class Chart:
    """A drawn chart: the picture, every printed character (spaces are not printed), and the table behind it.

    Boxes are (x0, y0, x1, y1) in pixels of `image`. Values that are not printed can only be read off the axis.
    marks: those whose label is printed, and their value where values are; `complete` says whether these are all.
    stacked: bars are parts of longer ones, so that the largest bar is none of `marks`.
    """

    image: Image.Image
    kind: str
    spec: ChartSpec
    characters: tuple[Character, ...]
    title_box: Box | None
    marks: tuple[Mark, ...]
    values_printed: bool
    stacked: bool

    @property
    def complete(self) -> bool:
        """Whether every value of the table has its mark, so that marks may be counted and the highest be asked for."""
        return len(self.marks) == len(self.spec.labels) * len(self.spec.series_names)

    @property
    def mark_noun(self) -> str:
        """What a mark of this kind of chart is called."""
        return MARK_NOUNS.get(self.kind, "bar")

    @property
    def title(self) -> str:
        return self.spec.title

    @property
    def series(self) -> dict[str, dict[str, str]]:
        """The table as printed: series name ("" where there is only one) to label to value."""
        table: dict[str, dict[str, str]] = {}
        for mark in self.marks:
            table.setdefault(mark.series, {})[mark.label] = mark.value
        return table


def render(spec: ChartSpec, style: Style, random: Random, *, blank: bool = False) -> Chart:
    """Draw a chart of `style.shape`, or with `blank` only lay it out; raises `DoesNotFit` before anything is drawn."""
    height, width = (round(side * style.scale) for side in style.shape)
    margin = style.margin * style.scale
    sheet = Sheet(Canvas(width, height, style.background), spec, style, margin, margin, width - margin, height - margin)
    place_surroundings(sheet)
    if style.toolbar:
        place_toolbar(sheet)
    place_header(sheet)
    place_footer(sheet)
    place_notes(sheet)
    place_legend(sheet)
    if sheet.bottom - sheet.top < 70 * style.scale or sheet.right - sheet.left < 90 * style.scale:
        raise DoesNotFit
    LAYOUTS[style.layout or style.kind](sheet)
    if blank:
        return _chart(sheet, Image.new("RGB", style.shape[::-1], style.background))
    image = sheet.canvas.finish()
    if style.scale != 1:
        image = image.resize(style.shape[::-1], style.resample)
    if style.softened > 1:
        image = rescale(image, style.softened)
    return _chart(sheet, age(image, random) if style.aged else image)


def _chart(sheet: Sheet, image: Image.Image) -> Chart:
    spec, style = sheet.spec, sheet.style

    def shrink(box: Box | None) -> Box | None:
        return box and shrunk(box, style.scale)

    marks = [
        Mark(
            series=name,
            label=label,
            value=spec.printed[row][column],
            number=spec.numbers[row][column],
            colour=colour_name(sheet.colour(row, column)),
            shade=sheet.colour(row, column),
            label_box=shrink(sheet.label_boxes[column]),
            value_box=shrink(sheet.value_boxes[row, column]),
            mark_box=shrink(sheet.mark_boxes[row, column]),
            series_box=shrink(sheet.series_boxes.get(row)),
        )
        for row, name in enumerate(spec.series_names)
        for column, label in enumerate(spec.labels)
        if column in sheet.label_boxes and (row, column) in sheet.value_boxes
    ]
    characters = (Character(char, x / style.scale, y / style.scale) for char, x, y in sheet.canvas.characters)
    return Chart(
        image=image,
        kind=style.kind,
        spec=spec,
        characters=tuple(characters),
        title_box=shrink(sheet.title_box),
        marks=tuple(marks),
        values_printed=style.values_printed,
        stacked=style.stacked or style.layout == "stacked rows",
    )
