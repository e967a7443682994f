"""Rubrics as Rewards on one GPU: the rooms that train.py, judge.py and evaluate.py are built on."""

from pathlib import Path

# In a checkout the kernels lie beside this folder: a clone uses its own, whichever one is installed.
_beside = Path(__file__).parents[1]
if (_beside / "kernels" / "advantage.py").is_file():
    __path__.append(str(_beside))
