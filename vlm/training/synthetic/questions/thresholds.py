"""A number between values, for questions about what is above or below it."""

import re
from collections.abc import Sequence
from random import Random

from vlm.training.synthetic.questions.question import number_text
from vlm.training.synthetic.words import Split, in_split

MAX_TRIES = 12


def threshold(random: Random, numbers: Sequence[float], split: Split) -> str | None:
    """Return a number of `split` near or between `numbers` that is none of them, as round as it can be.

    None where there are no numbers, or none is found.
    """
    if not numbers:
        return None
    ordered = sorted(numbers)
    margin = 0.2 * max(map(abs, numbers))
    ends = [ordered[0] - margin, *ordered, ordered[-1] + margin]
    for attempt in range(MAX_TRIES):
        place = random.randrange(1 if attempt < MAX_TRIES // 2 else 0, len(ends) - 1)
        low, high = ends[place], ends[place + 1]
        decimals = next((places for places in range(-6, 3) if 10.0**-places < (high - low)), 2)
        text = number_text(round(random.uniform(low, high), decimals), max(decimals, 0))
        if low < float(text) < high and in_split(re.sub(r"\D", "", text), split):
            return text
    return None
