"""Merge the weights of two checkpoints of one model, as CLR-voyance (arXiv 2605.09584) does after training.

    python -m lab.merge smollm2-135m RUN/checkpoints/step-12 MERGED --share 0.5

    merged = (1 - share) base + share trained        exactly base at 0 and trained at 1

MERGED is a Hugging Face directory in float32 with the tokenizer of `trained`, which --policy takes. It is
there whole or not at all.
"""

import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from rar_mini import policy
from rar_mini.checkpoint import newest
from rar_mini.options import Within, run_command


def merge(base: dict[str, Tensor], trained: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights by name, `share` of the way from base to trained. Raises ValueError for two models."""
    if {n: w.shape for n, w in base.items()} != {n: w.shape for n, w in trained.items()}:
        raise ValueError("expected two checkpoints of one model, got weights of other names or shapes")
    return {name: weight.lerp(trained[name], share) for name, weight in base.items()}


def main(
    base: Annotated[str, tyro.conf.Positional],
    trained: Annotated[str, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    *,
    share: float = 0.5,
) -> None:
    """Merge the weights of two checkpoints of one model.

    Args:
        base: what training began with: a run (its newest checkpoint), a model's directory or a hub id
        trained: what it came to, likewise
        out: the directory to write, which does not exist yet
        share: of `trained`; 0 is base
    """
    Within(0, 1).refuse("share", share)
    if out.exists():
        raise ValueError(f"{out} exists: expected a new directory")
    one, other = (policy.load(newest(name), torch.float32, "cpu") for name in (base, trained))
    other.model.load_state_dict(merge(one.model.state_dict(), other.model.state_dict(), share))
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    other.save(partial)
    os.rename(partial, out)
    print(f"merged    {share:g} of {trained} with {1 - share:g} of {base}: {out}")
    print(f"next      python train.py --policy {shlex.quote(str(out))}")


if __name__ == "__main__":
    run_command(main, "python -m lab.merge")
