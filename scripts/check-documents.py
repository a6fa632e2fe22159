#!/usr/bin/env python3
"""Checks that what the documents point at is there: linked files, paths in backquotes, names that a document says are in a
file (`name` in `path`; ARCHITECTURE.md alone); and that the S-, D- and hazard rows that code (comments and quoted names) and documents cite stand
in docs/targets.md and docs/hazards.md.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]+)?\)")
PATH = re.compile(r"`((?:crates|docs|scripts|packaging|fuzz|protocol|postgres|storage|compute|control|testing)/[\w./-]+)`")
# Names, and the file that has them: "`a` and `b` in `crates/x.rs`", "`a`, `crates/x.rs`".
NAMES_IN = re.compile(r"((?:`[\w:]+`(?:, and |, | and )?)+)(?: below it)?,? ?(?:in )?`([\w/-]+/[\w/.-]+\.(?:rs|py|sh))`")
# A row of docs/targets.md as the code cites it: S1 to S99, D1 to D99, as a word of its own.
TARGET = re.compile(r"\b([SD]\d{1,2})\b")
COMMENT_TARGET = re.compile(r"//[^\n]*?\b([SD]\d{1,2})\b(?!\()")
QUOTED_TARGET = re.compile(r'"([SD]\d{1,2})"')
TARGET_ROW = re.compile(r"^\| ([SD]\d{1,2}) \|", re.MULTILINE)
HAZARD = re.compile(r"\b[Hh]azards? (\d{1,2}(?:(?:, | and |, and | to )\d{1,2})*)\b")
HAZARD_ROW = re.compile(r"^\| (\d{1,2}) \|", re.MULTILINE)


def slug(heading):
    """The anchor that a heading has."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links():
    for document in DOCUMENTS:
        text = document.read_text()
        for match in LINK.finditer(text):
            target, anchor = match.group(1), match.group(2)
            if "://" in target or target.startswith("mailto:"):
                continue
            file = (document.parent / target).resolve()
            if not file.exists():
                yield document, text, match, f"{target} is not there"
            elif anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                if anchor[1:] not in {slug(heading) for heading in headings}:
                    yield document, text, match, f"{target} has no heading for {anchor}"
        for match in PATH.finditer(text):
            # Tables say where they leave `crates/` out.
            if not (ROOT / match.group(1)).exists() and not (ROOT / "crates" / match.group(1)).exists():
                yield document, text, match, f"{match.group(1)} is not there"
        for match in NAMES_IN.finditer(text if document.name == "ARCHITECTURE.md" else ""):
            file = next((f for f in (ROOT / match.group(2), ROOT / "crates" / match.group(2)) if f.is_file()), None)
            for name in re.findall(r"\w+", match.group(1).replace("`", " ")) if file else ():
                if name != "and" and not re.search(rf"\b{name}\b", file.read_text()):
                    yield document, text, match, f"{match.group(2)} has no {name}"


def cited():
    """Rows that something cites: (file, text, match, what is wrong)."""
    targets = set(TARGET_ROW.findall((ROOT / "docs/targets.md").read_text()))
    hazards = set(HAZARD_ROW.findall((ROOT / "docs/hazards.md").read_text()))
    sources = [*DOCUMENTS, *(p for p in sorted((ROOT / "crates").rglob("*.rs")) if "target" not in p.relative_to(ROOT).parts), *(p for p in sorted((ROOT / "scripts").glob("*.py")) if p.name != "test-lint.py")]
    for file in sources:
        text = file.read_text()
        # In code only comments and what is quoted: S1 may be a name there.
        patterns = {".rs": [COMMENT_TARGET, QUOTED_TARGET], ".md": [TARGET]}.get(file.suffix, [])
        for match in (match for pattern in patterns for match in pattern.finditer(text)):
            if match.group(1) not in targets:
                yield file, text, match, f"{match.group(1)} has no row in docs/targets.md"
        for match in HAZARD.finditer(text):
            for number in re.findall(r"\d+", match.group(1)):
                if number not in hazards:
                    yield file, text, match, f"hazard {number} has no row in docs/hazards.md"


def main():
    problems = [f"{file.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {what}" for file, text, match, what in [*links(), *cited()]]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
