"""A stand-in for the trainer: the same command line and answers, no training."""
