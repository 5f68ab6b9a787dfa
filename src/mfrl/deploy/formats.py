"""The formats that a graph is exported to: how each is written, and how it is run again without mfrl.

``onnx`` runs wherever ONNX does (onnxruntime, TensorRT, OpenVINO), ``torch`` is a `torch.export` program that PyTorch
loads without mfrl, and ``aoti`` is that program compiled ahead of time into a library for this kind of CPU.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfrl.deploy.acting import Graph
from mfrl.errors import ConfigError, did_you_mean, require_packages
from mfrl.learning.compiling import missing_compiler

#: A graph in some runtime: from inputs by their names to actions.
Run = Callable[[Mapping[str, Tensor]], Tensor]

OUTPUT = "action"
_BATCH = "batch"  #: the dimension that may have any size
_EXAMPLE = 3  #: rows of the example that a graph is traced with; 0 and 1 would be taken for constants


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        ending: of the file's name, unless the user chooses another one with the same suffix.
        packages: that are needed besides PyTorch, by the names that pip knows.
        write: a graph into a file, with texts that describe it and the version of the operator set.
        open: the file, to be run.
    """

    ending: str
    packages: tuple[str, ...]
    write: Callable[[Graph, Path, Mapping[str, str], int], None]
    open: Callable[[Path], Run]

    @property
    def suffix(self) -> str:
        """``.onnx``, or ``.pt2`` of PyTorch's archives."""
        return Path(self.ending).suffix


def write_onnx(graph: Graph, path: Path, texts: Mapping[str, str], opset: int) -> None:
    import torch.onnx

    example = _example(graph)
    with _quiet():
        program = torch.onnx.export(
            graph,
            tuple(example.values()),
            input_names=list(example),
            output_names=[OUTPUT],
            opset_version=opset,
            dynamic_shapes=_dynamic(example, _BATCH),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # lines of this machine's sources
    program.model.metadata_props.update(texts)
    program.save(path, external_data=False)


def open_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        (actions,) = session.run([OUTPUT], {name: x.numpy() for name, x in inputs.items()})
        return torch.from_numpy(np.asarray(actions))

    return run


def write_torch(graph: Graph, path: Path, texts: Mapping[str, str], opset: int) -> None:
    torch.export.save(traced(graph), path, extra_files=dict(texts))


def open_torch(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs.values())


def write_aoti(graph: Graph, path: Path, texts: Mapping[str, str], opset: int) -> None:
    from torch._inductor import aoti_compile_and_package

    with _quiet():
        settings = {"aot_inductor.metadata": dict(texts)}
        aoti_compile_and_package(traced(graph), package_path=str(path), inductor_configs=settings)


def open_aoti(path: Path) -> Run:
    from torch._inductor import aoti_load_package

    module = aoti_load_package(str(path))
    return lambda inputs: module(*inputs.values())


FORMATS = {
    "onnx": Format("-policy.onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx, open_onnx),
    "torch": Format("-policy.pt2", (), write_torch, open_torch),
    "aoti": Format("-policy.aoti.pt2", (), write_aoti, open_aoti),
}


def find_format(name: str) -> Format:
    """A format that can be written here.

    Raises:
        ConfigError: there is none of that name, or what it needs is missing; the message says how to get it.
    """
    if name not in FORMATS:
        raise ConfigError(f"format={name} is unknown{did_you_mean(str(name), FORMATS)}; known: {', '.join(FORMATS)}")
    found = FORMATS[name]
    require_packages(f"format={name}", {package: package for package in found.packages})
    if name == "aoti" and (reason := missing_compiler()):
        raise ConfigError(
            f"format=aoti needs a C++ compiler, and {reason}: install one (Debian's package g++), or name it in the "
            "environment variable CXX"
        )
    return found


def traced(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as `torch.export` has it, for any number of rows."""
    example = _example(graph)
    shapes = _dynamic(example, torch.export.Dim(_BATCH))
    program = torch.export.export(graph, tuple(example.values()), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of this machine's sources
    return program


def _example(graph: Graph) -> dict[str, Tensor]:
    interface = graph.acting.interface
    return graph.example(torch.zeros(_EXAMPLE, *interface.shape, dtype=interface.dtype), seed=0)


def _dynamic(example: Mapping[str, Tensor], dimension: Any) -> dict[str, dict[int, Any] | None]:
    """Which dimensions may have any size: the first of every input that has one."""
    return {name: {0: dimension} if x.ndim else None for name, x in example.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporters say of packages that are not needed, and of constants that they do not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch._inductor", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
