"""The experiment matrix: an experiment file in, the paper's tables out (docs/benchmark.md)."""
