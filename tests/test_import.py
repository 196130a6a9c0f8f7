"""The front door: `import rpo_kit` is cheap, and its names lead to the right rooms."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rpo_kit

HEAVY = ("torch", "datasets", "pandas", "transformers", "matplotlib", "IPython", "numpy", "inspect_ai", "lm_eval")


def test_importing_the_kit_loads_no_heavy_library():
    code = f"import sys, rpo_kit; print(*[name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_no_library_asks_for_a_package_that_would_load_code_from_the_hub():
    """bitsandbytes does on CPUs with AVX512-BF16."""
    done = subprocess.run(
        [sys.executable, "-c", "import rpo_kit, bitsandbytes"], capture_output=True, text=True, check=True
    )
    assert "kernels" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", rpo_kit.__all__)
def test_each_name_is_the_one_that_its_room_defines(name):
    assert getattr(rpo_kit, name).__module__ == rpo_kit._HOMES[name]
    assert name in dir(rpo_kit)


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(rpo_kit.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    assert {alias.name: node.module for node in imports for alias in node.names} == rpo_kit._HOMES
    assert sorted(rpo_kit._HOMES) == sorted(rpo_kit.__all__)


def test_rpo_kit_itself_exports_six_to_ten_names():
    assert 6 <= len(rpo_kit.__all__) <= 10


def test_an_unknown_name_is_an_attribute_error_and_submodules_are_still_found():
    with pytest.raises(AttributeError, match="'rpo_kit' has no attribute 'open_door'"):
        _ = rpo_kit.open_door
    from rpo_kit import runs

    assert runs.open_run is rpo_kit.open_run


LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[madvise]" not in LARGE_PAGES.read_text(), reason="no large pages on request here"
)
def test_large_tensors_lie_in_large_pages():
    """Each page costs a fault when a tensor is first written, and torch returns large tensors to the system."""
    code = """
import rpo_kit, torch
tensor = torch.ones(64 * 2**20, dtype=torch.uint8)
print(sum(int(line.split()[1]) for line in open("/proc/self/smaps") if line.startswith("AnonHugePages")) // 1024)
"""

    def megabytes(**environment: str) -> int:
        clean = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        command = [sys.executable, "-c", code]
        return int(subprocess.run(command, capture_output=True, check=True, env=clean | environment).stdout)

    assert megabytes() >= 32
    assert megabytes(THP_MEM_ALLOC_ENABLE="0") < 32, "a user's own wish counts"


def test_no_usage_data_is_sent_unless_the_user_wants_it():
    """TRL reports each trainer to the hub, and Unsloth counts starts, unless these are set before their import."""
    names = ("HF_HUB_DISABLE_TELEMETRY", "UNSLOTH_DISABLE_STATISTICS")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import os, rpo_kit; print(*[os.environ.get(name) for name in {names}])"

    def after_import(environment: dict[str, str]) -> list[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()

    assert after_import(clean) == ["1", "1"]
    assert after_import(clean | dict.fromkeys(names, "0")) == ["0", "0"], "a user's own wish counts"
