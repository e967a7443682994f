"""PyPI has a package called `kernels`, for which transformers probes: ours stands beside it without either
breaking."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

WHERE = """
import importlib.util, pathlib
ours, theirs = (pathlib.Path(importlib.util.find_spec(n).origin) for n in ("rar_mini.kernels", "kernels"))
print(ours.parent, theirs.parent)
"""


@pytest.mark.slow
@pytest.mark.parametrize("editable", [True, False])
def test_it_installs_beside_pypis_kernels(tmp_path: Path, editable: bool) -> None:
    """A top-level package of that name overwrites the other on install, and uninstalling leaves it broken."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"

    def pip(*words: object) -> None:
        subprocess.run([python, "-m", "pip", "-q", *map(str, words)], check=True)

    def where() -> list[str]:
        # From elsewhere: in the checkout's own folder, `kernels` is the folder there, with or without an
        # install.
        return subprocess.run(
            [python, "-c", WHERE], capture_output=True, text=True, cwd=tmp_path
        ).stdout.split()

    pip("install", "--no-deps", "kernels")
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    before = {path: path.read_bytes() for path in sorted((site / "kernels").rglob("*.py"))}
    pip("install", "--no-deps", *(["-e"] if editable else []), ROOT)
    ours, theirs = where()
    assert Path(theirs) == site / "kernels"
    assert Path(ours) == (ROOT / "kernels" if editable else site / "rar_mini" / "kernels")
    pip("uninstall", "-y", "rar-mini")
    assert {path: path.read_bytes() for path in sorted((site / "kernels").rglob("*.py"))} == before


def test_the_package_carries_its_data() -> None:
    from rar_mini import data

    assert data.DOMAINS == ("instructions", "medical", "science")


def test_it_imports_without_triton() -> None:
    """As on macOS."""
    code = "import sys; sys.modules['triton'] = None; from rar_mini.kernels import adamw, advantage, logprob"
    code += "; print(adamw.jit, advantage.jit, logprob.jit)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
