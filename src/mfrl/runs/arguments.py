"""What a class or function can be called with."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from typing import Any


def arguments_of(found: Any) -> dict[str, str] | None:
    """What a class or function can be called with, and how that is annotated; None: anything.

    A class's ``**settings`` are those of the class it derives from, and the fields of its ``Settings``.
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
