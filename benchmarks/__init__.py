"""Speed and memory of this package beside Transformers' own class and the floor: ``python -m benchmarks --help``."""
