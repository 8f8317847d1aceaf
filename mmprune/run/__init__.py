"""A run from a command: options, workflow, folder, training, report."""
