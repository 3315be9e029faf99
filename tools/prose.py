"""Lists sentences that open with a bare Who, What, Whatever, That, Whether or Which clause.

    python -m tools.prose [FILE or FOLDER ...]    # prints file:line: sentence for each; exits 1 when there is one

The rule. A sentence may not open with who, whoever, whose, whom, what, whatever, whether, which or whichever, unless it
ends with a question mark. "That" is refused only before a word that begins a clause ("That the model is late ...");
"That is", "That file" and "That works" are demonstratives. A new sentence begins after a full stop, a question mark, an
exclamation mark and a semicolon, and after a colon with a capital letter. After a colon with a small letter the
sentence goes on. An error text or a log line begins with a small letter, so these count as well. Headings of pages and
of tables' columns are titles, no sentences. In a quotation a line that begins with a dash is speech of a transcript.
"Half as far again" is refused wherever it stands: a number is said with its direction.

It reads Markdown, comments (Python, proto, TOML, YAML, shell, SQL, C++), docstrings, and the string literals of at
least three words in code that runs; in tests it reads docstrings, comments and messages of assertions, because other
strings there are data. It does not read generated code, the corpus of the models, or the words of a scene.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = (
    "npcd/v1/", "clients/python/npcd_client/v1/", "build/", "dist/", "models/corpus/", "loadtests/scenes/",
    "memory/migrations/",  # databases remember their checksums, so a migration that was released never changes
    "loadtests/patter.py",  # lines of players
)  # fmt: skip
# The mark that begins a comment, by a file's suffix or, where it has none, its name.
MARKS = {
    ".proto": "//", ".cpp": "//", ".toml": "#", ".yaml": "#", ".sh": "#", ".sql": "--", ".txt": "#",
    "Makefile": "#", "Dockerfile": "#", "run": "#",
}  # fmt: skip

OPENERS = "who|whoever|whose|whom|what|whatever|whether|which|whichever"
# After these "that" opens a clause; after anything else it points at something.
CLAUSE = (
    "the a an it they he she we you i no nobody nothing none each every everybody everything there this these those "
    "its their his her our your some somebody something all both many most several npcd what who two"
).replace(" ", "|")
BARE = re.compile(rf"(?:{OPENERS})\b(?!['’]s\b)|that\s+(?:{CLAUSE})\b", re.IGNORECASE)
MARKUP = re.compile(r"[\s*_\"'“‘(\[{>]*")
HALF_AGAIN = re.compile(r"\bhalf\s+as\s+\w+\s+again\b")
# A line of speech in a transcript, such as "> — Are you real? *Perhaps.*"
SPEECH = re.compile(r"\s*>\s*[—–]\s")
# A sentence ends at a mark before a blank; a colon ends one only before a capital letter.
END = re.compile(r"[.!?;][\"'”’)\]}*_`]*(?=\s)|:[*_`]*(?=\s+[A-Z])")


class Piece(NamedTuple):
    """A paragraph: its lines as (number of the line, text)."""

    lines: tuple[tuple[int, str], ...]


class Fault(NamedTuple):
    """One sentence that opens badly: the line on which it opens, and its words on one line."""

    line: int
    sentence: str


def faults(piece: Piece) -> Iterator[Fault]:
    """The sentences of one paragraph that open with a bare clause."""
    text = "\n".join(line for _, line in piece.lines)
    begin = 0
    for end in [*(found.end() for found in END.finditer(text)), len(text)]:
        sentence = text[begin:end]
        markup = MARKUP.match(sentence)
        opening = begin + (markup.end() if markup else 0)
        bare = BARE.match(text, opening) and not re.search(r"\?[^\w]*$", sentence)
        if bare or HALF_AGAIN.search(sentence):
            yield Fault(piece.lines[text.count("\n", 0, opening)][0], " ".join(sentence.split()))
        begin = end


def _paragraphs(lines: Sequence[tuple[int, str]]) -> Iterator[Piece]:
    """The lines between blank ones, and from one item of a list to the next."""
    held: list[tuple[int, str]] = []
    for number, line in lines:
        item = re.match(r"\s*(?:[*+-]|\d+\.)\s+", line)
        if held and (item or not line.strip()):
            yield Piece(tuple(held))
            held = []
        if line.strip():
            held.append((number, line[item.end() :] if item else line.lstrip()))
    if held:
        yield Piece(tuple(held))


def markdown(text: str) -> Iterator[Piece]:
    """The paragraphs, list items and cells of a page, without code blocks, headings and the first rows of tables."""
    prose: list[tuple[int, str]] = []
    cells: list[Piece] = []
    fenced = False
    rows = text.split("\n")
    for number, line in enumerate(rows, 1):
        bare = line.strip()
        if bare.startswith("```"):
            fenced = not fenced
        if fenced or bare.startswith(("```", "#", "<")) or (line.startswith("    ") and not prose[-1][1].strip()):
            prose.append((number, ""))
        elif bare.startswith("|"):
            prose.append((number, ""))
            if not re.match(r"\s*\|[\s:|-]+$", rows[number] if number < len(rows) else ""):
                row = [cell.strip() for cell in bare.strip("|").split("|")]
                cells.extend(Piece(((number, cell),)) for cell in row if cell.strip("-:"))
        elif SPEECH.match(line):
            prose.append((number, ""))
        else:
            prose.append((number, re.sub(r"^\s*>\s?", "", line)))
    yield from _paragraphs(prose)
    yield from cells


def comments(text: str, mark: str) -> Iterator[Piece]:
    """The comments that begin with `mark`; those on neighbouring lines of their own are one paragraph."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        before, found, after = _comment(line, mark)
        after = after.lstrip("#/-! ") if found else ""
        if found and not before.strip():
            block.append((number, after))
            continue
        yield from _paragraphs(block)
        block = []
        if found:
            yield Piece(((number, after),))
    yield from _paragraphs(block)


def _comment(line: str, mark: str) -> tuple[str, str, str]:
    """A line before, at and after its comment's mark; inside quotes, or right after a character, there is none."""
    for found in re.finditer(rf"(?:^|(?<=\s)){re.escape(mark)}+", line):
        if line[: found.start()].count('"') % 2 == 0:
            return line[: found.start()], mark, line[found.end() :]
    return line, "", ""


def python(text: str, strings: bool = True) -> Iterator[Piece]:
    """The comments, docstrings and strings of a Python file; without `strings` only the messages of assertions."""
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            own_line = not token.line[: token.start[1]].strip()
            if block and not (own_line and block[-1][0] == token.start[0] - 1):
                yield from _paragraphs(block)
                block = []
            block.append((token.start[0], token.string.lstrip("#: ")))
            if not own_line:
                yield from _paragraphs(block)
                block = []
    yield from _paragraphs(block)
    tree = ast.parse(text)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            said = first.value if isinstance(first, ast.Expr) else None
            if isinstance(said, ast.Constant) and isinstance(said.value, str):
                docstrings.add(said)
                yield from _paragraphs([(said.lineno + i, line) for i, line in enumerate(said.value.split("\n"))])
    read = [tree] if strings else [node.msg for node in ast.walk(tree) if isinstance(node, ast.Assert) and node.msg]
    for root in read:
        yield from _strings(root, docstrings)


def _strings(root: ast.AST, docstrings: set[ast.Constant]) -> Iterator[Piece]:
    inside: set[int] = set()
    for node in ast.walk(root):
        if isinstance(node, ast.JoinedStr):  # its parts come by themselves as well
            inside.update(id(value) for value in node.values)
            said = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            if id(node) in inside:
                continue
            said = node.value
        else:
            continue
        if len(said.split()) >= 3:
            yield from _paragraphs([(node.lineno, line) for line in said.split("\n")])


def pieces(path: Path, root: Path = ROOT) -> Iterator[Piece]:
    """All that a person reads in one file; nothing of a file of another kind."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from markdown(text)
    elif path.suffix == ".py":
        yield from python(text, strings="tests" not in path.relative_to(root).parts)
    elif mark := MARKS.get(path.suffix or path.name):
        yield from comments(text, mark)


def files(root: Path, below: Sequence[Path] = ()) -> Iterator[Path]:
    """The files that are read, in order; of hidden folders only .ci."""
    for path in sorted({found for top in below or [root] for found in ([top] if top.is_file() else top.rglob("*"))}):
        parts = path.relative_to(root).parts
        hidden = any((part.startswith(".") and part != ".ci") or part == "__pycache__" for part in parts[:-1])
        known = path.suffix in {".md", ".py"} or (path.suffix or path.name) in MARKS
        if path.is_file() and known and not hidden and not "/".join(parts).startswith(SKIPPED):
            yield path


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Prints the sentences of the named files and folders, else of the whole tree; returns 1 when there is one."""
    found = 0
    for path in files(root, [Path(name).resolve() for name in arguments]):
        for fault in sorted(fault for piece in pieces(path, root) for fault in faults(piece)):
            print(f"{path.relative_to(root)}:{fault.line}: {fault.sentence}")
            found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
