"""Benchmarks: commands that print ratios measured in one run and write them as data."""
