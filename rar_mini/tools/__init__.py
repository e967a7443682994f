"""Commands beside training: memory plans, rubric writing, tables of data, benchmarks."""
