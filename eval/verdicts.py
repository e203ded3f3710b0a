"""What the scorers of a task say of one answer."""

from collections.abc import Sequence

from eval import scorers as rules
from eval import tasks
from eval.records import Prediction


def verdicts(record: Prediction, names: Sequence[str] | None = None) -> dict[str, rules.Verdict | None]:
    """Return what each of its task's scorers, or of those named, says of an answer; None where one does not apply."""
    case = case_of(record)
    judges = [judge for judge in judges_of(record.task) if names is None or judge.name in names]
    return {judge.name: judge.judge_case(case) for judge in judges}


def headline_verdict(record: Prediction) -> rules.Verdict | None:
    """Return what the task's first scorer says of an answer."""
    return verdicts(record, [judges_of(record.task)[0].name])[judges_of(record.task)[0].name]


def judges_of(task_name: str) -> list[rules.Scorer]:
    """Return the scorers of a task, the one that is reported first in front."""
    task = tasks.find(task_name)
    judges = [judge for judge in rules.for_task(task.family) if not task.scorers or judge.name in task.scorers]
    return sorted(judges, key=lambda judge: judge.name != task.headline)


def case_of(record: Prediction) -> rules.Case:
    """Return an answer and what a scorer may need to know of its question."""
    case = {**record.fields, "options": record.options, "option_scores": record.option_scores}
    offered = [f"{number}. {text}" for number, text in enumerate(record.options, start=1) if text]
    if offered:
        case["numbered"] = offered[0] in record.prompt
    return rules.Case.of(record.prediction, record.target, case)
