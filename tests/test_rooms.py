"""A room imports only from the rooms before it and from the ground floor, without cycles.

Read from the source by AST, so imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rpo_kit

KIT = Path(rpo_kit.__file__).parent
ROOMS = ("lamp", "models", "rewriting", "training", "study", "serving")  # in the order of the data and of the figures
COMMAND_LINE = "rpo_kit.__main__"
FRONT_DOOR = "rpo_kit"  # its __init__ re-exports names of several rooms, lazily
TYPES_ALONE = {"rpo_kit.models.chat"}  # the protocol of a model imports nothing from the kit


def modules(kit: Path = KIT) -> dict[str, Path]:
    found = {}
    for path in kit.rglob("*.py"):
        parts = (kit.name, *path.relative_to(kit).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules of the kit that this one imports, anywhere in its source."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {target if target in known else str(node.module) for target in names}
    return (found & known) - {name}


def graph(kit: Path = KIT) -> dict[str, set[str]]:
    known = modules(kit)
    return {name: imports(name, path, set(known)) for name, path in known.items()}


def room_of(module: str) -> str | None:
    """None for the ground floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def arrows_up(arrows: dict[str, set[str]]) -> list[str]:
    wrong = []
    for module, targets in arrows.items():
        here = room_of(module)
        for target in targets:
            there = room_of(target)
            if module in (COMMAND_LINE, FRONT_DOOR) or there is None or there == here:
                continue
            if here is None or ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One cycle of imports, or []. A package stands for its `__init__` only."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for target in sorted(arrows[module]):
            found = walk(target, [*way, module])
            if found:
                return found
        done.add(module)
        return []

    return next((found for module in sorted(arrows) if (found := walk(module, []))), [])


def test_every_subpackage_is_a_room():
    packages = {path.parent.name for path in KIT.glob("*/__init__.py")}
    assert packages == set(ROOMS)


def test_a_room_imports_only_from_the_rooms_before_it_and_from_the_ground_floor():
    assert arrows_up(graph()) == []


def test_there_are_no_circular_imports_not_even_lazy_ones():
    assert circle(graph()) == []


def test_the_protocol_of_a_model_imports_nothing_of_the_kit():
    for module in TYPES_ALONE:
        assert graph()[module] == set()


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_in_one_paragraph_or_two_what_lives_there(room):
    text = ast.get_docstring(ast.parse((KIT / room / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    assert 1 <= text.count("\n\n") + 1 <= 2


@pytest.mark.parametrize(
    ("files", "wrong", "round_trip"),
    [
        ({"lamp/a.py": "def f():\n    import kit.study.b", "study/b.py": ""}, ["kit.lamp.a imports kit.study.b"], []),
        ({"errors.py": "from kit.lamp import a", "lamp/a.py": ""}, ["kit.errors imports kit.lamp.a"], []),
        (
            {"lamp/a.py": "from kit.lamp.b import x", "lamp/b.py": "def f():\n    from kit.lamp import a"},
            [],
            ["a", "b"],
        ),
        ({"study/b.py": "from kit.lamp.a import x", "lamp/a.py": "from kit import errors", "errors.py": ""}, [], []),
    ],
)
def test_the_check_finds_what_breaks_the_rule(tmp_path, files, wrong, round_trip):
    for name, text in files.items():
        path = tmp_path / "kit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    (tmp_path / "kit" / "__init__.py").touch()
    arrows = graph(tmp_path / "kit")
    assert arrows_up(arrows) == wrong
    assert [module.rpartition(".")[2] for module in circle(arrows)] == round_trip
