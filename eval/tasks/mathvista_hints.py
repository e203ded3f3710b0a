"""How MathVista's questions say what kind of answer they want, in the words of lmms-eval and of its authors.

Source: lmms-eval, lmms_eval/tasks/mathvista/mathvista_evals.py (`create_one_query`).
"""

from eval.records import Sample

_SHORT_HINTS = {
    "choice": "Answer with the option's letter from the given choices directly.",
    "integer": "Answer the question using a single integer number.",
    "float-1": "Answer the question using a single floating-point number with one decimal place.",
    "float-2": "Answer the question using a single floating-point number with two decimal places.",
    "list": "Answer the question using a Python list.",
}
_HINTS = {
    "choice": "and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float-1": "requiring a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, "
    "1.4, at the end.",
    "float-2": "requiring a floating-point number with two decimal places and provide the final value, e.g., 1.23, "
    "1.34, 1.45, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at "
    "the end.",
}


def _form(sample: Sample) -> str:
    """Return what kind of answer is asked for, as both tables above tell kinds apart."""
    kind = sample.fields.get("answer_type")
    return "choice" if sample.options else f"float-{sample.fields.get('precision')}" if kind == "float" else str(kind)


def with_unit(sample: Sample) -> str:
    """Return the question with the unit of its answer."""
    unit = sample.fields.get("unit")
    return f"{sample.question} (Unit: {unit})" if unit else sample.question


def short_hint(sample: Sample) -> str:
    """Return the template of lmms-eval's task mathvista_testmini_format."""
    options = "{options}" if sample.options else ""
    return "\n".join(filter(None, ["{question}", options, _SHORT_HINTS.get(_form(sample))]))


def hint_last(sample: Sample) -> str:
    """Return the template of lmms-eval's task mathvista_testmini_cot."""
    return "\n".join(filter(None, [_asked(sample), _hint(sample)]))


def hint_first(sample: Sample) -> str:
    """Return MathVista's own template, which VLMEvalKit's file has in place of the question."""
    if "Hint: " in sample.question:
        return "{question}"
    return "\n".join(filter(None, [_hint(sample), _asked(sample)]))


def _asked(sample: Sample) -> str:
    return "Question: {question}" + ("\nChoices:\n{options}" if sample.options else "")


def _hint(sample: Sample) -> str:
    hint = _HINTS.get(_form(sample))
    return f"Hint: Please answer the question {hint}" if hint else ""
