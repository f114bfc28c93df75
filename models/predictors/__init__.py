"""Models: training, evaluation, bundles and the registry."""
