"""What can be removed from VAD, and an example to check it on."""
