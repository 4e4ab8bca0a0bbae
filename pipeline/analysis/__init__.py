"""What trained dictionaries say: trajectories over sources, differences between models, universality."""
