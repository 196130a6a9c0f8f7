"""The `>>>` examples in every module of the kit are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import rpo_kit

MODULES = sorted(
    {rpo_kit.__name__} | {module.name for module in pkgutil.walk_packages(rpo_kit.__path__, f"{rpo_kit.__name__}.")}
)


FOR_INSPECT = "rpo_kit.lamp.harness.inspect_tasks"  # imported by inspect-ai alone


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    if name == FOR_INSPECT:
        pytest.importorskip("inspect_ai")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", ["lamp.tasks", "lamp.metrics", "lamp.retrieval", "lamp.okapi"])
def test_these_modules_have_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"rpo_kit.{name}")).attempted > 0


def test_modules_of_every_depth_are_among_them() -> None:
    assert {"rpo_kit.__main__", "rpo_kit.runs", "rpo_kit.lamp.tasks", "rpo_kit.lamp.personas.oracle"} <= set(MODULES)
