"""The shape of the house: who may import whom, what is public, what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import quarterdeck

PACKAGE = Path(quarterdeck.__file__).parent

# from the ground up: a room may import itself and the rooms before it
ROOMS = (
    "_version errors activations gguf hub locate rope config_checks config_files config tokenization tokenizer chat "
    "kernels attention cache outputs loss model_inputs quantization parallel weights generation memory model_base "
    "pretrained model fusion auto pipelines llm engine training visualize server cli __init__ __main__"
).split()


PUBLIC = """
__version__ Agent AttentionMaskVisualizer AttentionView AutoConfig AutoModel
AutoModelForCausalLM AutoTokenizer BatchEncoding BitsAndBytesConfig Cache
ChatResponse Citation CohereConfig CohereForCausalLM CohereModel CohereTokenizer CohereTokenizerFast
Document DynamicCache GenerationConfig GrammarLogitsProcessor LLM LogitsProcessor LogitsProcessorList Message pipeline
MemoryPlan plan_memory CompileConfig
OffloadedCache QuantizedCache QuantizationConfig QuarterdeckError SamplingParams StaticCache
StoppingCriteria StoppingCriteriaList TextIteratorStreamer TextStreamer Tool ToolCall WatermarkingConfig
"""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            base = node.module or ""
            found += [(node.lineno, f"{base}.{alias.name}" if base == "quarterdeck" else base) for alias in node.names]
    return found


def test_imports_point_only_upward() -> None:
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        for line, module in imported_modules(path):
            if not module.startswith("quarterdeck."):
                continue
            target = module.split(".")[1]
            if target in ROOMS:  # otherwise a name that __init__ itself offers, such as __version__
                assert ROOMS.index(target) <= ROOMS.index(room), f"{path}:{line}: {room} imports {target}"


def test_every_file_stands_in_a_known_room() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} <= set(ROOMS)


def test_the_package_does_not_depend_on_transformers() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not [m for _, m in imported_modules(path) if m.split(".")[0] == "transformers"], path


def test_public_names_are_all_there() -> None:
    for name in quarterdeck.__all__:
        assert getattr(quarterdeck, name) is not None
    assert set(quarterdeck.__all__) <= set(dir(quarterdeck))


def test_public_names_are_these() -> None:
    assert set(quarterdeck.__all__) == set(PUBLIC.split())


def test_pipeline_is_a_function_whatever_was_imported_first() -> None:
    code = "import quarterdeck.pipelines; from quarterdeck import pipeline; assert callable(pipeline)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import quarterdeck, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"torch", "tokenizers", "numpy", "safetensors", "huggingface_hub", "jinja2", "rich"}
    assert not heavy & {name.split(".")[0] for name in loaded}
