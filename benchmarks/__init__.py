"""Benchmarks: each a ratio against a limit or a peer that was measured in the same run.

``python -m benchmarks`` runs them all and writes ``benchmarks/results/NAME.json``; with names it runs those.
Peers run in an environment of their own, ``.venv-peers`` (``make peers``), through the scripts in ``benchmarks/peers``,
which import nothing of Headworks.
"""
