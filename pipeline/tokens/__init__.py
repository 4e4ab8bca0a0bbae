"""Corpus to token table: reads text where it lies, yields packed rows that every store made from them shares.

corpus.py -> documents -> tokenizer.py -> packing.py -> part.py (one Parquet file each)
table.py builds all parts, reading.py opens them as one table
"""
