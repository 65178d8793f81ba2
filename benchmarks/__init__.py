"""What the engine promises, measured: ``python -m benchmarks``."""
