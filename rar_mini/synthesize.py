"""The name that `python -m rar_mini.tools.synthesize` had before."""

import runpy

if __name__ == "__main__":
    runpy.run_module("rar_mini.tools.synthesize", run_name="__main__")
