"""Verdicts on accuracy, speed, size and fusion: records in, checks out, nothing printed and nothing run."""
