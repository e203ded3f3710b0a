"""Draw a chart's contents in a given look, and tell where everything printed stands."""

from dataclasses import dataclass
from random import Random

from PIL import Image

from vlm.training.synthetic.canvas import Box, Canvas, Character, Colour, DoesNotFit, age, wrap
from vlm.training.synthetic.layouts import LAYOUTS, Sheet
from vlm.training.synthetic.spec import ChartSpec
from vlm.training.synthetic.style import Style, colour_name


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One bar, point or slice.

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
    """

    image: Image.Image
    kind: str
    spec: ChartSpec
    characters: tuple[Character, ...]
    title_box: Box | None
    marks: tuple[Mark, ...]
    values_printed: bool

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


def render(spec: ChartSpec, style: Style, random: Random) -> Chart:
    """Draw a chart of `style.shape`; raises `DoesNotFit` before anything is drawn."""
    height, width = (round(side * style.scale) for side in style.shape)
    margin = style.margin * style.scale
    sheet = Sheet(Canvas(width, height, style.background), spec, style, margin, margin, width - margin, height - margin)
    if style.toolbar:
        _place_toolbar(sheet)
    _place_header(sheet)
    _place_footer(sheet)
    _place_legend(sheet)
    if sheet.bottom - sheet.top < 70 * style.scale or sheet.right - sheet.left < 90 * style.scale:
        raise DoesNotFit
    LAYOUTS[style.kind](sheet)
    image = sheet.canvas.finish()
    if style.scale != 1:
        image = image.resize(style.shape[::-1], style.resample)
    return _chart(sheet, age(image, random) if style.aged else image)


def _chart(sheet: Sheet, image: Image.Image) -> Chart:
    spec, style = sheet.spec, sheet.style

    def shrink(box: Box | None) -> Box | None:
        return box and tuple(side / style.scale for side in box)

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
    )


def _place_toolbar(sheet: Sheet) -> None:
    """Place the column of grey buttons that the pages of statistics publishers have on the right."""
    side, scale = 16 * sheet.style.scale, sheet.style.scale
    x = sheet.right - side
    for index in range(6):
        y = sheet.top + (3 + 22 * index) * scale
        sheet.canvas.shape("rectangle", (x, y, x + side, y + side), fill=(246, 246, 246), outline=(225, 225, 225))
        icon = (x + 5 * scale, y + 5 * scale, x + side - 5 * scale, y + side - 5 * scale)
        sheet.canvas.shape(("ellipse", "rectangle")[index % 2], icon, fill=(170, 180, 200))
    sheet.right = x - 2 * sheet.gap


def _place_header(sheet: Sheet) -> None:
    """Place title and subtitle at the top and take their height from the free area."""
    style, spec, canvas = sheet.style, sheet.spec, sheet.canvas
    x = (sheet.left, (sheet.left + sheet.right) / 2)[style.title_align > 0]
    if spec.title:
        lines = wrap(spec.title, style.title_face, sheet.right - sheet.left, 3 if style.look == "survey" else 2)
        spacing = max(style.title_face.line_height, style.line_pitch * style.scale)
        first = sheet.top + style.title_face.ascent
        sheet.title_box = canvas.lines(lines, x, first, style.title_face, style.ink, style.title_align, spacing)
        sheet.top = sheet.title_box[3] + sheet.gap
    if spec.subtitle and not style.upward_subtitle:
        box = canvas.text(
            spec.subtitle, x, sheet.top + style.small_face.ascent, style.small_face, style.faint_ink, style.title_align
        )
        sheet.top = box[3] + sheet.gap
    elif spec.subtitle:
        middle = (sheet.top + sheet.bottom) / 2
        box = canvas.upward_text(
            spec.subtitle, sheet.left + style.small_face.ascent, middle, style.small_face, style.faint_ink
        )
        sheet.left = box[2] + sheet.gap


def _place_footer(sheet: Sheet) -> None:
    if not sheet.spec.source:
        return
    face, y = sheet.style.small_face, sheet.bottom - sheet.style.small_face.descent
    right = sheet.style.source_align > 0
    x = sheet.right if right else sheet.left
    box = sheet.canvas.text(sheet.spec.source, x, y, face, sheet.style.faint_ink, float(right))
    sheet.bottom = box[1] - sheet.gap


def _place_legend(sheet: Sheet) -> None:
    """Place rows of swatches and names, above or below the plot, for charts of several series."""
    if len(sheet.spec.series_names) == 1:
        return
    style, face = sheet.style, sheet.style.label_face
    swatch, gap = 7 * style.scale, sheet.gap
    rows: list[list[tuple[int, float]]] = [[]]
    reach = sheet.left
    for row, name in enumerate(sheet.spec.series_names):
        width = swatch + gap + face.width(name)
        if sheet.left + width > sheet.right or len(rows) > 2:
            raise DoesNotFit
        if reach + width > sheet.right:
            rows.append([])
            reach = sheet.left
        rows[-1].append((row, width))
        reach += width + 4 * gap
    first = sheet.bottom - face.cap_height - (len(rows) - 1) * face.line_height
    first = first if style.legend_below else sheet.top + face.cap_height
    for line, entries in enumerate(rows):
        total = sum(width for _, width in entries) + 4 * gap * (len(entries) - 1)
        x, y = (sheet.left + sheet.right - total) / 2, first + line * face.line_height
        for row, width in entries:
            method = "ellipse" if style.round_swatches else "rectangle"
            sheet.canvas.shape(method, (x, y - swatch / 2, x + swatch, y + swatch / 2), fill=style.colours[row])
            sheet.series_boxes[row] = sheet.canvas.text(
                sheet.spec.series_names[row], x + swatch + gap, y, face, style.ink, middle=True
            )
            x += width + 4 * gap
    if style.legend_below:
        sheet.bottom = first - face.line_height
    else:
        sheet.top = first + len(rows) * face.line_height
