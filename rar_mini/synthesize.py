"""The name of before: `python -m rar_mini.synthesize` is `python -m rar_mini.tools.synthesize`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("rar_mini.tools.synthesize", run_name="__main__")
