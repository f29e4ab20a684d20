"""The worker's imports: complete, without kernels of a hub, without a compiler, and torch as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECK = """
import sys, gc
from trainer import libraries
assert "torch" not in sys.modules, "nothing heavy before it is asked for"
libraries.load()
import torch
assert all(name in sys.modules for name in libraries.MODULES)
assert "torch._inductor.compile_fx" not in sys.modules, "the compiler"
assert torch.compile.__module__ == "torch" and gc.isenabled() and gc.get_freeze_count() > 100_000
import bitsandbytes.functional as kernels
packed, state = kernels.quantize_4bit(torch.arange(128.0), quant_type="nf4")
assert torch.allclose(kernels.dequantize_4bit(packed, state), torch.arange(128.0), atol=20)
assert peft_knows() and not transformers_fetches()
count = len(sys.modules)
libraries.load()
assert len(sys.modules) == count
"""
HELPERS = """
def peft_knows():
    from peft.import_utils import is_bnb_4bit_available
    return is_bnb_4bit_available()

def transformers_fetches():
    from transformers.utils import is_kernels_available
    return is_kernels_available()
"""
HUB = """
from pathlib import Path
__version__ = "0.11.1"
Path(__file__).with_name("imported").touch()
def get_kernel(*words, **options):
    raise AssertionError("fetched")
"""


def test_everything_is_imported_once_and_nothing_is_fetched_or_compiled(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text(HUB, encoding="utf-8")
    info = tmp_path / "kernels-0.11.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: kernels\nVersion: 0.11.1\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", HELPERS + CHECK], env=environment, cwd=Path(__file__).parents[3], capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert not (package / "imported").exists()
    plain = subprocess.run(
        [sys.executable, "-c", "import kernels"], env=environment, capture_output=True, timeout=60, check=True
    )
    assert plain.returncode == 0 and (package / "imported").exists(), "without us it would be imported"


def test_torch_compiles_again_when_an_import_fails() -> None:
    import pytest
    import torch

    from trainer import libraries

    before = torch.compile
    with pytest.raises(RuntimeError), libraries._without_compiling(torch):
        assert torch.compile(len) is len and torch.compile(dynamic=True)(len) is len
        raise RuntimeError
    assert torch.compile is before
