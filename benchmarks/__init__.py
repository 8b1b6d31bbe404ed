"""Benchmarks of time and memory, side by side with the libraries that users would use instead.

Each module is a program: ``python -m benchmarks.training --help``, from the root of the repository.
"""
