"""Exporting a store: into another layout, precision or codec, a part of it, or another library's format."""
