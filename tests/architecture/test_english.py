"""A ratchet for plain English: forbidden turns of phrase are counted for each area, and the counts may only fall."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tree import DAEMON, ROOT, SQL, Function

# The name of each turn, and the expression that finds it. A pattern sees one paragraph, docstring, comment or text at a
# time, on one line. Quoted code is one word, so that it starts no sentence and ends none.
# `told:` in a docstring is the name of an argument.
START = r"(?:^|(?<=[.;:!?] )|(?<=[.;:!?] \())"
BE = r"(?:is|are|was|were|be|been|being)"
VERB = (
    r"(?:is|are|was|were|has|had|have|does|did|may|can|cannot|must|will|would|could|should|"
    r"goes|comes|came|waits|waited|stands|stood|lies|belongs|remains|fails|failed|takes|took|makes|made|"
    r"becomes|became|follows|counts|needs|runs|ends|ended|holds|held|changes|changed|lives|arrives|arrived)"
)
TURNS = {
    "a clause whose subject is what": rf"\b[Ww]hat(?:ever)?(?: else| really| only| already| still)? {VERB}\b",
    "a sentence that begins with who or what": rf"{START}(?:Who|What)\b(?![^.;:!]*\?)",
    "who without a noun": r"\b(?:for|of|to|by|with|from|that|and|or|but|if|where|when|only|than|as) who\b",
    "whom, whoever": r"\b[Ww]ho(?:m|ever|mever|so|soever)\b",
    "Whether as a docstring": rf"{START}Whether\b",
    "told, tells": r"\b[Tt]old\b(?!:)|\b[Tt]ells\b(?!.{0,30}\bapart\b)|\btell(?:ing)? (?:of|the|it|an|a)\b",
    "said": r"\b[Ss]aid\b|\b[Ss]a(?:y|ys|ying) of\b",
    "heard": r"\b[Hh]ears?\b|\b[Hh]eard\b",
    "a look": (
        r"\b(?:a|the|next|this|one|each|its|first|every|another|two) looks?\b|"
        r"\b[Ll]ook(?:s|ing|ed)? (?:at|for|into|through|again|once|over)\b"
    ),
    "stands": r"\b(?:[Ss]tands?|[Ss]tood)\b(?!-| by\b| for\b)",
    "a road": r"\b[Rr]oads?\b",
    "asked": rf"\b{BE}(?: not| never| only| also)? asked\b(?! for\b)",
    "looked": rf"\b{BE}(?: not| never| only| also)? looked\b(?! up\b)|\blook(?:s|ed)? whether\b",
    "Say, Tell, Look, Let, Go on": rf"{START}(?:Say|Tell|Look|Let|Go on)\b(?!-| up\b)",
    "an old word": (
        r"\b(?:[Ll]est|[Oo]f late(?=[.;:)]| that\b)|[Aa]s ever|[Aa]t the most|[Tt]hrice|[Ww]hence|[Tt]hither|[Hh]ither|"
        r"[Aa]new|[Aa]shore|[Aa]board|[Ff]arewell|[Nn]aught|[Aa]ught|[Tt]hereof|[Ww]herein|[Hh]itherto|[Oo]ught)\b"
    ),
    "none as a thing": (
        r"\b[Nn]othing of (?:it|them)\b|\b[Nn]one of ours\b|"
        r"(?<!if there )\b(?:is|are|was|were) none\b(?! of\b)"
    ),
    "is no thing": rf"(?<![Tt]here )\b{BE} no (?!more\b|longer\b|later\b|older\b|one\b|match\b)\w+",
    "is to be": r"\b(?:is|are|was|were) to be\b",
    "that there is": r"\b(?:that|as) there (?:is|are|was|were)\b(?= ?[.,;:)]|$)",
    "a fragment": r"\b[Ww]ithout: |\b[Dd]o it\. ",
    "on its way": r"\bon (?:its|their) way\b(?! to\b)",
}
FINDERS = {name: re.compile(pattern) for name, pattern in TURNS.items()}

# The highest count of each area. Guides are at 0; the others may only fall. `python tests/architecture/test_english.py`
# prints the present counts, and with the names of areas their turns.
ALLOWED = {
    "README.md": 0,
    "guide: sql": 0,
    "guide: systemd": 0,
    "guide: daemon": 0,
    "guide: tests": 0,
    "guide: faults": 0,
    "guide: others": 0,
    "cli": 0,
    "delivery": 0,
    "egress": 0,
    "encryption": 0,
    "endpoint_health": 0,
    "event_log": 0,
    "model": 0,
    "operations": 0,
    "owner_mail": 0,
    "postgres": 0,
    "process": 0,
    "runtime": 0,
    "scheduling": 0,
    "settings": 0,
    "webhook": 0,
    "texts: cli": 3,
    "texts: settings": 0,
    "sql": 0,
    "tests: architecture": 0,
    "tests: bench": 0,
    "tests: component": 0,
    "tests: faults": 0,
    "tests: process": 0,
    "tests: simulation": 0,
    "tests: support": 1,
    "tests: unit": 0,
    "names of tests": 52,
}
GUIDES = {
    "README.md": "README.md",
    "guide: sql": "sql/README.md",
    "guide: systemd": "systemd/README.md",
    "guide: daemon": "daemon/README.md",
    "guide: tests": "tests/README.md",
    "guide: faults": "tests/faults/README.md",
    "guide: others": "[CS]*.md",
}
ROOMS = sorted(path.name for path in (DAEMON / "pghookd").iterdir() if (path / "__init__.py").exists())
FOLDERS = sorted({path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/*.py")})
TEXTS = ("cli", "settings")
COMMENT_ON = re.compile(r"^comment on [^']+ is\s+'((?:[^']|''|'\s+')*)';", re.MULTILINE)
JOINT = re.compile(r"'\s+'")  # between the parts of one text


@dataclasses.dataclass(frozen=True)
class Passage:
    """A paragraph, docstring, comment or text on one line, and where it starts."""

    place: str
    text: str


def one_line(text: str) -> str:
    """Return text on one line, with each piece of quoted code as one word."""
    return " ".join(re.sub(r"`+[^`]*`+", "code", text).split())


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def of_guide(path: Path) -> Iterator[Passage]:
    """Yield the paragraphs, items and cells of a guide, without code, titles and heads of tables."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    lines = [*text.splitlines(), ""]
    paragraph: list[str] = []
    for number, line in enumerate(lines, 1):
        starts = not line.strip() or re.match(r"\s*(?:[-*] |\d+\. |[#|]|<!--)", line)
        if starts and paragraph:
            yield Passage(where(path, number - len(paragraph)), one_line(" ".join(paragraph)))
            paragraph = []
        if line.startswith("|"):
            if number == len(lines) or not lines[number].startswith("|--"):
                cells = re.sub(r"`[^`]*`", "code", line).replace(r"\|", "/").strip("|").split("|")
                yield from (Passage(where(path, number), one_line(cell)) for cell in cells)
        elif line.strip() and not line.startswith(("#", "<!--")):
            paragraph.append(re.sub(r"^\s*(?:[-*]|\d+\.) ", "", line))


def of_comments(path: Path, lines: dict[int, str]) -> Iterator[Passage]:
    """Yield comments by number of their line; those of lines that follow each other are one."""
    block: list[str] = []
    for number in sorted(lines):
        block.append(lines[number])
        if number + 1 not in lines:
            yield Passage(where(path, number - len(block) + 1), one_line(" ".join(block)))
            block = []


def of_python(path: Path) -> Iterator[Passage]:
    """Yield the docstrings and comments of a module; a docstring's paragraphs one by one."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and (text := ast.get_docstring(node)):
            first = node.body[0].lineno
            yield from (Passage(where(path, first), one_line(part)) for part in text.split("\n\n"))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    yield from of_comments(path, {number: text.lstrip("#: ") for number, text in comments.items()})


def of_texts(path: Path) -> Iterator[Passage]:
    """Yield what a module says to people: its string constants of several words that are not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield Passage(where(path, node.lineno), one_line(node.value))


def of_names(path: Path) -> Iterator[Passage]:
    """Yield the names of a module's tests, as words."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function) and node.name.startswith("test_"):
            yield Passage(where(path, node.lineno), node.name.removeprefix("test_").replace("_", " "))


def of_sql(path: Path) -> Iterator[Passage]:
    """Yield the comments of a file of SQL, and the texts of its `comment on ... is '...'`."""
    text = path.read_text(encoding="utf-8")
    lines = enumerate(text.splitlines(), 1)
    comments = {number: found[1] for number, line in lines if (found := re.search(r"--\s*(.*)", line))}
    yield from of_comments(path, comments)
    for found in COMMENT_ON.finditer(text):
        yield Passage(where(path, text.count("\n", 0, found.start()) + 1), one_line(JOINT.sub("", found[1])))


def files_of(folder: Path, pattern: str = "*.py") -> list[Path]:
    return sorted(folder.rglob(pattern))


# The files of each area, and the function that finds passages in one: of guides, rooms, texts that operators read, SQL,
# folders of tests, and the names of tests.
AREAS: dict[str, tuple[list[Path], Callable[[Path], Iterator[Passage]]]] = {
    **{name: (sorted(ROOT.glob(at)), of_guide) for name, at in GUIDES.items()},
    **{room: (files_of(DAEMON / "pghookd" / room), of_python) for room in ROOMS},
    **{f"texts: {room}": (files_of(DAEMON / "pghookd" / room), of_texts) for room in TEXTS},
    "sql": (files_of(SQL, "*.sql"), of_sql),
    **{f"tests: {folder}": (files_of(ROOT / "tests" / folder), of_python) for folder in FOLDERS},
    "names of tests": (files_of(ROOT / "tests"), of_names),
}


def passages_of(area: str) -> list[Passage]:
    files, find = AREAS[area]
    return [passage for path in files for passage in find(path)]


def turns(passages: list[Passage]) -> list[str]:
    """Return a line for each forbidden turn: its place, its kind, and the words around it."""
    return [
        f"{passage.place}: {name}: ...{passage.text[max(0, found.start() - 40) : found.end() + 40]}..."
        for passage in passages
        for name, finder in FINDERS.items()
        for found in finder.finditer(passage.text)
    ]


def test_every_area_has_a_number():
    assert sorted(AREAS) == sorted(ALLOWED)


@pytest.mark.parametrize("area", sorted(ALLOWED))
def test_forbidden_turns_only_become_fewer(area):
    found = turns(passages_of(area))
    assert len(found) <= ALLOWED[area], "\n".join(
        [f"{area}: {len(found)} forbidden turns, at most {ALLOWED[area]} are allowed", *found]
    )
    assert len(found) == ALLOWED[area], (
        f"{area}: only {len(found)} forbidden turns are left: lower its number in ALLOWED from {ALLOWED[area]}"
    )


def test_every_text_of_a_comment_on_is_read():
    for text in (path.read_text(encoding="utf-8") for path in AREAS["sql"][0]):
        assert len(COMMENT_ON.findall(text)) == len(re.findall(r"\bcomment on\b.+\bis\b", text))


# The table itself is tested --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "What is queued waits.",
        "so that who has just got up is not run over",
        "Whom we believe to be who they say",
        "Whether it is open.",
        "from here on it is told",
        "Say that a session is about to be ended: its loss is none",
        "A password is given lest OpenSSL asks.",
        "null: nothing of it",
        "auth is no JSON",
        "how often is looked whether it stands still",
        "None: there is none",
        "the largest at the most",
    ],
)
def test_examples_of_the_style_guide_are_found(text):
    assert turns([Passage("here", text)])


@pytest.mark.parametrize(
    "text",
    [
        "There is no broker.",
        "The person who installs it reads this.",
        "Return True if the breaker is open.",
        "It reports whether a URL is allowed, and why.",
        "A lane is no longer than this.",
        "See what pghookd does.",
    ],
)
def test_plain_sentences_are_not(text):
    assert not turns([Passage("here", text)])


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:]:
        print("\n".join(turns(passages_of(name))))
    if not sys.argv[1:]:
        print("\n".join(f'    "{area}": {len(turns(passages_of(area)))},' for area in AREAS))
