"""Experiments: the demo and its plots."""
