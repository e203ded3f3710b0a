"""Our model inside other harnesses, so that their tasks run on it.

`lmms_eval` is found by lmms-eval itself; lm-evaluation-harness finds no models of other packages, and
`python -m eval.harnesses.lm_eval` is its command line with ours added. What both ask of the model is in `guest`.
"""
