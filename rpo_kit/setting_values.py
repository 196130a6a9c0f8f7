"""A change of one setting: its dotted name looked up in a tree of dataclasses, its value read as the field's type.

    replaced(preset, "rl.steps", "40")          # the same tree with rl.steps=40

Nothing is rounded, split or guessed: `presets.override` passes on what a person wrote.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from rpo_kit.errors import KitError


def from_options(options: Iterable[str]) -> dict[str, str]:
    """The changes that `--set KEY=VALUE` options name. Raises KitError for one of another form.

    >>> from_options(["rl.steps=40"])
    {'rl.steps': '40'}
    """
    changes = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise KitError(f"--set {option} does not have the form KEY=VALUE, as in --set rl.steps=40.")
        changes[key] = value
    return changes


def replaced(node: Any, key: str, value: Any) -> Any:
    """The tree with this setting changed.

    Raises:
        KitError: there is no such setting, or the value is not of its type.
    """
    return _replace(node, key.split("."), value, key)


def _replace(node: Any, path: list[str], value: Any, key: str) -> Any:
    names = list(_fields(node))
    if "about" in names:  # of a preset, whose name and description are no settings
        names = [name for name in names if name not in ("name", "about")]
    if path[0] not in names:
        group = key.rpartition(".")[0] if len(path) == 1 else ""
        close = get_close_matches(path[0], names, n=1)
        meant = f" Did you mean {f'{group}.' if group else ''}{close[0]}?" if close else ""
        where = f"in {group} there are" if group else "the settings are"
        raise KitError(f"There is no setting {key!r}; {where} {', '.join(names)}.{meant}")
    current = getattr(node, path[0])
    if dataclasses.is_dataclass(current) != (len(path) > 1):
        what = "a single setting" if len(path) > 1 else "a group of settings: name one of them, as in rl.steps"
        raise KitError(f"{key.removesuffix('.' + '.'.join(path[1:]))!r} is {what}.")
    new = _replace(current, path[1:], value, key) if len(path) > 1 else _convert(node, path[0], value, key)
    return dataclasses.replace(node, **{path[0]: new})


_FORMS = {
    int: "a whole number, as in 40",
    float: "a number, as in 0.5 or 1e-5",
    bool: "true or false",
}
_LIST_FORMS = {  # by the type of its parts
    int: "a list of whole numbers: write it as JSON, as in '{key}=[2, 6]'",
    str: 'a list of names: write it as JSON, as in \'{key}=["a", "b"]\'',
}


def _convert(node: Any, name: str, value: Any, key: str) -> Any:
    kind, given = typing.get_type_hints(type(node))[name], value
    if kind is str:
        return str(value)
    try:
        value = json.loads(value.lower() if kind is bool else value) if isinstance(value, str) else value
        if typing.get_origin(kind) is not tuple:
            return _exact(kind, value)
        if not isinstance(value, list | tuple):
            value = [value] if _fields(node)[name].metadata.get("a number too") else None
        return tuple(_exact(typing.get_args(kind)[0], part) for part in value)
    except (ValueError, TypeError):
        form = _FORMS.get(kind) or _LIST_FORMS[typing.get_args(kind)[0]].format(key=key)
        raise KitError(f"{key}={given!r} is not {form}.") from None


def _fields(node: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(node)}


def _exact(kind: type, value: Any) -> Any:
    """The value, if it has this type; an int may stand for a float. Nothing is rounded: 2.5 steps is a mistake."""
    fits = type(value) in (int, float) and math.isfinite(value) if kind is float else type(value) is kind
    if not fits:
        raise TypeError
    return kind(value)
