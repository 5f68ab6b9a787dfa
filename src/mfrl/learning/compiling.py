"""Decide whether a run's updates are compiled, and how exactly they multiply matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def multiplying(on_gpu: bool, tf32: bool, bf16: bool) -> Iterator[None]:
    """Within the context, products of float32 matrices round their factors, where that makes them faster.

    A factor keeps 10 bits of its mantissa in TF32, and 7 in bf16. Sums, and all that is no product, are float32.
    Afterwards PyTorch is as it was.

    Args:
        on_gpu: whether they are a GPU's, which knows TF32, or a CPU's, which as a rule knows bf16 if it has AMX.
        tf32, bf16: whether to round so. It changes nothing on a processor that cannot.
    """
    cuda, mkldnn, cudnn = torch.backends.cuda, torch.backends.mkldnn, torch.backends.cudnn
    backends = cuda.matmul, mkldnn.matmul, cudnn.conv, cudnn.rnn  # type: ignore[attr-defined]  # made at import
    before = [backend.fp32_precision for backend in backends]
    matmul = convolutions = None
    with suppress(RuntimeError):  # whoever calls has set the backends one by one, and no one word says how
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = cudnn.allow_tf32
    cudnn.allow_tf32 = on_gpu and tf32
    if on_gpu:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    else:
        torch.set_float32_matmul_precision("medium" if bf16 else "highest")
        if bf16 and factors_of_products(torch.device("cpu")) == "float32":
            torch.set_float32_matmul_precision("highest")  # other float32 products would be no faster, only other
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def factors_of_products(device: torch.device) -> Literal["float32", "tf32", "bf16"]:
    """To what products of large float32 matrices round their factors now, seen in one."""
    factor = torch.full((256, 256), 1.0 + 2.0**-9 + 2.0**-15, device=device)
    kept = (factor @ torch.eye(256, device=device))[0, 0].item()
    return "float32" if kept == factor[0, 0] else "bf16" if kept == 1.0 else "tf32"


def missing_compiler() -> str:
    """A sentence about what is missing; empty if there is a compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # of its own kinds, by platform
        return "PyTorch finds no C++ compiler that works"
    return ""
