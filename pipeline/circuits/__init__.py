"""Circuits: the few nodes of a network that suffice for a task, found by masks, and the weights that join them."""
