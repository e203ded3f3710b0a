"""Draw the nine example charts and write their questions: `python examples/draw_examples.py`.

The charts are drawn with matplotlib, not with the renderer that the small reader is trained on, in styles that people
use. matplotlib is needed for this script alone. All numbers are invented.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
DPI = 100
# Else matplotlib's own: 6.4 by 4.8 inches, print of 10 points.
SETTINGS = {"svg.hashsalt": "examples"}

CHARTS = (
    {
        "file": "lighthouse_visitors.png",
        "style": {"axes.spines.top": False, "axes.spines.right": False},
        "kind": "bar",
        "title": "Visitors to the lighthouse",
        "labels": ["2015", "2016", "2017", "2018", "2019"],
        "values": [412, 538, 495, 627, 703],
        "colour": "steelblue",
        "asked": ("2017", "How many visitors came in 2017?"),
        "word": "year",
    },
    {
        "file": "harbour_cargo.png",
        "style": {},
        "kind": "barh",
        "title": "Cargo by harbour (kt)",
        "labels": ["Bergen", "Gdansk", "Trieste", "Antwerp", "Malaga"],
        "values": [38.2, 46.9, 27.5, 81.4, 19.6],
        "colour": "teal",
        "asked": ("Trieste", "What is the value of Trieste?"),
        "word": "harbour",
    },
    {
        "file": "bakery_orders.png",
        "style": {"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False},
        "kind": "bar",
        "title": "Bakery orders last week",
        "labels": ["Rolls", "Bagels", "Muffins", "Pies"],
        "values": [1240, 860, 975, 310],
        "format": "{:,}",
        "colour": "peru",
        "hide_axis": True,
        "asked": ("Muffins", "What is the value for Muffins?"),
        "word": "product",
    },
    {
        "file": "river_level.png",
        "style": {"axes.grid": True, "grid.color": "0.88"},
        "kind": "line",
        "title": "River level in metres",
        "labels": ["Jan", "Feb", "Mar", "Apr", "May", "Jun"],
        "values": [2.4, 3.1, 4.6, 3.8, 2.9, 1.7],
        "format": "{:.1f}",
        "colour": "navy",
        "asked": ("Apr", "What was the river level in Apr?"),
        "word": "month",
    },
    {
        "file": "commute.png",
        "style": {"axes.spines.top": False, "axes.spines.right": False, "axes.spines.bottom": False},
        "kind": "barh",
        "title": "How people travel to work",
        "labels": ["Car", "Tram", "Bicycle", "On foot", "Ferry"],
        "values": [44, 23, 18, 11, 4],
        "format": "{}%",
        "colour": "darkkhaki",
        "hide_axis": True,
        "title_left": True,
        "asked": ("Bicycle", "What percentage is shown for Bicycle?"),
        "word": "category",
    },
    {
        "file": "library_loans.png",
        "style": {"axes.facecolor": "0.93", "axes.grid": True, "grid.color": "white", "axes.edgecolor": "0.93"},
        "kind": "bar",
        "title": "Library loans by branch",
        "labels": ["Elm Hill", "Station", "Castle", "Riverside"],
        "values": [5210, 7384, 2967, 6105],
        "colour": "indianred",
        "asked": ("Castle", "How many loans for Castle?"),
        "word": "branch",
    },
    {
        "file": "tractor_sales.png",
        "style": {"axes.grid": True, "grid.linestyle": ":"},
        "kind": "line",
        "title": "Tractor sales, 2008 to 2013",
        "labels": ["2008", "2009", "2010", "2011", "2012", "2013"],
        "values": [64, 41, 52, 70, 88, 79],
        "colour": "darkgreen",
        "asked": ("2011", "How many tractor sales in 2011?"),
        "word": "year",
    },
    {
        "file": "peak_heights.png",
        "style": {"font.family": "serif"},
        "kind": "barh",
        "title": "Height of peaks (m)",
        "labels": ["Eiger", "Rysy", "Etna", "Snowdon", "Teide", "Olympus"],
        "values": [3967, 2501, 3357, 1085, 3715, 2918],
        "colour": "slategray",
        "asked": ("Etna", "What is the value of Etna?"),
        "word": "peak",
    },
    {
        "file": "pet_survey.png",
        "style": {"axes.spines.top": False, "axes.spines.right": False},
        "kind": "bar",
        "title": "Favourite pets in class 4b",
        "labels": ["Dogs", "Cats", "Rabbits", "Turtles", "Parrots"],
        "values": [12, 9, 6, 2, 3],
        "colours": ["tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple"],
        "asked": ("Rabbits", "What is the value of Rabbits?"),
        "word": "pet",
    },
)


def draw(chart: dict) -> None:
    """Draw one chart as a PNG of 640 × 480 pixels beside this script."""
    texts = [chart.get("format", "{}").format(value) for value in chart["values"]]
    colour = chart.get("colours") or chart["colour"]
    with plt.rc_context(SETTINGS | chart["style"]):
        figure, axes = plt.subplots(dpi=DPI, layout="constrained")
        axes.set_axisbelow(True)
        if chart["kind"] == "line":
            axes.plot(chart["labels"], chart["values"], color=colour, marker="o", markersize=3.5)
            for i, text in enumerate(texts):
                axes.annotate(text, (i, chart["values"][i]), (0, 5), textcoords="offset points", ha="center")
        else:
            bars = getattr(axes, chart["kind"])(chart["labels"], chart["values"], 0.65, color=colour)
            axes.bar_label(bars, texts, padding=2)
        sideways = chart["kind"] == "barh"
        if sideways:
            axes.invert_yaxis()
            axes.set_xlim(0, 1.2 * max(chart["values"]))
        else:
            axes.set_ylim(0, 1.15 * max(chart["values"]))
        if chart.get("hide_axis"):
            (axes.xaxis if sideways else axes.yaxis).set_visible(False)
        axes.set_title(chart["title"], loc="left" if chart.get("title_left") else "center", fontweight="bold")
        figure.savefig(FOLDER / chart["file"], metadata={"Software": None})
        plt.close(figure)


def questions(chart: dict, turn: int) -> list[dict[str, str]]:
    """Return four questions: title, a named value, and two of highest, lowest and count in turn."""
    table = dict(zip(chart["labels"], chart["values"], strict=True))
    asked, wording = chart["asked"]
    marks = "points" if chart["kind"] == "line" else "bars"
    others = [
        {"question": f"Which {chart['word']} has the highest value?", "answer": max(table, key=table.get)},
        {"question": f"Which {chart['word']} has the lowest value?", "answer": min(table, key=table.get)},
        {"question": f"How many {marks} are there?", "answer": str(len(table))},
    ]
    del others[turn % 3]
    return [
        {"question": "What is the title of the chart?", "answer": chart["title"]},
        {"question": wording, "answer": str(table[asked])},
        *others,
    ]


def main() -> None:
    for chart in CHARTS:
        draw(chart)
    asked = [{"image": chart["file"], "questions": questions(chart, turn)} for turn, chart in enumerate(CHARTS)]
    (FOLDER / "questions.json").write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
