"""Templates of simple Python in pairs: two texts that differ in little and go on with different tokens.

One for each of the 20 tasks of Gao et al. 2025 (arXiv 2511.13653, table 1), whose own templates are not published. They
make the prompts of tasks, and written out in full the lines of a corpus in which the tasks can be learnt.

Answers end where the usual pre-tokenisation of byte-level BPE cuts: ``":`` is one piece, ``.add`` is two, and a line
break takes the indentation behind it along, but for its last space.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

NAMES = tuple(letter for letter in string.ascii_lowercase if letter != "f")
"""Variables; f stays the prefix of strings."""
FUNCTIONS = ("call", "make", "find", "show", "load", "send")
WORDS = ("cat", "dog", "sun", "tree", "fish", "bird", "moon", "rain", "book", "lamp", "road", "ship")
"""What strings hold."""
READ_NAMES = ("input", "source", "config")
"""Files that are read, by their names."""
WRITTEN_NAMES = ("output", "result", "report")
"""Files that are written."""


@dataclass(frozen=True)
class Snippet:
    """Some lines of Python, cut around one token; joined they are whole lines."""

    prompt: str
    answer: str
    """What follows: one token where the tokenizer has it."""
    rest: str

    @property
    def text(self) -> str:
        """All of it, a line break at the end."""
        return self.prompt + self.answer + self.rest


Pair = tuple[Snippet, Snippet]
"""The answers differ."""
Template = Callable[[Random], Pair]


def filler(draw: Random) -> str:
    """A line that belongs to no task."""
    a, b, c = draw.sample(NAMES, 3)
    lines = (
        f"{a} = {draw.randrange(10)}\n",
        f"{a} = {b} + {c}\n",
        f"{a} = {b}\n",
        f"print({a})\n",
        f"{a} = {draw.choice(FUNCTIONS)}({b})\n",
    )
    return draw.choice(lines)


def fillers(draw: Random, most: int) -> str:
    """No lines, or up to ``most``."""
    return "".join(filler(draw) for _ in range(draw.randint(0, most)))


def _single_double_quote(draw: Random) -> Pair:
    start = f"{draw.choice(NAMES)} = {draw.choice(FUNCTIONS)}("
    word = draw.choice(WORDS)
    return Snippet(f'{start}"{word}', '")', "\n"), Snippet(f"{start}'{word}", "')", "\n")


def _final_kwarg(draw: Random) -> Pair:
    function, names = draw.choice(FUNCTIONS), draw.sample(NAMES, draw.randint(2, 4))
    end = f"\n    return {names[0]}\n"
    with_defaults = ", ".join(f"{name}=None" for name in names[:-1])
    return (
        Snippet(f"def {function}({with_defaults}, {names[-1]}", "=", f"None):{end}"),
        Snippet(f"def {function}({', '.join(names)}", "):", end),
    )


def _set_or_string(draw: Random, name: str = "") -> Pair:
    name = name or draw.choice(NAMES)
    between = fillers(draw, 2)
    item = draw.choice(NAMES)
    return (
        Snippet(f"{name} = set()\n{between}{name}", ".", f"add({item})\n"),
        Snippet(f'{name} = ""\n{between}{name}', " +=", f" {item}\n"),
    )


def _set_or_string_fixedvarname(draw: Random) -> Pair:
    return _set_or_string(draw, "current")


def _class_init(draw: Random) -> Pair:
    names = draw.sample(NAMES, 4)
    start = f"class A:\n    def __init__(self, {', '.join(names)}):\n"
    first, second = draw.sample(names, 2)
    others = [name for name in names if name not in (first, second)]

    def copied(last: str, other: str) -> Snippet:
        before = "".join(f"        self.{name} = {name}\n" for name in [*others, other])
        return Snippet(f"{start}{before}        self.{last} =", f" {last}", "\n")

    return copied(first, second), copied(second, first)


def _with_as(draw: Random) -> Pair:
    path, file, other = draw.sample(NAMES, 3)
    return (
        Snippet(f"with open({path})", " as", f" {file}:\n    {other} = {file}\n"),
        Snippet(f"{file} = open({path})", "\n", f"{other} = {file}\n"),
    )


def _bracket_brace(draw: Random) -> Pair:
    name, word, other = draw.choice(NAMES), draw.choice(WORDS), draw.choice(WORDS)
    return (
        Snippet(f'{name} = {{"{word}', '":', f" {draw.randrange(10)}}}\n"),
        Snippet(f'{name} = ["{word}', '",', f' "{other}"]\n'),
    )


def _with_open(draw: Random) -> Pair:
    file = draw.choice(NAMES)
    read, written = draw.choice(READ_NAMES), draw.choice(WRITTEN_NAMES)
    return (
        Snippet(f'{file} = open("{read}.txt", "', "r", '")\n'),
        Snippet(f'{file} = open("{written}.txt", "', "w", '")\n'),
    )


def _bracket_counting(draw: Random) -> Pair:
    return bracket_counting(draw, [draw.randint(2, 3) for _ in range(draw.randint(2, 3))])


def bracket_counting(draw: Random, rows: list[int]) -> Pair:
    """The same numbers in one list and in a list of lists of these lengths: the longer, the harder to count."""
    name = draw.choice(NAMES)
    lists = [", ".join(str(draw.randrange(10)) for _ in range(length)) for length in rows]
    return (
        Snippet(f"{name} = [{', '.join(lists)}", "]", "\n"),
        Snippet(f"{name} = [[{'], ['.join(lists)}", "]]", "\n"),
    )


def _for_while(draw: Random) -> Pair:
    one, many, other = draw.sample(NAMES, 3)
    return (
        Snippet(f"for {one}", " in", f" {many}:\n    {other} = {one}\n"),
        Snippet(f"while {one}", ":", f"\n    {other} = {one}\n"),
    )


def _else_elif(draw: Random) -> Pair:
    a, b, c, d = draw.sample(NAMES, 4)
    start = f"if {a}:\n    {b} = {c}\n"
    return (
        Snippet(f"{start}else", ":", f"\n    {b} = {d}\n"),
        Snippet(f"{start}elif", f" {d}", f":\n    {b} = {d}\n"),
    )


def _fstring_brace(draw: Random) -> Pair:
    word, other = draw.sample(WORDS, 2)
    return (
        Snippet(f'print(f"{word}', " {", f'{draw.choice(NAMES)}}}")\n'),
        Snippet(f'print("{word}', f" {other}", '")\n'),
    )


def _if_ternary(draw: Random) -> Pair:
    a, b, c, d = draw.sample(NAMES, 4)
    return (
        Snippet(f"if {a}", ":", f"\n    {b} = {c}\n"),
        Snippet(f"{b} = {c} if {a}", " else", f" {d}\n"),
    )


def _var_swap(draw: Random) -> Pair:
    a, b = draw.sample(NAMES, 2)
    return Snippet(f"{a}, {b} = {b},", f" {a}", "\n"), Snippet(f"{b}, {a} = {a},", f" {b}", "\n")


def _indent_for(draw: Random) -> Pair:
    function, (many, one, other) = draw.choice(FUNCTIONS), draw.sample(NAMES, 3)
    start = f"def {function}({many}):\n    "
    return (
        Snippet(f"{start}for {one} in {many}:", "\n       ", f" {other} = {one}\n"),
        Snippet(f"{start}{one} = {many}", "\n   ", f" return {one}\n"),
    )


def _lambda_func(draw: Random) -> Pair:
    function, name = draw.choice(FUNCTIONS), draw.choice(NAMES)
    return (
        Snippet(f"{function} = lambda {name}", ":", f" {name}\n"),
        Snippet(f"def {function}", "(", f"{name}):\n    return {name}\n"),
    )


def _if_equals(draw: Random) -> Pair:
    a, b, c = draw.sample(NAMES, 3)
    # A name alone begins a line, and something has to stand before it.
    before = filler(draw)
    return (
        Snippet(f"{before}if {a}", " ==", f" {b}:\n    {c} = {a}\n"),
        Snippet(f"{before}{a}", " =", f" {b}\n"),
    )


def _enumerate_range(draw: Random) -> Pair:
    index, one, many = draw.sample(NAMES, 3)
    return (
        Snippet(f"for {index}, {one} in", " enumerate", f"({many}):\n    print({one})\n"),
        Snippet(f"for {index} in", " range", f"({many}):\n    print({index})\n"),
    )


def _var_if(draw: Random) -> Pair:
    a, b, c = draw.sample(NAMES, 3)
    return (
        Snippet(f"if {a} == True", ":", f"\n    {b} = {c}\n"),
        Snippet(f"{a} = True", "\n", f"{b} = {c}\n"),
    )


def _while_return_true(draw: Random) -> Pair:
    function, (a, b) = draw.choice(FUNCTIONS), draw.sample(NAMES, 2)
    start = f"def {function}({a}):\n    "
    return (
        Snippet(f"{start}while True:", "\n       ", f" {b} = {a}\n"),
        Snippet(f"{start}return True", "\n", f"{b} = {function}({a})\n"),
    )


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "single_double_quote": _single_double_quote,
        "final_kwarg": _final_kwarg,
        "set_or_string": _set_or_string,
        "set_or_string_fixedvarname": _set_or_string_fixedvarname,
        "class_init": _class_init,
        "with_as": _with_as,
        "bracket_brace": _bracket_brace,
        "with_open": _with_open,
        "bracket_counting": _bracket_counting,
        "for_while": _for_while,
        "else_elif": _else_elif,
        "fstring_brace": _fstring_brace,
        "if_ternary": _if_ternary,
        "var_swap": _var_swap,
        "indent_for": _indent_for,
        "lambda_func": _lambda_func,
        "if_equals": _if_equals,
        "enumerate_range": _enumerate_range,
        "var_if": _var_if,
        "while_return_true": _while_return_true,
    }
)
"""Task -> template, in the order of the paper's table."""
