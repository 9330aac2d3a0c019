"""Experiments: what might make hitlessd cheaper, measured beside what is shipped (docs/performance-experiments.md)."""
