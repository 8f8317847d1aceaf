"""The network of VAD, its losses and how its outputs are decoded."""
