"""The statements of the Python grammar: twenty templates, each in two forms that differ in the one token to come.

A statement is ``prompt + answer + rest``, whole lines. The two forms of a template, drawn from generators in the same
state, have the same names and words, so that a pair of them asks a binary question: which answer follows which prompt.
Answers are whole pieces of ``pipeline.tokens.own``'s pre-tokenisation, that is one token of a tokenizer that has seen
them often.

The names of the templates are those of the tasks of Gao et al. 2025 (arXiv 2511.13653, table 1), who describe each in a
sentence and did not publish theirs; the forms are our own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.grammar.pieces import ATTRIBUTES, FUNCTIONS, INDENT, WORDS, digit, filler, variables
from schemas.grammar import TemplateName


@dataclass(frozen=True)
class Statement:
    """Text of one form of a template."""

    prompt: str
    """Up to the question; what comes before the statement in its document does not matter to it."""
    answer: str
    """One piece of text."""
    rest: str
    """To the end of the last line."""

    @property
    def text(self) -> str:
        """All of it."""
        return self.prompt + self.answer + self.rest


Template = Callable[[random.Random, bool], Statement]
"""Draws the same things for both forms; true: the second form."""


def _single_double_quote(rng: random.Random, second: bool) -> Statement:
    x, f, word, quote = *variables(rng, 1), rng.choice(FUNCTIONS), rng.choice(WORDS), "'" if second else '"'
    return Statement(f"{x} = {f}({quote}{word}", f"{quote})", "\n")


def _final_kwarg(rng: random.Random, second: bool) -> Statement:
    f, (x, y, z), default = rng.choice(FUNCTIONS), variables(rng, 3), "" if second else "=None"
    body = f"\n{INDENT}return {x}\n"
    if second:
        return Statement(f"def {f}({x}{default}, {y}{default}, {z}", "):", body)
    return Statement(f"def {f}({x}{default}, {y}{default}, {z}", "=", f"None):{body}")


def _initialised(rng: random.Random, name: str, second: bool) -> Statement:
    between = "".join(filler(rng) for _ in range(1 + rng.randrange(2)))
    item, word = *variables(rng, 1), rng.choice(WORDS)
    if second:
        return Statement(f'{name} = ""\n{between}{name}', " +=", f' "{word}"\n')
    return Statement(f"{name} = set()\n{between}{name}", ".", f"add({item})\n")


def _set_or_string(rng: random.Random, second: bool) -> Statement:
    return _initialised(rng, variables(rng, 1)[0], second)


def _set_or_string_fixedvarname(rng: random.Random, second: bool) -> Statement:
    return _initialised(rng, "current", second)


def _class_init(rng: random.Random, second: bool) -> Statement:
    names = rng.sample(ATTRIBUTES, 2)
    first, last = reversed(names) if second else names
    head = f"def __init__(self, {names[0]}, {names[1]}):\n{INDENT}self.{first} = {first}\n{INDENT}self.{last} ="
    return Statement(head, f" {last}", "\n")


def _with_as(rng: random.Random, second: bool) -> Statement:
    handle, path = variables(rng, 2)
    if second:
        return Statement(f"{handle} = open({path})", "\n", "")
    return Statement(f"with open({path})", " as", f" {handle}:\n{INDENT}pass\n")


def _bracket_brace(rng: random.Random, second: bool) -> Statement:
    (x,), (word, other), value = variables(rng, 1), rng.sample(WORDS, 2), digit(rng)
    if second:
        return Statement(f'{x} = ["{word}', '",', f' "{other}"]\n')
    return Statement(f'{x} = {{"{word}', '":', f" {value}}}\n")


def _with_open(rng: random.Random, second: bool) -> Statement:
    (handle,), name, mode = variables(rng, 1), "output" if second else "input", "w" if second else "r"
    return Statement(f'with open("{name}.txt", "', mode, f'") as {handle}:\n{INDENT}pass\n')


def _bracket_counting(rng: random.Random, second: bool) -> Statement:
    (x,), (a, b, c, d) = variables(rng, 1), (digit(rng) for _ in range(4))
    if second:
        return Statement(f"{x} = [[{a}, {b}], [{c}, {d}", "]]", "\n")
    return Statement(f"{x} = [{a}, {b}, {c}, {d}", "]", "\n")


def _for_while(rng: random.Random, second: bool) -> Statement:
    (x, items), f = variables(rng, 2), rng.choice(FUNCTIONS)
    if second:
        return Statement(f"while {x}", ":", f"\n{INDENT}{f}({x})\n")
    return Statement(f"for {x}", " in", f" {items}:\n{INDENT}{f}({x})\n")


def _else_elif(rng: random.Random, second: bool) -> Statement:
    (x, y), f, g = variables(rng, 2), rng.choice(FUNCTIONS), rng.choice(FUNCTIONS)
    head = f"if {x}:\n{INDENT}{f}({x})\n"
    if second:
        return Statement(f"{head}elif", f" {y}", f":\n{INDENT}{g}({y})\n")
    return Statement(f"{head}else", ":", f"\n{INDENT}{g}({y})\n")


def _fstring_brace(rng: random.Random, second: bool) -> Statement:
    (x,), (word, other) = variables(rng, 1), rng.sample(WORDS, 2)
    if second:
        return Statement(f'print("{word}', f" {other}", '")\n')
    return Statement(f'print(f"{word}', " {", f'{x}}}")\n')


def _if_ternary(rng: random.Random, second: bool) -> Statement:
    (x, y, z), f = variables(rng, 3), rng.choice(FUNCTIONS)
    if second:
        return Statement(f"{y} = {z} if {x}", " else", " None\n")
    return Statement(f"if {x}", ":", f"\n{INDENT}{f}({x})\n")


def _var_swap(rng: random.Random, second: bool) -> Statement:
    x, y = variables(rng, 2)
    if second:
        x, y = y, x
    return Statement(f"{x}, {y} = {y},", f" {x}", "\n")


def _indent_for(rng: random.Random, second: bool) -> Statement:
    (x, items), f = variables(rng, 2), rng.choice(FUNCTIONS)
    if second:
        return Statement(f"{x} = {items}\n", f, f"({x})\n")
    return Statement(f"for {x} in {items}:\n", INDENT, f"{f}({x})\n")


def _lambda_func(rng: random.Random, second: bool) -> Statement:
    f, (x,), number = rng.choice(FUNCTIONS), variables(rng, 1), digit(rng)
    if second:
        return Statement(f"def {f}", "(", f"{x}):\n{INDENT}return {x} + {number}\n")
    return Statement(f"{f} = lambda {x}", ":", f" {x} + {number}\n")


def _if_equals(rng: random.Random, second: bool) -> Statement:
    (x,), number, f = variables(rng, 1), digit(rng), rng.choice(FUNCTIONS)
    if second:
        return Statement(x, " =", f" {number}\n")
    return Statement(f"if {x}", " ==", f" {number}:\n{INDENT}{f}({x})\n")


def _enumerate_range(rng: random.Random, second: bool) -> Statement:
    (index, value, items), number, f = variables(rng, 3), digit(rng), rng.choice(FUNCTIONS)
    if second:
        return Statement(f"for {index} in", " range", f"({number}):\n{INDENT}{f}({index})\n")
    return Statement(f"for {index}, {value} in", " enumerate", f"({items}):\n{INDENT}{f}({value})\n")


def _var_if(rng: random.Random, second: bool) -> Statement:
    (x,), f = variables(rng, 1), rng.choice(FUNCTIONS)
    if second:
        return Statement(f"{x} = True", "\n", "")
    return Statement(f"if {x} == True", ":", f"\n{INDENT}{f}({x})\n")


def _while_return_true(rng: random.Random, second: bool) -> Statement:
    f, g, (x, y), number = rng.choice(FUNCTIONS), rng.choice(FUNCTIONS), variables(rng, 2), digit(rng)
    head = f"def {f}({x}):\n{INDENT}"
    if second:
        return Statement(f"{head}return True\n", y, f" = {number}\n")
    return Statement(f"{head}while True:\n", 2 * INDENT, f"{g}({x})\n")


TEMPLATES: Mapping[TemplateName, Template] = {
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


def statement(name: TemplateName, rng: random.Random, *, second: bool) -> Statement:
    """A draw of one form of a template."""
    return TEMPLATES[name](rng, second)


def statement_pair(name: TemplateName, seed: str) -> tuple[Statement, Statement]:
    """Both forms with the same names and words; a function of the name and the seed."""
    return statement(name, random.Random(seed), second=False), statement(name, random.Random(seed), second=True)
