r"""Translates the plain-text equations of docstrings to LaTeX, for the documentation.

An equation stands on an indented line of a docstring, in a form that is readable in the terminal:

    internal(x, c) = -(s(x, t_c) - mu_c) / sigma_c

`as_latex` returns for this line

    \mathrm{internal}(x,\, c) = -\frac{s(x,\, t_{c}) - \mu_{c}}{\sigma_{c}}
"""

import re
from collections.abc import Sequence

_GREEK = {"alpha", "beta", "delta", "lambda", "mu", "sigma", "tau"}
_OPERATORS = {"exp", "log", "max", "min", "sum"}
_SIMPLE = {
    "<=": r"\le ", ">=": r"\ge ", "...": r"\ldots ", " . ": r" \cdot ",
    "#": r"\#", "{": r"\{", "}": r"\}", ",": r",\,",
    "\x00": r"\frac{", "\x01": "}{", "\x02": "}", "\x03": r"\sqrt{",
}  # fmt: skip

_POWER = r"\^(?:-?\d+|[A-Za-z])"
_INDEX = r"_\{[^}]*\}|_[A-Za-z0-9]+"
_SYMBOL = rf"[A-Za-z]+\d*\*?(?:{_POWER})?(?:{_INDEX})?(?:{_POWER})?"
_ARGUMENTS = r"\((?:[^()]|\([^()]*\))*\)"
_EQUATION = re.compile(rf"^\s*{_SYMBOL}(?:{_ARGUMENTS})?\s*(?:=|<=)\s")

# "mean over d in D_k(x) of": an operator, adjectives of its variable, the variable and its set.
_OVER = re.compile(r"(argmin|argmax|min|max|mean) over ((?:[a-z]+ )*?)([A-Za-z](?: in [^ ]+)?) of ")
_TOKEN = re.compile(
    rf"""(?P<operator>\\operatorname\S+\ ) | (?P<gap>\s{{3,}}) | (?P<dot>\ \.\ ) | (?P<blank>\s+)
    | (?P<scientific>1e-\d+) | (?P<number>\d+(?:\.\d+)?)
    | (?P<word>[A-Za-z]{{2,}}(?:-[A-Za-z]+)+)
    | (?P<name>[A-Za-z]+)(?P<digits>\d*)(?P<star>\*?)
      (?P<early>{_POWER})?(?P<index>{_INDEX})?(?P<late>{_POWER})?
    | (?P<power>{_POWER}) | (?P<symbol><=|>=|\.\.\.|.)""",
    re.VERBOSE | re.DOTALL,
)


def are_equations(lines: Sequence[str]) -> bool:
    """Returns whether every line is an equation that `as_latex` translates, and not code or a table."""
    return bool(lines) and all(
        _EQUATION.match(line) and not re.search("[\"`']", line) for line in lines
    )


def as_latex(lines: Sequence[str]) -> str:
    """Returns equations as LaTeX; several are aligned at their first equals or less-or-equal signs."""
    rows = [_aligned(line) for line in lines]
    return " \\\\ ".join(rows) if len(rows) > 1 else rows[0].replace("&", "")


def _aligned(line: str) -> str:
    text = re.sub(r"\s+(=|<=)\s", r" \1 ", line.strip(), count=1)
    text = _OVER.sub(_as_operator, _with_fractions(_with_roots(text)))
    latex = ""
    tokens = list(_TOKEN.finditer(text))
    for number, token in enumerate(tokens):
        following = tokens[number + 1][0] if number + 1 < len(tokens) else ""
        latex += _translated(token, following)
    # A blank beside a word is part of the text, and words next to each other are one text.
    latex = re.sub(r"(\\text\{[^{}]*)\} +", r"\1 }", re.sub(r" +(\\text\{)", r"\1 ", latex))
    latex = latex.replace(r"}\text{", "").replace("  ", " ")
    for sign in re.finditer(r"=|\\le ", latex):
        left, right = latex[: sign.start()], latex[sign.end() :]
        if left.count("(") == left.count(")"):
            return f"{left.strip()} &{sign[0]} {right.strip()}"
    return latex


def _translated(token: re.Match[str], following: str) -> str:
    text = token[0]
    if token["operator"]:
        return text.replace("~", " ")
    if token["gap"]:
        return r" \qquad "
    if token["scientific"]:
        return rf"10^{{{text.removeprefix('1e')}}}"
    if token["word"]:
        return rf"\text{{{text}}}"
    if token["name"]:
        return _name(token, following)
    if token["power"]:
        return _raised(text)
    return _SIMPLE.get(text, text)


def _name(token: re.Match[str], following: str) -> str:
    name, digits, index = token["name"], token["digits"], token["index"] or ""
    if name in _GREEK or name in _OPERATORS:
        base = rf"\{name} "
    elif len(name) == 1:
        base = name
    elif following.startswith("(") or index:
        base = rf"\mathrm{{{name}}}"
    else:
        return rf"\text{{{name + digits}}}"
    below = digits or index.removeprefix("_").strip("{}").replace(" in ", r" \in ")
    below = re.sub(r"(?<!\\)\b([A-Za-z]{2,})\b", r"\\mathrm{\1}", below).replace("*", "^{*}")
    above = "^{*}" if token["star"] else _raised(token["early"] or token["late"] or "")
    if not below and not above:
        return base
    return base.strip() + (f"_{{{below}}}" if below else "") + above


def _raised(power: str) -> str:
    if not power:
        return ""
    return r"^{\top}" if power == "^T" else f"^{{{power[1:]}}}"


def _as_operator(match: re.Match[str]) -> str:
    """Returns the operator with its index; a blank inside the index is written as `~` until the end."""
    words = rf"\text{{{match[2]}}}" if match[2] else ""
    variable = re.sub(r"_(\w)", r"_{\1}", match[3].replace(" in ", r" \in "))
    return rf"\operatorname{{{match[1]}}}_{{{words}{variable}}}".replace(" ", "~") + " "


def _with_roots(text: str) -> str:
    r"""Marks each `sqrt(A)` as a root: \x03 A \x02."""
    while (start := text.find("sqrt(")) >= 0:
        end = _end_of_group(text, start + 4)
        text = f"{text[:start]}\x03{text[start + 5 : end - 1].strip()}\x02{text[end:]}"
    return text


def _with_fractions(text: str) -> str:
    r"""Marks each `A / B` as a fraction, \x00 A \x01 B \x02, if both operands are unmistakable.

    An operand is a group in parentheses, a call, or a single symbol. Other factors next to it would make it
    ambiguous, so such a division keeps its slash.
    """
    position = text.find(" / ")
    while position >= 0:
        left, right = _operand_before(text, position), _operand_after(text, position + 3)
        if left is not None and right is not None:
            above, below = text[left:position], text[position + 3 : right]
            fraction = f"\x00{_without_parentheses(above)}\x01{_without_parentheses(below)}\x02"
            text = text[:left] + fraction + text[right:]
            position = left
        position = text.find(" / ", position + 1)
    return text


def _operand_before(text: str, end: int) -> int | None:
    """Returns the start of the operand that ends at `end`."""
    match = re.search(rf"(?:{_SYMBOL})?{_ARGUMENTS}$|{_SYMBOL}$", text[:end])
    if not match:
        return None
    before = text[: match.start()]
    is_factor = before.endswith(" ") and bool(re.search(r"[\w)}\x02]$", before.rstrip()))
    return None if is_factor and not before.endswith(" of ") else match.start()


def _operand_after(text: str, start: int) -> int | None:
    """Returns the end of the operand that starts at `start`."""
    match = re.match(rf"(?:{_SYMBOL})?{_ARGUMENTS}|{_SYMBOL}|\x03[^\x02]*\x02|\d+", text[start:])
    if not match or match[0].startswith("sum"):
        return None
    end = start + match.end()
    return None if re.match(r" ?[\w(]", text[end:]) else end


def _end_of_group(text: str, start: int) -> int:
    """Returns the position after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    return len(text)


def _without_parentheses(operand: str) -> str:
    whole = operand.startswith("(") and _end_of_group(operand, 0) == len(operand)
    return operand[1:-1].strip() if whole else operand
