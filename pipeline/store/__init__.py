"""The activation store: objects, shards, ledger, manifest. Needs numpy and pyarrow, never torch."""
