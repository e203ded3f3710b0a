"""Multiple choice without reading a reply: the option that the model finds most likely.

The runner measures it, with `VLM.score(messages, options)`, and keeps it in the record as `option_scores`: a list of
(logprob, num_tokens), one an option, in the options' order, None for a letter that is not offered. Without it these
scorers do not apply. The scores belong to the texts as they were asked for, letters or option texts; the sum favours
short texts, the mean does not.
"""

import math
from collections.abc import Callable

from eval.scorers.verdict import Case, OptionScore, Scorer, Verdict, right


def _most_likely(worth: Callable[[OptionScore], float]) -> Callable[[Case], Verdict | None]:
    """The rule that takes the option of the highest `worth`; a tie is no choice."""

    def rule(case: Case) -> Verdict | None:
        if not case.option_scores or len(case.option_scores) != len(case.options):
            return None
        pairs = zip(case.option_scores, case.options, strict=True)
        worths = [worth(score) if score and option else -math.inf for score, option in pairs]
        best = max(worths)
        if worths.count(best) != 1:
            return Verdict.unparsed()
        letter = case.letters[worths.index(best)]
        return right(letter in case.targets, letter)

    return rule


SCORERS = (
    Scorer(
        family="multiple_choice",
        name="likelihood",
        source="Sightline",
        rule=_most_likely(lambda score: score.logprob),
    ),
    Scorer(
        family="multiple_choice",
        name="likelihood_mean",
        source="Sightline",
        rule=_most_likely(lambda score: score.logprob / score.num_tokens),
    ),
)
