"""Decide whether a run's updates are compiled."""

from __future__ import annotations

from typing import Literal

import torch

from mfrl.errors import ConfigError

#: Whether an update is compiled; ``captured``: and on a GPU replayed as a CUDA graph, one launch in place of many.
Compiled = bool | Literal["captured"]
Compile = Compiled | Literal["auto"]

#: ``auto`` compiles runs of at least so many updates. Compiling takes about a minute the first time, and some seconds
#: once PyTorch has the code in its cache; every update then takes half of the time, and a tenth if a GPU replays it.
WORTH_COMPILING = 5_000


def check_compile(compile: Compile) -> None:
    """Refuse an unknown choice, and one that needs a compiler or a GPU where PyTorch finds none.

    Raises:
        ConfigError: the message says what to install or to choose.
    """
    if compile not in ("auto", "captured", True, False) or type(compile) is int:
        raise ConfigError(f"compile={compile} must be auto, true, false or captured")
    if compile == "captured" and not torch.cuda.is_available():
        raise ConfigError("compile=captured needs a CUDA GPU, and PyTorch finds none: say compile=true")
    if compile in (True, "captured") and (missing := missing_compiler()):
        raise ConfigError(
            f"compile={str(compile).lower()} needs a C++ compiler, and {missing}: install one (Debian's package g++), "
            "name it in the environment variable CXX, or say compile=false"
        )


def choose(compile: Compile, updates: int, capture: bool) -> tuple[Compiled, str]:
    """Whether to compile, and the reason in a few words.

    The decision depends only on the settings, the device and whether there is a compiler. The machine's speed does not
    count, so that the same command gives the same numbers.

    Args:
        compile: the setting.
        updates: number of updates of the run.
        capture: whether ``auto`` may also capture: on a GPU, where tests have shown that it does for such a run.
    """
    if compile != "auto":
        return compile, f"compile={str(compile).lower()}"
    if updates < WORTH_COMPILING:
        return False, f"fewer than {WORTH_COMPILING:,} updates do not make up for the time compiling takes"
    if missing := missing_compiler():
        return False, missing
    why = "the first update takes about a minute, some seconds once the code is in PyTorch's cache"
    return ("captured", f"as a CUDA graph; {why}") if capture else (True, why)


def missing_compiler() -> str:
    """A sentence about what is missing; empty if there is a compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # of its own kinds, by platform
        return "PyTorch finds no C++ compiler that works"
    return ""
