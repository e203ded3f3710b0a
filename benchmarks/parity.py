"""The parity table: ours and transformers beside Meta's own code, on small random models with open gates, in float32.

    python -m benchmarks.parity

Each figure is the largest difference over the largest value of Meta's. Needs what `make test` installs.
"""

import argparse
import logging
import platform
import warnings

import torch
import transformers

from tests.oracles import hf, meta, ours
from tests.oracles.cases import CONFIGS, META_CONFIGS, Case, build_case, prompt_names
from tests.oracles.weights import random_hf_state
from tests.test_oracles import difference, used_tiles

TWINS = {
    "Sightline": (ours.build, ours),
    "transformers, repaired": (hf.repaired, hf),
    "transformers, stock": (hf.stock, hf),
}


def compare(answers, model, metas, case: Case) -> dict[str, float]:
    """Return the difference of features, image tokens, the worst layer and the logits."""
    row = {"features": 0.0, "image tokens": 0.0}
    if case.images:
        for name in row:
            found, expected = (
                used_tiles(getattr(module, name.replace(" ", "_"))(which, case.images), case.images)
                for module, which in ((answers, model), (meta, metas))
            )
            row[name] = difference(found, expected)
    layers = zip(answers.layer_outputs(model, case), meta.layer_outputs(metas, case), strict=True)
    row["layers"] = max(difference(*pair) for pair in layers)
    row["logits"] = difference(answers.logits(model, case), meta.logits(metas, case))
    return row


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")  # Meta's calls, not ours to mend
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"largest difference from llama-models over the largest value; {versions}\n")
    columns = ("features", "image tokens", "layers", "logits")
    worst = {twin: dict.fromkeys(columns, 0.0) for twin in TWINS}
    least = dict.fromkeys(TWINS, 1e9)
    print(f"{'config':<12}{'prompt':<28}{'logits of':<26}" + "".join(f"{name:>14}" for name in columns))
    for config in META_CONFIGS:
        state = random_hf_state(CONFIGS[config])
        metas = meta.build(*state)
        models = {twin: build(*state) for twin, (build, _) in TWINS.items()}
        for prompt in prompt_names(CONFIGS[config]):
            case = build_case(CONFIGS[config], prompt)
            for twin, (_, answers) in TWINS.items():
                row = compare(answers, models[twin], metas, case)
                print(f"{config:<12}{prompt:<28}{twin:<26}" + "".join(f"{row[name]:>14.1e}" for name in columns))
                worst[twin] = {name: max(worst[twin][name], row[name]) for name in columns}
                if case.images:
                    least[twin] = min(least[twin], row["logits"])
    print(f"\n{'worst of all':<40}{'':<26}" + "".join(f"{name:>14}" for name in columns))
    for twin, row in worst.items():
        print(f"{'':<40}{twin:<26}" + "".join(f"{row[name]:>14.1e}" for name in columns))
    print(f"\nstock transformers' logits with an image: {least['transformers, stock']:.2f} away at the least")


if __name__ == "__main__":
    main()
