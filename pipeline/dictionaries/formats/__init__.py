"""Dictionaries in the formats of other libraries: written from ours, read into ours."""
