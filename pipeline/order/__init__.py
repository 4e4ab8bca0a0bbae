"""The order in which training sees rows, and the feed that reads them in it."""
