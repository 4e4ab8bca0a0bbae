"""Text that is generated from a seed, and what is known of it."""
