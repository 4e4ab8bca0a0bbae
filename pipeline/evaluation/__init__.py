"""What trained dictionaries are worth: reconstruction, spliced cross-entropy, features, and the job that measures."""
