"""Keep the figures of a run: parts of its JSON files in one small file, examples/results/NAME.json.

    python examples/save_result.py NAME PART=FILE[:KEY.KEY] ... [--without KEY ...]

``PART`` is what the part is called in the result; keys lead to it inside the file. ``--without`` leaves out fields of
that name at any depth, such as those that have an entry for each latent. Floats keep five digits.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def part(source: str) -> Any:
    """What ``FILE[:KEY.KEY]`` says.

    Raises:
        KeyError: the file has no such key.
    """
    file, _, keys = source.partition(":")
    found = json.loads(Path(file).read_text())
    for key in filter(None, keys.split(".")):
        found = found[key]
    return found


def short(value: Any, without: frozenset[str]) -> Any:
    """The same with five digits, and without the fields of these names."""
    if isinstance(value, dict):
        return {key: short(each, without) for key, each in value.items() if key not in without}
    if isinstance(value, list):
        return [short(each, without) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def save(name: str, parts: dict[str, Any], *, folder: Path = RESULTS, without: frozenset[str] = frozenset()) -> Path:
    """Write the result; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(short(parts, without), indent=1, ensure_ascii=False) + "\n")
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("parts", nargs="+", metavar="PART=FILE[:KEY.KEY]")
    parser.add_argument("--without", nargs="+", default=[], metavar="KEY")
    given = parser.parse_args()
    taken = {name: part(source) for name, _, source in (each.partition("=") for each in given.parts)}
    print(save(given.name, taken, without=frozenset(given.without)))
