"""The wider variety of charts: which kinds there are, how often each is drawn, and how it looks.

A kind draws its contents, then changes what it must of a look that is drawn as for any chart.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import NamedTuple

from vlm.training.synthetic import contents
from vlm.training.synthetic.layouts.sheet import brightness
from vlm.training.synthetic.spec import ChartSpec, draw_spec
from vlm.training.synthetic.style import Style
from vlm.training.synthetic.words import Split

PAGE_SHARE, SOFTENED_SHARE, UNIT_SHARE = 0.12, 0.12, 0.15
"""Of the charts that are shown as part of a page, shrunk and enlarged again, or given a unit behind their values."""
LEAST_CAPITAL = 5.0
"""Height in pixels that capitals keep when a picture is shrunk and enlarged again."""
PLOT_FILLS = ((222, 234, 241), (235, 235, 235), (245, 247, 250))
LIGHT_GRID = (225, 225, 225)


class Kind(NamedTuple):
    """How one kind of chart comes about.

    share: how often it is drawn, relative to the others.
    contents: draws them from (random, split, difficulty, shape).
    look: changes a drawn style to suit the contents.
    most_series: that its contents can have.
    """

    share: float
    contents: Callable[[Random, Split, float, tuple[int, int]], ChartSpec]
    look: Callable[[Random, ChartSpec, Style], Style]
    most_series: int = 2


def choose_kind(random: Random, *, several_series: bool) -> str:
    """Draw the name of a kind, or with `several_series` of one that can have them."""
    names = [name for name, kind in KINDS.items() if kind.most_series > 1 or not several_series]
    return random.choices(names, weights=[KINDS[name].share for name in names])[0]


def dress(random: Random, name: str, spec: ChartSpec, style: Style) -> tuple[ChartSpec, Style]:
    """Return contents and style as charts of a kind have them, some of them with a unit, on a page, or softened."""
    if name != "as ever" and random.random() < UNIT_SHARE:
        spec = contents.with_unit(random, spec)
    style = KINDS[name].look(random, spec, style)
    if random.random() < PAGE_SHARE:
        spec, style = _on_a_page(random, spec, style)
    if random.random() < SOFTENED_SHARE:
        capital = min(style.label_face.cap_height, style.small_face.cap_height) / style.scale
        style = replace(style, softened=min(random.uniform(1.15, 1.8), capital / LEAST_CAPITAL))
    return spec, style


def _on_a_page(random: Random, spec: ChartSpec, style: Style) -> tuple[ChartSpec, Style]:
    """Return a chart with margins, or with text above and below, or in a browser."""
    height, width = style.shape
    page = tuple(random.uniform(0, 0.08) * side for side in (width, height, width, height))
    draw = random.random()
    if draw < 0.4:
        return spec, replace(style, page=page)
    spec = contents.on_a_page(random, spec)
    left, above, right, below = page
    above, below = above + random.choice((0, 0.08)) * height, below + random.choice((0, 0.08)) * height
    return spec, replace(style, page=(left, above, right, below), browser=draw < 0.7)


def _plain(random: Random, spec: ChartSpec, style: Style, kind: str, *, printed: float) -> Style:
    """Return the style of a kind without what belongs to others; values are printed in a share `printed` of charts."""
    values_printed = random.random() < printed
    ticks = not values_printed or random.random() < 0.6
    dark = brightness(style.background) < 60
    return replace(
        style,
        kind=kind,
        stacked=False,
        colours_by_label=style.colours_by_label and kind not in ("line", "area"),  # these are of one colour
        legend=random.choice(("rows", "rows", "right")),
        long_subtitle=bool(spec.notes),
        upward_subtitle=style.upward_subtitle and not spec.notes,
        values_printed=values_printed,
        ticks_printed=ticks,
        grid_colour=(style.grid_colour or LIGHT_GRID) if ticks and not dark else None,
    )


def _as_ever(random: Random, spec: ChartSpec, style: Style) -> Style:
    right = len(spec.series_names) > 1 and random.random() < 0.3
    by_label = style.colours_by_label and style.kind != "line"
    return replace(style, legend="right" if right else "rows", colours_by_label=by_label)


def _turned(random: Random, spec: ChartSpec, style: Style) -> Style:
    kind = random.choice(("bar", "bar", "line"))
    style = _plain(random, spec, style, kind, printed=0.8)
    return replace(style, label_angle=random.choice((30, 45, 45, 45, 60, 90, 90)), cut_axis=_cut(random, kind))


def _signed(random: Random, spec: ChartSpec, style: Style) -> Style:
    kind = random.choice(("bar", "bar", "horizontal bar", "horizontal bar", "line"))
    return replace(_plain(random, spec, style, kind, printed=0.85), headroom=random.uniform(1.05, 1.2))


def _log_axis(random: Random, spec: ChartSpec, style: Style) -> Style:
    kind = random.choice(("bar", "line", "horizontal bar"))
    return replace(_plain(random, spec, style, kind, printed=0.6), log_axis=True, ticks_printed=True, headroom=1.0)


def _area(random: Random, spec: ChartSpec, style: Style) -> Style:
    single = len(spec.series_names) == 1
    style = _plain(random, spec, style, "area", printed=0.6 if single else 0.0)
    turned = single or random.random() < 0.4
    return replace(
        style,
        stacked=not single,
        banded=False,
        legend="rows" if single else random.choice(("ends", "rows", "right")),
        label_angle=random.choice((0, 45, 90)) if turned else 0,
        thinned_labels=0 if turned else random.choice((1, 2, 5)),
        edge_to_edge=True,
        headroom=max(style.headroom, 1.05),
    )


def _end_names(random: Random, spec: ChartSpec, style: Style) -> Style:
    """Return lines as Our World in Data, the OECD or survey publishers draw them."""
    style = _plain(random, spec, style, "line", printed=0.0)
    manner = random.choice(("data", "data", "tags", "survey"))
    style = replace(
        style,
        legend="ends",
        names_coloured=random.random() < 0.7,
        thinned_labels=random.choice((1, 2, 2, 5)),
        edge_to_edge=True,
        banded=False,
        toolbar=False,
        cut_axis=_cut(random, "line"),
        labels_left=True,
        label_angle=0,
    )
    if manner == "tags" and brightness(style.background) > 60:
        return replace(style, end_tags=True, plot_fill=random.choice(PLOT_FILLS), grid_colour=(255, 255, 255))
    if manner == "survey":
        ends = random.random() < 0.7
        return replace(style, values_printed=ends, values_at_ends=ends, ticks_printed=not ends)
    return style


def _survey_rows(random: Random, spec: ChartSpec, style: Style) -> Style:
    layouts = ["stacked rows", "stacked rows", "panels"]
    layouts += ["two-sided rows"] * 3 if len(spec.series_names) == 2 else []
    return replace(
        _plain(random, spec, style, "horizontal bar", printed=1.0),
        layout=random.choice(layouts),
        legend=random.choice(("heads", "heads", "rows")),
        names_coloured=random.random() < 0.4,
        values_inside=random.random() < 0.5,
        ruled=random.random() < 0.5,
        toolbar=False,
        title_align=0.0,
        max_slot=max(style.max_slot, 18),
    )


def _pie_with_legend(random: Random, spec: ChartSpec, style: Style) -> Style:
    style = _plain(random, spec, style, "pie", printed=1.0)
    inside = random.random() < 0.4 and not style.ring
    return replace(style, layout="pie with legend", values_inside=inside)


def _scatter(random: Random, spec: ChartSpec, style: Style) -> Style:
    fill = random.choice((None, None, *PLOT_FILLS)) if brightness(style.background) > 60 else None
    style = _plain(random, spec, style, "scatter", printed=0.0)
    return replace(
        style, cut_axis=True, plot_fill=fill, upward_subtitle=False, grid_colour=(255, 255, 255) if fill else LIGHT_GRID
    )


def _table(random: Random, spec: ChartSpec, style: Style) -> Style:
    light = brightness(style.background) > 60
    return replace(
        _plain(random, spec, style, "table", printed=1.0),
        legend="heads",
        ruled=random.random() < 0.4,
        banded=light and random.random() < 0.5,
        toolbar=False,
        upward_subtitle=False,
    )


def _cut(random: Random, kind: str) -> bool:
    """Say whether the axis may begin above zero: with lines only, for bars would lie."""
    return kind == "line" and random.random() < 0.4


KINDS = {
    "as ever": Kind(0.28, draw_spec, _as_ever),
    "turned labels": Kind(0.11, contents.named_or_dated, _turned),
    "signed": Kind(0.08, contents.signed, _signed),
    "log axis": Kind(0.05, contents.over_decades, _log_axis),
    "area": Kind(0.08, contents.over_time, _area),
    "end names": Kind(0.14, contents.lines_of_years, _end_names),
    "survey rows": Kind(0.13, contents.survey, _survey_rows),
    "pie with legend": Kind(0.04, contents.shares_of_a_hundred, _pie_with_legend, most_series=1),
    "scatter": Kind(0.04, contents.two_measures, _scatter, most_series=1),
    "table": Kind(0.05, contents.tabulated, _table),
}
