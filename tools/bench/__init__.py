"""Benchmarks. Every speed and size that README and docs claim comes from one of them."""
