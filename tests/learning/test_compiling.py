"""Whether a run is compiled: by its settings and a compiler, not by how fast the machine is."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from tiny import COMMAND, ENVIRONMENT, compose, mfrl

from mfrl.app.parts import choose_compiling
from mfrl.app.resume import resumed_config
from mfrl.errors import ConfigError
from mfrl.learning import compiling
from mfrl.learning.compiling import (
    WORTH_COMPILING,
    Compiled,
    check_compile,
    choose,
    factors_of_products,
    multiplying,
)
from mfrl.runs.checkpoint import load_checkpoint
from mfrl.runs.folder import RunFolder

CPU = Path("/proc/cpuinfo")
HAS_AMX = CPU.exists() and "amx_bf16" in CPU.read_text()
TOY = [
    "experiment=toy",
    "network.actor.hidden=[16]",
    "batch_size=8",
    "eval.samples=16",
    "accelerator=cpu",
    "compile=auto",
]


def test_a_run_is_compiled_where_it_is_long_enough_to_pay_for_the_start():
    assert choose("auto", WORTH_COMPILING, capture=False)[0] is True
    chosen, why = choose("auto", WORTH_COMPILING - 1, capture=True)
    assert chosen is False
    assert f"{WORTH_COMPILING:,} updates" in why
    assert choose(True, 1, capture=True) == (True, "compile=true")
    assert choose(False, 10**6, capture=True) == (False, "compile=false")


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ([], "captured"),
        (["accelerator=gpu"], "captured"),
        (["accelerator=cpu"], True),
        (["online.steps=100"], True),
        (["env=ogbench/visual-cube-single-play"], True),
        (["updates=100"], False),
    ],
)
def test_on_a_gpu_what_tests_have_compared_there_is_captured(
    settings: list[str], chosen: Compiled, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = compose("train", "env=ogbench/pointmaze-medium-navigate", f"updates={WORTH_COMPILING}", *settings)
    why = choose_compiling(cfg)
    assert cfg.compile == chosen
    assert ("CUDA graph" in why) is (chosen == "captured")


def test_without_a_compiler_a_long_run_is_eager_and_says_why(tmp_path: Path):
    options = [*TOY, f"updates={WORTH_COMPILING}", f"run_dir={tmp_path}/run"]
    # PyTorch reads CXX while it is imported: this takes an interpreter of its own. What it chose it says at the start.
    command, env = [*COMMAND, "train", *options], ENVIRONMENT | {"CXX": "no-such-compiler"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        said = next((line for line in process.stderr if "eager" in line), "")
        process.kill()
    assert re.search(r"eager.*C\+\+ compiler", said)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["compile"] is False


def test_what_was_chosen_is_what_a_resumed_run_goes_on_with(tmp_path: Path):
    run = tmp_path / "run"
    done = mfrl("train", *TOY, "updates=20", "eval.every=20", "log.every=10", f"run_dir={run}")
    assert "eager: fewer than" in done.stderr
    result = json.loads((run / "result.json").read_text())
    assert (result["compiled"], result["matmul"]) == (False, "float32")
    assert yaml.safe_load((run / "config.yaml").read_text())["compile"] is False
    again = mfrl("train", f"resume={run}", "updates=30")
    assert "eager: compile=false" in again.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_captured_on_a_gpu_goes_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mfrl("train", *TOY, "updates=20", "eval.every=20", "log.every=10", f"run_dir={tmp_path}/run")
    run = RunFolder(tmp_path / "run")

    def resumed(*overrides: str) -> Compiled:
        saved = load_checkpoint(run.last_checkpoint)
        saved["mfrl"]["config"]["compile"] = "captured"
        changes = [f"resume={run.path}", "updates=30", *overrides]
        return resumed_config(run, run.last_checkpoint, saved, compose("train", *changes), changes).compile

    assert resumed("accelerator=auto") is True
    with pytest.raises(ConfigError, match="compile=captured needs a CUDA GPU"):
        resumed("compile=captured")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resumed("accelerator=auto") == "captured"
    assert resumed() is True  # it has accelerator=cpu


@pytest.mark.parametrize("value", ["sometimes", None, 1, 0, 2.0])
def test_anything_else_is_no_choice(value: object):
    with pytest.raises(ConfigError, match=r"compile=.*auto.*true.*false.*captured"):
        check_compile(value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_is_captured_without_a_gpu():
    with pytest.raises(ConfigError, match=r"compile=captured needs a CUDA GPU.*compile=true"):
        check_compile("captured")


def test_compiling_where_nothing_compiles_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "missing_compiler", lambda: "PyTorch finds no C++ compiler that works")
    check_compile("auto")
    check_compile(False)
    with pytest.raises(ConfigError, match=r"compile=true.*g\+\+.*compile=false"):
        check_compile(True)


@pytest.mark.parametrize("setting", ["tf32=high", "bf16=1"])
def test_rounding_is_true_or_false(setting: str):
    done = mfrl("train", *TOY, "updates=20", setting)
    assert done.returncode != 0
    assert setting in done.stderr


@pytest.mark.parametrize("bf16", [False, True])
def test_products_are_as_exact_as_they_are_said_to_be(bf16: bool):
    left, right = torch.randn(2, 2, 256, 256, generator=torch.Generator().manual_seed(0))  # of a pack of two
    exact = left.double() @ right.double()
    with multiplying(False, tf32=True, bf16=bf16):
        said = factors_of_products(torch.device("cpu"))
        products = {
            "mm": torch.stack([a @ b for a, b in zip(left, right, strict=True)]),
            "bmm": left @ right,
            "compiled": torch.compile(torch.bmm, fullgraph=True)(left, right),
        }
    if not bf16 or HAS_AMX:  # some other processors know bf16 too
        assert said == ("bf16" if bf16 else "float32")
    low, high = {"float32": (1e-8, 1e-6), "bf16": (1e-3, 1e-2)}[said]
    for name, product in products.items():
        assert low < ((product - exact).norm() / exact.norm()).item() < high, name


def test_pytorch_multiplies_afterwards_as_its_user_had_chosen():
    cudnn = torch.backends.cudnn
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, cudnn.conv, cudnn.rnn

    def run() -> list[str]:
        before, convolutions = [backend.fp32_precision for backend in backends], cudnn.allow_tf32
        for on_gpu, bf16 in ((True, False), (False, True), (False, False)):
            with multiplying(on_gpu, tf32=True, bf16=bf16):
                torch.get_float32_matmul_precision()
        after = [backend.fp32_precision for backend in backends]
        assert after == before
        assert cudnn.allow_tf32 == convolutions  # PyTorch keeps it beside them, and fails where they disagree
        return after

    begun = run()
    assert torch.get_float32_matmul_precision() == "highest"
    try:
        for allowed in (True, False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert run()[0] == ("tf32" if allowed else "ieee")
            assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # which PyTorch has no single word for
        assert run()[:2] == ["ieee", "bf16"]
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, precision in zip(backends, begun, strict=True):
            backend.fp32_precision = precision


def test_runs_and_packs_say_how_they_multiplied(tmp_path: Path):
    short = [*TOY, "updates=20", "eval.every=20", "log.every=10", "batch_size=64", "network.actor.hidden=[64]"]
    short += [f"runs={tmp_path}"]
    for bf16 in ("true", "false"):
        done = mfrl("train", *short, f"bf16={bf16}", f"run_dir={tmp_path}/{bf16}")
        assert done.returncode == 0
        assert ("products of" in done.stderr) is (bf16 == "true")
    pack = ["seed=0,1", "pack=2", "bf16=true", f"run_dir={tmp_path}/pack/${{seed}}", "-m"]
    assert mfrl("train", *short, *pack).returncode == 0
    runs = {name: tmp_path / name for name in ("true", "false", "pack/0", "pack/1")}
    said = {name: json.loads((run / "result.json").read_text())["matmul"] for name, run in runs.items()}
    with multiplying(False, tf32=True, bf16=True):
        rounded = factors_of_products(torch.device("cpu"))
    assert said == {"true": rounded, "false": "float32", "pack/0": rounded, "pack/1": rounded}
    final = [json.loads((runs[name] / "result.json").read_text())["final"]["eval/w2"] for name in ("true", "false")]
    assert (final[0] != final[1]) is (rounded == "bf16")
    assert final[0] == pytest.approx(final[1], rel=0.05)
    refused = mfrl("train", *short, "bf16=true", f"run_dir={tmp_path}/false", "existing=continue")
    assert refused.returncode != 0
    assert "bf16=False, not True" in refused.stderr
