"""What VAD reads: info files, datasets, transforms, and their making."""
