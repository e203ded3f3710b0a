"""What a run learns: each objective makes rows of samples, and a loss of rows."""

from vlm.training.objectives.next_token import NextToken
from vlm.training.objectives.objective import Objective
from vlm.training.objectives.preferences import DirectPreference
from vlm.training.objectives.replies import SupervisedReplies

__all__ = ["DirectPreference", "NextToken", "Objective", "SupervisedReplies"]
