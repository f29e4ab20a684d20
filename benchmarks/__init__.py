"""Benchmarks: each module is a script of its own; README.md tells what it measures and what it found."""
