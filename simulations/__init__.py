"""Runs on one machine: the command line, presets, engines and pre-training."""
