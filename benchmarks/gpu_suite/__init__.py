"""Measurements on a GPU: trainings for scores, training speed and latency. See docs/gpu_suite.md."""
