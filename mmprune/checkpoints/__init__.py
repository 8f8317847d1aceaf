"""Checkpoint files: read safely, checked against their plan, loaded."""
