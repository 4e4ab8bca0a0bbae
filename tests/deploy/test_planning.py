"""What the words of a plan leave out."""

from __future__ import annotations

from deploy.planning import _dictionaries


def test_a_long_sweep_is_shown_in_brief() -> None:
    sizes = {f"k{index}": 2**20 for index in range(40)}
    lines = _dictionaries(sizes)
    assert list(lines)[:2] == ["  k0", "  k1"]
    assert list(lines.items())[-1] == ("  and 28 more", "k12 .. k39")
    assert len(_dictionaries(dict(list(sizes.items())[:13]))) == 13
