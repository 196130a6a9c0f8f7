"""The checks of gpu_check.py as tests, for a machine with a GPU: `python -m pytest tests/gpu/on_gpu.py -m gpu`.

The name keeps pytest from collecting this file in the whole suite.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import gpu_check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.parametrize("number", range(sum(1 for _ in gpu_check.plan(Path("/nowhere")))))
def test_a_check_passes(root: Path, number: int) -> None:
    """In the order of the plan: later checks need what earlier ones have made."""
    check = list(gpu_check.plan(root))[number]
    if check.needs_gb > gpu_check.card_gb():
        pytest.skip(f"the card has {gpu_check.card_gb():.0f} GB")
    for row in gpu_check.in_a_process(check, gpu_check.SECONDS):
        assert row.gb is None or row.gb <= (check.needs_gb or row.gb)
