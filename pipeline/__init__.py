"""Everything that computes, in one process: tokens, models, the store, row order, training, evaluation, report."""
