"""Job specs, store and dictionary manifests, and the error tree: pure data, no I/O, no arrays in memory."""
