"""From a token table to an activation store, one unit at a time, in one process; ``workers`` spreads it over actors."""
