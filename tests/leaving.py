"""What the tests of the way out share: the pieces of Python in docs/leaving.md, a judge's server, and an
environment of their own for other trainers."""

import json
import os
import re
import site
import subprocess
import sys
from pathlib import Path

from hostile import Server, shared

ROOT = Path(__file__).parents[1]
INDOORS = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
"""What a script in another folder needs to find this project, and to stay off the network."""

SERVED = {'"keyword", "rar-explicit"': '"chat:m", "rar-implicit", cache=False'}
"""From the page's judge to one that asks a server."""


def snippet(word: str) -> str:
    """The one piece of Python on the page that has this word."""
    page = (ROOT / "docs/leaving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (block,) = (block for block in blocks if word in block)
    return block


def swapped(code: str, words: dict[str, str]) -> str:
    """Code with other words for some of its own, each of which stands in it once."""
    for old, new in words.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def rating(server: Server) -> Server:
    """Make it a chat model that rates by the number of characters, and refuses every third number."""

    def text(body: dict) -> str:
        return shared(body["messages"][-1]["content"])

    server.reply = lambda path, body: json.dumps({"reason": "r", "rating": 1 + len(text(body)) % 10})
    server.fault = lambda path, body, number: "refusal" if len(text(body)) % 3 == 0 else None
    return server


def make_environment(folder: Path, *packages: str) -> Path:
    """The Python of an environment with these packages, as pip's words. It sees the packages of this one, so
    that torch is not there twice, and leaves them as they are."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python, (place,) = folder / "bin" / "python", folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (place / "outer.pth").write_text("".join(lines))
    for words in packages:
        subprocess.run([python, "-m", "pip", "-q", "install", *words.split()], check=True)
    return python


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, which has to end well."""
    done = subprocess.run(command, cwd=folder, env=os.environ | INDOORS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done
