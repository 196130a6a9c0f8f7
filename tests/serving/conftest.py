"""A server that answers without models, with the profile of a user called ann."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from asking import PROFILE, Echo, serving

from rpo_kit.serving.service import Service


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "ann.json").write_text(json.dumps(PROFILE))
    (tmp_path / "secret.json").write_text(json.dumps(PROFILE))
    models = {"rpo-sft": Echo(), "rpo-untrained": Echo()}
    with serving(Service(Echo(), folder, models=models)) as there:
        yield there
