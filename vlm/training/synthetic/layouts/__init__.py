"""How the contents of a chart lie in the area that is left by what stands around them: one function a layout.

`surroundings` and `furniture` place the page, the title, the legend and the notes.
"""

from collections.abc import Callable

from vlm.training.synthetic.layouts.pie import lay_pie, lay_pie_with_legend
from vlm.training.synthetic.layouts.scatter import lay_scatter
from vlm.training.synthetic.layouts.sheet import Sheet
from vlm.training.synthetic.layouts.sideways import lay_sideways
from vlm.training.synthetic.layouts.survey import lay_panels, lay_stacked_rows, lay_two_sided_rows
from vlm.training.synthetic.layouts.table import lay_table
from vlm.training.synthetic.layouts.upright import lay_upright

LAYOUTS: dict[str, Callable[[Sheet], None]] = {
    "bar": lay_upright,
    "line": lay_upright,
    "area": lay_upright,
    "horizontal bar": lay_sideways,
    "stacked rows": lay_stacked_rows,
    "two-sided rows": lay_two_sided_rows,
    "panels": lay_panels,
    "pie": lay_pie,
    "pie with legend": lay_pie_with_legend,
    "scatter": lay_scatter,
    "table": lay_table,
}
