"""Benchmarks: time and memory, side by side with what people would use instead.

Each module is a program: ``python -m benchmarks.training --help``, from the root of the repository.
"""
