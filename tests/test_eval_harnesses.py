"""Our model inside lmms-eval and lm-evaluation-harness, and what they write of it in ours: equal to the last sample.

Where their releases are not installed, what runs them is skipped and says so.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.prediction_files import read_predictions
from eval.prediction_files.taking_over import agreement
from tests.eval_data_sets import picture, write_parquet
from tests.eval_models import save_tiny_model
from vlm import VLM, GenerationConfig

ROOT = Path(__file__).parent.parent
NUM, NUM_TOKENS = 6, 5


def needs(module: str, name: str):
    found = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not found, reason=f"not run: {name} (pip install {module.replace('_', '-')})")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny model, and a place where our entry points are found, as an installed package has them."""
    save_tiny_model(tmp_path / "tiny")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("entry-points", {})
    info = tmp_path / "site" / "sightline_points-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sightline-points\nVersion: 1.0\n")
    lines = [
        line
        for group, own in points.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in own.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def write_data(folder: Path, prompt: str, columns: dict[str, str]) -> list[str]:
    """Write questions of which every other is right, if the model is asked `prompt`; return the model's own replies."""
    model = VLM.from_pretrained(folder / "tiny")
    config = GenerationConfig(max_new_tokens=NUM_TOKENS)
    rows, replies = [], []
    for number in range(NUM):
        question = f"Value {number}?"
        content = picture(number // 2, (40, 30))
        reply = model.answer(content, prompt.format(question), config=config).text
        replies.append(reply)
        gold = (reply.strip() or "x") if number % 2 else "nothing of the kind"
        row = {"image": {"bytes": content, "path": None}, "question": question, "answer": gold}
        rows.append({columns.get(name, name): value for name, value in row.items()} | {"type": "human_test"})
    path = write_parquet(folder / "data" / "test.parquet", rows)
    # What tells the library `datasets` that the column holds pictures.
    features = {name: {"dtype": "string", "_type": "Value"} for name in rows[0]} | {"image": {"_type": "Image"}}
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return replies


def run(folder: Path, samples: str, *arguments: str) -> Path:
    """Run a harness and return its file of samples; lmms-eval ends with status 0 whatever happens."""
    path = os.pathsep.join([str(folder / "site"), str(ROOT), *filter(None, sys.path)])
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **offline, "PYTHONPATH": path, "TQDM_DISABLE": "1"},
        timeout=600,
    )
    written = list((folder / "out").rglob(samples))
    assert (done.returncode, len(written)) == (0, 1), (done.stdout + done.stderr)[-3000:]
    return written[0]


LMMS_TASK = """
task: chartqa_small
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.chartqa_doc_to_visual
doc_to_text: !function utils.chartqa_doc_to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {num_tokens}, temperature: 0, do_sample: false}}
process_results: !function utils.chartqa_process_results
metric_list:
  - {{metric: relaxed_overall, aggregation: mean, higher_is_better: true}}
lmms_eval_specific_kwargs:
  default: {{pre_prompt: "", post_prompt: "\\nAnswer the question with a single word."}}
metadata:
  - version: 0.0
"""


@needs("lmms_eval", "lmms-eval")
@pytest.mark.parametrize("kind", [(), ("--force_simple",)], ids=["chat", "simple"])
def test_lmms_eval_s_tasks_run_on_our_model_and_its_figures_are_ours(folder, kind):
    replies = write_data(folder, "{}\nAnswer the question with a single word.", {})
    place = folder / "tasks"
    place.mkdir()
    (place / "utils.py").write_text("from lmms_eval.tasks.chartqa.utils import *\n")
    (place / "chartqa_small.yaml").write_text(
        LMMS_TASK.format(data=folder / "data" / "test.parquet", num_tokens=NUM_TOKENS)
    )
    arguments = ("--model", "sightline", "--model_args", f"pretrained={folder / 'tiny'}", "--tasks", "chartqa_small")
    arguments += ("--include_path", str(place), "--log_samples", "--output_path", str(folder / "out"))
    samples = run(folder, "*_samples_chartqa_small.jsonl", "-m", "lmms_eval", *arguments, "--batch_size", "4", *kind)
    found = read_predictions(samples)
    assert (found.harness, found.task) == ("lmms-eval", "chartqa")
    assert [answer.record.prediction for answer in found.answers] == replies
    (both,) = agreement(found)
    assert (both["figure"], both["scorer"], both["n"], both["differ"]) == ("relaxed_overall", "lmms_eval", NUM, [])
    assert both["theirs"] == both["ours"] == 0.5
    (results,) = (folder / "out").rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["chartqa_small"]["relaxed_overall,none"] == both["ours"]


LM_TASK = """
task: chartqa_small
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_image: [image]
doc_to_text: "<image>{{{{query}}}} Shortly."
doc_to_target: "{{{{label}}}}"
generation_kwargs: {{until: [], temperature: 0.0, do_sample: false, max_gen_toks: {num_tokens}}}
metric_list:
  - {{metric: !function utils.anywhere_accuracy, aggregation: mean, higher_is_better: true}}
  - {{metric: !function utils.relaxed_accuracy, aggregation: mean, higher_is_better: true}}
"""


@needs("lm_eval", "lm-eval")
@pytest.mark.parametrize("chat", [(), ("--apply_chat_template",)], ids=["plain", "chat"])
def test_lm_eval_s_tasks_run_on_our_model_and_its_figures_are_ours(folder, chat):
    replies = write_data(folder, "{} Shortly.", {"question": "query", "answer": "label"})
    place = folder / "tasks"
    place.mkdir()
    (place / "utils.py").write_text("from lm_eval.tasks.chartqa.utils import *\n")
    data = folder / "data" / "test.parquet"
    (place / "chartqa_small.yaml").write_text(LM_TASK.format(data=data, num_tokens=NUM_TOKENS))
    arguments = ("--model", "sightline", "--model_args", f"pretrained={folder / 'tiny'}", "--tasks", "chartqa_small")
    arguments += ("--include_path", str(place), "--log_samples", "--output_path", str(folder / "out"))
    command = ("-m", "eval.harnesses.lm_eval", *arguments, "--batch_size", "4", *chat)
    samples = run(folder, "samples_chartqa_small_*.jsonl", *command)
    found = read_predictions(samples)
    assert (found.harness, found.task) == ("lm-evaluation-harness", "chartqa")
    assert [answer.record.prediction for answer in found.answers] == replies
    both = agreement(found)
    assert {each["figure"] for each in both} == {"anywhere_accuracy", "relaxed_accuracy"}
    assert all(each["n"] == NUM and each["differ"] == [] for each in both)
