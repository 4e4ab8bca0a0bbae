"""Training: one engine that feeds any number of dictionaries from one read of the rows, on any number of ranks."""
