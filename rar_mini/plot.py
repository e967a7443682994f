"""The name that `python -m rar_mini.viewing.plot` had before."""

import runpy

if __name__ == "__main__":
    runpy.run_module("rar_mini.viewing.plot", run_name="__main__")
