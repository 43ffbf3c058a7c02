"""The code in the documentation: every fenced block of the README and of the pages under docs/.

    <!-- not run: REASON -->    before a block: what it names is checked, but it is not run
    <!-- prints -->             before a block of text: what the block above it prints, numbers within 2 %
    <!-- exits: CODE -->        before a block of bash: the code of its last command, else 0

All other blocks of Python and bash are run, those of a page in their order.
"""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")))
PAGES = tuple(page for page in PAGES if "_build" not in page)
RUN = ("python", "bash")
SHOWN = ("text", "json", "yaml", "bibtex")

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
_COMMENT = re.compile(r"^ *<!-- (not run|prints|exits)(?:: (.+))? -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    """Of the opening fence, from 1."""
    language: str
    code: str
    marks: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def not_run(self) -> str | None:
        return self.marks.get("not run")


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, in order."""
    found, marks, lines = [], {}, (text or (ROOT / page).read_text()).split("\n")
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if comment := _COMMENT.match(line):
            marks[comment[1]] = comment[2] or ""
        elif fence := _FENCE.match(line):
            start, (indent, ticks, info) = number, fence.groups()
            while lines[number].strip() != ticks:
                number += 1
            code = "\n".join(text.removeprefix(indent) for text in lines[start:number])
            found.append(Block(page, start, info.strip(), code + "\n", marks))
            marks = {}
            number += 1
        elif line.strip() and marks:
            raise ValueError(f"{page}:{number}: a mark that stands before no block")
    return found


def commands(code: str) -> list[str]:
    """The commands of a block of bash, one a line: continued lines joined, comments gone."""
    lines = re.sub(r"\\\n\s*", " ", code).split("\n")
    return [text for text in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if text]


def words(command: str) -> list[list[str]]:
    """The simple commands in a line, as words; those inside a quoted word, too."""
    split = [[]]
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            split.append([])
        else:
            split[-1].append(word)
            if "bliss-jax " in word:
                split[:0] = words(word.split("=", 1)[-1])
    return [simple for simple in split if simple]


def calls(block: Block, program: str) -> list[list[str]]:
    """The arguments of each call of a program in a block of bash, also behind `srun` and the like."""
    found = []
    for command in commands(block.code):
        for simple in words(command):
            if program in simple:
                arguments = simple[simple.index(program) + 1 :]
                found.append([word for word in arguments if word != "..."])
    return found


def names_of(code: str, module: str) -> set[str]:
    """The attributes of a module that code uses."""
    return {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == module
    }
