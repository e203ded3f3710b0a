"""lm-evaluation-harness with our model: importing this registers "sightline", running it is their command line.

    python -m eval.harnesses.lm_eval --model sightline --tasks chartqa_llama --apply_chat_template

Their release on PyPI looks for no models in other packages, so that `lm_eval` alone cannot know ours.

Source: its package on PyPI, lm_eval/api/registry.py.
"""

from lm_eval.api.registry import model_registry

NAME = "sightline"
if NAME not in model_registry:
    model_registry.register(NAME, target="eval.harnesses.lm_eval_model:SightlineLM")

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
