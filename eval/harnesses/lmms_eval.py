"""What lmms-eval finds under the entry point `lmms_eval.models`: our model's name, and the classes that stand for it.

    python -m lmms_eval --model sightline --model_args pretrained=./Llama-3.2-11B-Vision-Instruct --tasks chartqa

Source: its package on PyPI, lmms_eval/models/registry_v2.py (load_entrypoint_manifests).
"""


def manifest():
    """Return the entry of lmms-eval's registry."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="sightline",
        simple_class_path="eval.harnesses.lmms_eval_model.SightlineSimple",
        chat_class_path="eval.harnesses.lmms_eval_model.SightlineChat",
    )
