"""All three benchmarks, one after another: `python -m rar_mini.kernels`."""

from rar_mini.kernels import adamw, advantage, bench, logprob

for module in (logprob, advantage, adamw):
    bench.show(module.__name__.split(".")[-1], module.benchmark)
    print()
