"""Everything that computes, in one process: tokens, models, the store, sample order, dictionaries, training, evaluation."""
