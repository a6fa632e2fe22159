#!/usr/bin/env python3
"""Proves that no constant of PostgreSQL is defined twice: neither in two crates nor twice in the vocabulary.

    scripts/check-constants.py [--root FOLDER] [--list]

The vocabulary is `borealis_wal::layout`, and the few numbers that crates below it need (`VOCABULARY`). Its docs name each
constant's PostgreSQL symbol. Every other numeric constant, or enum variant with a number, anywhere below `crates` (tests,
examples and fuzz targets too) is a finding if one of these holds:

* symbol: its doc names a symbol that the vocabulary names, or one that follows PostgreSQL's naming (`SYMBOL`);
* convention: its own name follows that naming;
* name: it has name, value and type of a constant of the vocabulary (`SIZE` and `BYTES` in names count as one);
* value: its value is one that says which it is: a magic number, a page id, an OID, a size that is not round.

A constant made of others only (`SIZE = SPECIAL_BYTES`) defines nothing. Outside tests, an operation's number in a pattern
(`record.operation() == 0x10`, `(Rm::Heap, 0x10)`) is a finding too, and so is, in crates that read or make what PostgreSQL
reads (`READERS`), a bare number that only the vocabulary explains (`1636`). Powers of two say nothing, nor do numbers below
256 and round ones. Inside the vocabulary, a symbol has one definition.

`--root` looks at another checkout with the vocabulary of this one, and only counts: how many definitions there are outside
this one's files, and how many of the vocabulary's constants have more than one definition there.
"""
import argparse
import collections
import pathlib
import re
import sys

from rust_source import crates

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYOUT = "crates/postgres/wal/src/layout/"
# Crates below the WAL's need these numbers, and the shim must not link a decoder for them.
VOCABULARY = {
    "crates/protocol/types/src/kept_file.rs", "crates/protocol/types/src/lib.rs", "crates/protocol/types/src/postgres_version.rs",
}

# Where a bare number of the vocabulary is a copy of it.
READERS = ("crates/postgres/redo/", "crates/storage/store/", "crates/compute/")

# (file, constant): why it is not a second definition.
EXCEPTIONS = {
    ("crates/control/cli/tests/places.rs", "NOBODY"): "a user's number that equals an offset number by chance",
}

# How PostgreSQL names what stands in its headers.
PREFIXES = (
    "XLOG|XLH|XLHL|XLR|XLP|BKPBLOCK|BKPIMAGE|BTP|BT|BTREE|HASH|HASHO|LH|GIN|GIST|SPGIST|SGLT|BRIN|REVMAP|HEAP|SMGR|CLOG"
    "|COMMIT_TS|MULTIXACT|SLRU|FSM|VISIBILITYMAP|TRANSACTION_STATUS|LP|PD|RM|SEQ|PG|XACT|CATALOG|RELMAPPER|INDEX|TWOPHASE|DB"
)
SYMBOL = re.compile(rf"(?:{PREFIXES})_[A-Z0-9_]+|RELSEG_SIZE|BLCKSZ|MAX_MAPPINGS|F_[A-Z_]+|P_[A-Z]+|(?:SizeOf|Sizeof)\w+"
                    r"|sizeof\(\w+\)|xl_\w+|Invalid[A-Z]\w+|First[A-Z]\w+|Max[A-Z]\w+PerPage|MAXALIGN|RelFileNode")
# Our own names may begin so.
CONVENTION = re.compile(r"(?:XLOG|XLH|XLHL|XLR|XLP|BKPBLOCK|BKPIMAGE|BTP|BTREE|LH|GIN|GIST|SPGIST|BRIN|SMGR|CLOG|FSM"
                        r"|VISIBILITYMAP|LP|PD|RELSEG|BLCKSZ)_\w+|\w*PAGES_PER_\w*(?:SLRU|STATUS|SEGMENT)\w*|SLRU_PAGES_PER_\w+")
NUMBER = r"(?:u8|u16|u32|u64|usize|i8|i16|i32|i64|f64)"
CONSTANT = re.compile(rf"^[ ]*(?:pub(?:\([a-z]+\))? )?(?:const|static) ([A-Z][A-Z0-9_]*): ({NUMBER}) =\s*([^;]+);", re.MULTILINE)
VARIANT = re.compile(r"^[ ]+([A-Z][A-Za-z]+) = (0x[0-9A-Fa-f_]+|[0-9_]+),", re.MULTILINE)
OPERATION = re.compile(r"operation\(\)[^\n;]*\b0x[0-9A-F]{2}\b|\b(?:Rm|ResourceManager)::\w+, 0x[0-9A-F]{2}\b")
BARE = re.compile(r"(?<![\w.])(0x[0-9A-Fa-f_]+|[0-9][0-9_]*)(?:u8|u16|u32|u64|usize|i32|i64)?(?![\w.])")
# Numbers that prove nothing by themselves.
ROUND = re.compile(r"^(?:0*|[1-9]0*)$")


def value_of(expression):
    """The number an expression of literals makes; None if it mentions a name."""
    text = re.sub(r" as \w+", "", expression).replace("_", "")
    text = re.sub(rf"\b((?:0x[0-9A-Fa-f]+)|\d+)(?:u8|u16|u32|u64|usize)?\b", r"\1", text).replace("u32::MAX", str(2**32 - 1))
    if not re.fullmatch(r"[0-9A-Fa-fx\s()+*<>|&/-]+", text):
        return None
    try:
        return eval(text.replace("/", "//"))  # Digits and operators only: see the line above.
    except (SyntaxError, ZeroDivisionError):
        return None


def doc_before(text, position):
    """The doc comment right above a position."""
    lines = []
    for line in reversed(text[:position].split("\n")[:-1]):
        if not line.strip().startswith(("///", "#[")):
            break
        lines.append(line.strip().removeprefix("///").strip())
    return " ".join(reversed(lines))


def symbols(doc):
    return {token for token in re.findall(r"`([^`]+)`", doc) if SYMBOL.fullmatch(token)}


Definition = collections.namedtuple("Definition", "path line name kind value expression doc")


def definitions(root, path):
    text = path.read_text()
    for pattern in (CONSTANT, VARIANT):
        for match in pattern.finditer(text):
            name, kind, expression = match.groups() if pattern is CONSTANT else (match[1], "variant", match[2])
            start = text.rfind("\n", 0, match.start(1)) + 1
            line = text.count("\n", 0, match.start(1)) + 1
            yield Definition(path.relative_to(root).as_posix(), line, name, kind, value_of(expression.strip()),
                             expression.strip(), doc_before(text, start))


def sources(root):
    return [path for path in sorted((root / "crates").rglob("*.rs")) if "target" not in path.relative_to(root).parts]


def plain(name):
    return name.replace("SIZE", "BYTES")


def distinctive(value):
    return (isinstance(value, int) and value >= 256 and value & (value - 1) and value + 1 & value
            and not ROUND.match(str(value)))


def resolved(own):
    """Values of the vocabulary's constants, those made of others too (`PAGE_SIZE / 4`), to a constant of each."""
    known = {d.name: d.value for d in own if d.value is not None and d.kind != "variant"}
    for _ in range(5):
        for d in own:
            if d.kind != "variant" and d.name not in known:
                text = re.sub(r"\b(?:\w+::)*([A-Z][A-Z0-9_]*)\b", lambda m: str(known.get(m[1], m[0])), d.expression)
                if (value := value_of(text)) is not None:
                    known[d.name] = value
    return {known[d.name]: d for d in reversed(own) if d.name in known and distinctive(known[d.name])}


def in_vocabulary(path):
    return path.startswith(LAYOUT) or path in VOCABULARY


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the checkout to look at")
    parser.add_argument("--list", action="store_true", help="print every finding, and every duplicate of another checkout")
    options = parser.parse_args()
    root = options.root.resolve()
    own = [d for path in sources(ROOT) if in_vocabulary(path.relative_to(ROOT).as_posix()) for d in definitions(ROOT, path)]
    literal = [d for d in own if d.value is not None]
    named = collections.defaultdict(list)
    for d in literal:
        for symbol in symbols(d.doc):
            named[symbol].append(d)
    by_name, by_value = collections.defaultdict(list), collections.defaultdict(list)
    for d in own:
        by_name[plain(d.name), d.kind, d.value].append(d)
        if distinctive(d.value):
            by_value[d.value].append(d)

    def why(d):
        """The rule that finds it, and which constant of the vocabulary it is."""
        symbol = next((s for s in symbols(d.doc) if d.value is not None or d.kind == "variant"), None)
        same = by_name.get((plain(d.name), d.kind, d.value), []) if d.value is not None else []
        nearest = next((v for v in same if pathlib.Path(v.path).stem in d.path), same[0] if same else None)
        if symbol:
            return f"symbol {symbol}", next(iter(named.get(symbol, [])), nearest)
        if same:
            return "name", nearest
        if d.value is not None and d.kind != "variant" and CONVENTION.fullmatch(d.name):
            return "convention", None
        if distinctive(d.value) and d.value in by_value:
            return "value", by_value[d.value][0]
        return None, None

    findings, homes = [], collections.defaultdict(set)
    for path in sources(root):
        relative = path.relative_to(root)
        for d in definitions(root, path):
            outside = not in_vocabulary(d.path)
            if outside and (d.path, d.name) in EXCEPTIONS:
                continue
            rule, constant = why(d)
            if rule and constant:
                homes[constant.path, constant.name].add((d.path, d.line))
            if rule and outside:
                of = f": {constant.path.removeprefix(LAYOUT)} has {constant.name}" if constant else ""
                findings.append(f"{d.path}:{d.line}: {d.name} = {d.expression} ({rule}{of})")
    bare = resolved(own)
    for crate in crates(root):
        for path, source in crate.code().items():
            place = path.relative_to(root).as_posix()
            if in_vocabulary(place):
                continue
            for match in OPERATION.finditer(source.code):
                findings.append(f"{place}:{source.line(match.start())}: an operation's number: {match[0].strip()}")
            for match in BARE.finditer(source.code) if place.startswith(READERS) else ():
                if (value := value_of(match[1])) in bare:
                    of = bare[value]
                    findings.append(f"{place}:{source.line(match.start())}: {match[1]} is {of.name} of {of.path.removeprefix(LAYOUT)}")

    if root != ROOT:
        twice = {constant: places for constant, places in homes.items() if len(places) > 1}
        if options.list:
            for (path, name), places in sorted(twice.items()):
                print(f"{path.removeprefix(LAYOUT)} {name}: " + ", ".join(f"{p}:{line}" for p, line in sorted(places)))
            print(*findings, sep="\n")
        print(f"{len(findings)} definitions of PostgreSQL's constants outside the vocabulary, {len(twice)} constants defined more than once")
        return 0

    for symbol, places in sorted(named.items()):
        # A struct's size and layout may be named by several; a symbol that is a number has one definition.
        first = [d for d in places if d.doc.lstrip().startswith(f"`{symbol}`")]
        if len({(d.path, d.name) for d in first}) > 1:
            findings.append(f"{symbol} has more than one definition: " + ", ".join(f"{d.path}:{d.line}" for d in first))
    unused = [key for key in EXCEPTIONS if not any((d.path, d.name) == key for p in sources(root) for d in definitions(root, p))]
    findings += [f"{path}: the exception for {name} is no longer needed" for path, name in unused]
    for finding in findings:
        print(finding, file=sys.stderr)
    print(f"{len(own)} constants in the vocabulary, {len(findings)} defined again or elsewhere")
    return 1 if findings else 0


sys.exit(main())
