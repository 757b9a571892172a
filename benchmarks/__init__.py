"""One script per question, run from the root as `python -m benchmarks.<name>`."""
