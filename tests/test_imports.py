"""Which way imports go, what the core does without, and that the packages under test are this repository's."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("vision_encoder", "adapters", "vlm", "eval", "app")
ALLOWED = {
    "vision_encoder": {"vision_encoder"},
    "adapters": {"adapters"},
    "vlm": {"vlm", "adapters", "vision_encoder"},
    "eval": {"eval", "vlm"},
    "app": {"app", "vlm"},
    "deploy": {"deploy", "vlm"},
    "examples": {"vlm"},
}
"""What each top-level part may import of ours. Tests and benchmarks may import everything."""


def violations(root: Path) -> list[str]:
    """Return a `file:line` for each import that goes the wrong way."""
    found = []
    for part, allowed in ALLOWED.items():
        paths = [root / f"{part}.py"] if (root / f"{part}.py").exists() else sorted((root / part).rglob("*.py"))
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for name in imported(node):
                    if name in PACKAGES and name not in allowed:
                        found.append(f"{path.relative_to(root)}:{node.lineno} imports {name}")
    return found


def circles(root: Path, package: str) -> list[str]:
    """Return the rooms of `package`, its folders and single files, that import each other, be it by way of others."""
    imports: dict[str, set[str]] = {}
    for path in (root / package).rglob("*.py"):
        room = imports.setdefault(path.relative_to(root / package).parts[0].removesuffix(".py"), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            room |= {name.split(".")[1] for name in modules(node) if name.startswith(f"{package}.")}
    reached = {room: set(others - {room}) for room, others in imports.items()}
    for _ in imports:
        for others in reached.values():
            others |= set().union(*(reached.get(other, set()) for other in others))
    return sorted(room for room, others in reached.items() if room in others)


def modules(node: ast.AST) -> list[str]:
    """Return the modules that a statement imports, by their whole names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imported(node: ast.AST) -> list[str]:
    """Return the top-level packages that a statement imports."""
    return sorted({name.split(".")[0] for name in modules(node)})


def test_imports_go_one_way():
    assert violations(ROOT) == []


@pytest.mark.parametrize("package", ["vision_encoder", "adapters", "vlm", "eval"])
def test_no_two_rooms_of_a_package_import_each_other(package):
    assert circles(ROOT, package) == []


def test_a_planted_circle_of_rooms_is_found(tmp_path):
    for file, line in {
        "run/runner.py": "from eval.backends import Question",
        "backends/local.py": "def load():\n    from eval import scoring",
        "scoring.py": "import eval.run.folder",
        "run/folder.py": "from eval.run.runner import run",
        "records.py": "import json",
        "report/page.py": "from eval.scoring import score",
    }.items():
        path = tmp_path / "eval" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    assert circles(tmp_path, "eval") == ["backends", "run", "scoring"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("vision_encoder/encoder.py", "from adapters.projector import VisionProjector"),
        ("adapters/masks.py", "import vlm.errors"),
        ("vlm/model.py", "    from eval.records import Record"),
        ("eval/run/runner.py", "import vision_encoder"),
    ],
)
def test_a_planted_import_in_the_wrong_direction_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"def function():\n    pass\n\n\nif True:\n    {line.strip()}\n")
    assert violations(tmp_path) == [f"{file}:6 imports {line.split()[1].split('.')[0]}"]


@pytest.mark.parametrize("package", ["vision_encoder", "adapters", "vlm", "eval", "app"])
def test_each_package_is_loaded_from_this_repository(package):
    assert Path(importlib.import_module(package).__file__).is_relative_to(ROOT)


def test_the_core_needs_none_of_the_optional_libraries():
    """In a fresh process in which they cannot be imported, the model is built and answers."""
    program = """
import sys
for name in (
    "gradio", "ray", "transformers", "llama_models", "fairscale", "pandas", "matplotlib", "fastapi", "uvicorn",
    "prometheus_client", "llguidance", "peft", "pyarrow", "tokenizers", "datasketch", "py3langid",
):
    sys.modules[name] = None
import adapters
adapters.lora.attach
import vlm.cli
from vlm import VLM, GenerationConfig, Tokenizer, VisionLanguageModel, preset
import numpy as np
model = VLM(VisionLanguageModel(preset("tiny")), Tokenizer.bytes_only())
picture = np.zeros((30, 40, 3), dtype=np.uint8)
print(model.answer(picture, "?", config=GenerationConfig(max_new_tokens=2)).finish_reason)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("stop", "length")


def test_help_needs_no_torch():
    program = (
        "import sys, vlm, vlm.cli, vision_encoder; print([n for n in ('torch', 'PIL', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
