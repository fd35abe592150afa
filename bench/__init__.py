"""Benchmarks: what core-agent takes, against a floor measured in the same run. `task bench`, docs/bench.md."""
