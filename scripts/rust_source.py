"""What the checks of this folder know of a Rust source file: enough to tell code from comments, strings and tests.

It is no parser. It knows comments, literals, brackets and the attribute `#[cfg(test)]`, and leaves lengths and line
numbers as they are, so that whoever finds something can say where.
"""
import bisect
import pathlib
import re
import tomllib

TOKEN = re.compile(
    r"""
    (?P<comment>//[^\n]*)
  | (?P<block>/\*)
  | (?P<raw>\b(?:br|cr|r)(?P<hashes>\#*)")
  | (?P<string>\b[bc]?"(?:[^"\\]|\\.)*"|"(?:[^"\\]|\\.)*")
  | (?P<character>\bb?'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.))'|'(?:[^'\\\n]|\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.))')
    """,
    re.VERBOSE | re.DOTALL,
)
NOT_NEWLINE = re.compile(r"[^\n]")
TEST_ATTRIBUTE = re.compile(r"#\[cfg\((?:all\()?test\b[^\]]*\)\]")
OPENING, CLOSING = "([{", ")]}"


def blank(text):
    """As many characters and lines, with nothing on them."""
    return NOT_NEWLINE.sub(" ", text)


def strip(text, strings=True):
    """The text with comments (and what stands in literals) blanked, of the same length and lines."""
    out, at = [], 0
    while match := TOKEN.search(text, at):
        out.append(text[at : match.start()])
        end = match.end()
        if match["block"]:
            depth, end = 1, match.end()
            while depth and (next_mark := re.compile(r"/\*|\*/").search(text, end)):
                depth += 1 if next_mark.group() == "/*" else -1
                end = next_mark.end()
            out.append(blank(text[match.start() : end]))
        elif match["comment"]:
            out.append(blank(match.group()))
        else:
            if match["raw"]:
                closing = text.find('"' + match["hashes"], match.end())
                end = len(text) if closing < 0 else closing + 1 + len(match["hashes"])
            literal = text[match.start() : end]
            out.append('"' + blank(literal[1:-1]) + '"' if strings and len(literal) > 1 else literal)
        at = end
    out.append(text[at:])
    return "".join(out)


def closing(stripped, at):
    """Where the bracket that opens at `at` closes."""
    depth = 0
    for match in re.compile(r"[(){}\[\]]").finditer(stripped, at):
        depth += 1 if match.group() in OPENING else -1
        if depth == 0:
            return match.start()
    return len(stripped) - 1


def end_of_item(stripped, at):
    """Where the item that begins at `at` (attributes first) ends: behind its semicolon, or its closing brace."""
    for match in re.compile(r"[;({\[,})\]]").finditer(stripped, at):
        if match.start() < at:
            continue
        kind = match.group()
        if kind in ";,":
            return match.end()
        if kind in CLOSING:
            return match.start()
        at = closing(stripped, match.start()) + 1
        if kind == "{":
            return at
    return len(stripped)


def test_ranges(stripped):
    """Where `#[cfg(test)]` items stand, as pairs of positions."""
    ranges, last = [], 0
    for match in TEST_ATTRIBUTE.finditer(stripped):
        if match.start() < last:
            continue
        last = end_of_item(stripped, match.end())
        ranges.append((match.start(), last))
    return ranges


class Source:
    """One file: its text, the same without comments and literals, and the same without tests too."""

    def __init__(self, path):
        self.path = path
        self.text = path.read_text()
        self.stripped = strip(self.text)
        self.tests = test_ranges(self.stripped)
        code = self.stripped
        for begin, end in self.tests:
            code = code[:begin] + blank(code[begin:end]) + code[end:]
        self.code = code
        self._lines = [match.start() for match in re.finditer("\n", self.text)]

    def line(self, at):
        """The number of the line that a position is on."""
        return bisect.bisect_left(self._lines, at) + 1

    def in_tests(self, at):
        return any(begin <= at < end for begin, end in self.tests)

    def functions(self):
        """Each function outside tests that has a body: name, position, lines of code between its braces."""
        for match in re.finditer(r"\bfn\s+(\w+)", self.code):
            body = self.body_of(match.end())
            if body:
                inner = self.code[body[0] + 1 : body[1]]
                yield match.group(1), match.start(), lines_of_code(inner)

    def body_of(self, at):
        """The braces of the function whose name ends at `at`; none for a declaration."""
        while match := re.compile(r"[;{(\[]").search(self.code, at):
            if match.group() == ";":
                return None
            end = closing(self.code, match.start())
            if match.group() == "{":
                return match.start(), end
            at = end + 1
        return None


def lines_of_code(stripped):
    """Lines with more than a comment on them."""
    return sum(1 for line in stripped.splitlines() if line.strip())


def folder_of_module(path):
    """Where the files of a module's children are."""
    return path.parent if path.stem in ("mod", "lib", "main") else path.with_suffix("")


class Crate:
    """One package of the workspace and its sources."""

    def __init__(self, root, manifest):
        self.root = root
        self.folder = manifest.parent
        self.manifest = tomllib.loads(manifest.read_text())
        self.name = self.manifest["package"]["name"]
        self.place = self.folder.relative_to(root).as_posix()
        self._sources = None

    def dependencies(self, section="dependencies"):
        return self.manifest.get(section, {})

    @property
    def sources(self):
        """Every Rust file of the package, by path; files nested in another package are that one's."""
        if self._sources is None:
            nested = [m.parent for m in self.folder.rglob("Cargo.toml") if m.parent != self.folder]
            self._sources = {
                path: Source(path)
                for path in sorted(self.folder.rglob("*.rs"))
                if "target" not in path.relative_to(self.folder).parts and not any(n in path.parents for n in nested)
            }
        return self._sources

    def is_test(self, path):
        """Whether a whole file is for tests: outside src, or below a module that is only there in tests."""
        relative = path.relative_to(self.folder)
        return relative.parts[0] != "src" or path in self._test_modules()

    def _test_modules(self):
        if not hasattr(self, "_tests"):
            self._tests = set()
            for path, source in self.sources.items():
                for match in re.finditer(TEST_ATTRIBUTE.pattern + r"\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+);", source.stripped):
                    base = folder_of_module(path) / match.group(1)
                    below = base.with_suffix(".rs")
                    self._tests |= {p for p in self.sources if p == below or base in p.parents}
        return self._tests

    def code(self):
        """The files that have code outside tests."""
        return {path: source for path, source in self.sources.items() if not self.is_test(path)}


def crates(root):
    """The packages below `crates`, in the order of their places."""
    root = pathlib.Path(root)
    manifests = sorted((root / "crates").rglob("Cargo.toml"))
    # The checkout itself may stand in a folder of that name.
    return [Crate(root, manifest) for manifest in manifests if "target" not in manifest.relative_to(root).parts]


def use_paths(stripped):
    """Each path of each `use`, groups taken apart: (public, path as a list of words, the name it has here)."""
    for match in re.finditer(r"(?:\b(pub(?:\([^)]*\))?)\s+)?\buse\s+([^;]+);", stripped):
        public = match.group(1)
        for path, name in use_tree(re.sub(r"\s+", " ", match.group(2)).strip(), []):
            yield public, path, name


def use_tree(text, before):
    text = text.strip()
    if "{" in text:
        head, _, rest = text.partition("{")
        prefix = before + [word for word in head.strip().strip(":").split("::") if word]
        depth, begin = 0, 0
        inner = rest[: rest.rindex("}")]
        parts = []
        for at, character in enumerate(inner):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if character == "," and depth == 0:
                parts.append(inner[begin:at])
                begin = at + 1
        parts.append(inner[begin:])
        for part in parts:
            if part.strip():
                yield from use_tree(part, prefix)
        return
    path, _, name = text.partition(" as ")
    words = before + [word.strip() for word in path.split("::") if word.strip()]
    if words and words[-1] == "self":
        words.pop()
    if words:
        yield words, name.strip() or words[-1]
