"""Training: the trainer, EMA, checkpoints, tracking, and the run that ties them to a task."""
