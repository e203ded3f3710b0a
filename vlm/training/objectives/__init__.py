"""What a run learns: each objective makes rows of samples, and a loss of rows."""

from vlm.training.objectives.next_token import NextToken
from vlm.training.objectives.objective import Objective
from vlm.training.objectives.policy_gradient import GRPO, PPO, PolicyGradient
from vlm.training.objectives.preferences import DirectPreference
from vlm.training.objectives.replies import SupervisedReplies
from vlm.training.objectives.rewards import FunctionReward, ModelReward
from vlm.training.objectives.start_model import StartModel

__all__ = [
    "GRPO",
    "PPO",
    "DirectPreference",
    "FunctionReward",
    "ModelReward",
    "NextToken",
    "Objective",
    "PolicyGradient",
    "StartModel",
    "SupervisedReplies",
]
