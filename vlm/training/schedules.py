"""The learning rate over a run, as a share of its peak: a function of the step alone, so that nothing is stored."""

import math
from typing import Literal


def share_of_peak(
    step: int,
    *,
    num_steps: int,
    num_warmup: int,
    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine",
    final_share: float = 0.0,
    decay_share: float = 0.2,
) -> float:
    """Return the learning rate of `step`, counted from 0, as a share of the peak.

    It rises along a line over `num_warmup` steps and reaches the peak at the last of them (at the first step of all
    without any); then it falls to `final_share`, where a step after the last would be, so that none is wasted: along a
    line, along half a cosine, or ("wsd": warm up, stay, decay) along a line in the last `decay_share` of the run.
    "constant" stays. Source of "wsd": Hu et al., arXiv 2404.06395, section 4.
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    peak = max(num_warmup - 1, 0)
    if name == "wsd":
        peak = max(peak, round(num_steps * (1 - decay_share)) - 1)
    if name == "constant" or step <= peak:
        return 1.0
    done = (step - peak) / (num_steps - peak)
    falling = (1 + math.cos(math.pi * done)) / 2 if name == "cosine" else 1 - done
    return final_share + (1 - final_share) * falling
