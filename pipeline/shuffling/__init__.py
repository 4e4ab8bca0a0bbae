"""Rewriting a store in a random order: the plan, the rows between passes, and the tasks; ``workers`` spreads them."""
