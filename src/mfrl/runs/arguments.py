"""The arguments that a class or function can be called with."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from typing import Any

#: Keys of a configuration that are Hydra's own, and no arguments.
HYDRA_KEYS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")


def arguments_of(found: Any) -> dict[str, str] | None:
    """The arguments of a class or function, each with its annotation; None if it takes any argument.

    Where a class takes ``**settings``, these are the arguments of its base class and the fields of its ``Settings``.
    """
    called = [found]
    if inspect.isclass(found):
        called = [vars(base)["__init__"] for base in inspect.getmro(found) if "__init__" in vars(base)]
    settings = getattr(found, "Settings", None)
    known = {field.name: str(field.type) for field in fields(settings)} if is_dataclass(settings) else {}
    for function in called:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # written in C
            return None
        named = {p.name: str(p.annotation) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        known = named | known
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    else:
        if not is_dataclass(settings):
            return None
    return {name: annotation for name, annotation in known.items() if name != "self"}
