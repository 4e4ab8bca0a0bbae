"""Training of language models: a token table in, model folders out, the same on one rank as on many.

prepare.py -> tokenizer and token table -> contexts.py -> trainer.py, step by step -> snapshots.py
engine.py goes through them, with checkpoints
"""
