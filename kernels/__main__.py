"""All benchmarks, one after another: `python -m rar_mini.kernels`."""

from rar_mini.kernels import adamw, advantage, bench, decode, draw, logprob, norm, rope, swiglu

for module in (logprob, draw, advantage, adamw, decode, rope, norm, swiglu):
    bench.show(module.__name__.split(".")[-1], module.benchmark)
    print()
