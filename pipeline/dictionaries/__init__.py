"""Sparse dictionaries: the module, its activation functions, its starting weights and its folder on disk."""
