"""Results in words for a terminal; ``--json`` prints the data itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

_FIGURES = {"fvu": "FVU", "l0": "L0", "dead_share": "dead", "ce_recovered": "CE recovered"}


def emit(data: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """``data`` as JSON, or the lines."""
    if as_json:
        click.echo(json.dumps(data, indent=1))
    else:
        for line in lines:
            click.echo(line)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """What a run made, in a few lines."""
    lines = [f"{summary['name']}: {summary['status']} in {summary['seconds']['total']:.0f} s"]
    if collection := summary["collection"]:
        lines.append(
            f"  collection: {collection['tokens']:,} tokens, {collection['bytes'] / 1e6:,.0f} MB"
            + (f", {collection['tokens_per_s']:,.0f} tokens/s" if collection["tokens_per_s"] else "")
        )
    for name, figures in summary["dictionaries"].items():
        shown = figures if "fvu" in figures else figures.get("training", {})
        lines.append(_dictionary_line(name, shown, "" if "fvu" in figures else " (last training step)"))
    lines += [
        f"  {name}: {job['output']}{' (reused)' if job['reused'] else ''}" for name, job in summary["jobs"].items()
    ]
    return lines


def dictionary_lines(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The figures of each dictionary's last step in training."""
    return [_dictionary_line(name, figures, " (last training step)") for name, figures in metrics.items()]


def _dictionary_line(name: str, figures: Mapping[str, Any], where: str) -> str:
    words = [f"{word} {figures[key]:.4g}" for key, word in _FIGURES.items() if figures.get(key) is not None]
    return f"  dictionary {name}: {', '.join(words)}{where}"


def task_line(task: Mapping[str, Any]) -> str:
    """How far a task of a running job is, as the service says it."""
    from workers.progress import clock_time, short

    rate, left, total = task["rate_per_s"], task["left_s"], task["total"]
    words = [
        f"{short(task['done'])}{f'/{short(total)}' if total else ''} {task['unit']}",
        f"{short(rate)} {task['unit']}/s" if rate is not None else "",
        f"{clock_time(left)} left" if left is not None else "",
        task["waits"],
    ]
    return f"  {task['name']}: {', '.join(word for word in words if word)}"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Aligned columns under their names."""
    cells = [list(columns), *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def pairs(facts: Mapping[str, Any]) -> list[str]:
    """``name: value`` lines, values aligned."""
    width = max((len(name) for name in facts), default=0) + 1
    return [f"{name + ':':<{width}} {value}" for name, value in facts.items()]
