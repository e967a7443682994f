"""What evaluate.py's commands compute: benchmarks of policies, and how far judges can be trusted."""
