"""A drawn town as a valid nuScenes dataset, for demos, tests, benchmarks."""
