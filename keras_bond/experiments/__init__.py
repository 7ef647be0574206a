"""Experiments: the demo, notebooks run through papermill, and their plots."""
