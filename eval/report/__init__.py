"""The report: one HTML file with the scores, their errors, and every answer, which opens offline.

It is made of the run folders and the pictures alone. In the order in which things flow: `run` reads and judges a
folder, `samples` puts the runs side by side, `picture_files` and `pictures` find and shrink what was shown, `facets`
says what samples are grouped by, `scores` and `task_section` count, `page_data` is what the list of samples holds, and
`page` puts it together.
"""

from eval.report.page import write_report

__all__ = ["write_report"]
