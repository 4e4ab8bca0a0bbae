"""Everything that runs on Ray: the cluster, tokenisation in parallel, collection by actors and what steers them."""
