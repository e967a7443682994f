"""The name of before: `python -m rar_mini.plot` is `python -m rar_mini.viewing.plot`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("rar_mini.viewing.plot", run_name="__main__")
