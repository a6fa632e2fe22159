#!/usr/bin/env python3
"""Checks the dependency tree: allowed licences, layers that ARCHITECTURE.md promises, pure crates that stay pure, nothing
unused.

The rules are data at the top; the facts come from `cargo metadata` and from the sources. What a crate may use follows
from the folder it stands in, so a new crate is held to the rules of its folder without a line here.
"""
import json
import pathlib
import re
import subprocess
import sys

from rust_source import crates

ALLOWED_LICENCES = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CC0-1.0", "ISC", "Unicode-3.0", "Unlicense", "Zlib", "0BSD", "MIT-0",
}

# What the crates of a folder may depend on: folders, or single crates of a folder. Nothing else, tests apart.
LAYERS = {
    "protocol": ["protocol"],
    "postgres": ["postgres", "protocol/types"],
    "storage": ["storage", "postgres", "protocol"],
    # Compute never links the storage engine: it speaks to storage through the client. Metrics are one list for all.
    "compute": ["compute", "postgres", "protocol", "storage/client", "storage/metrics"],
    # The command line contains the tools.
    "control": ["control", "compute", "storage", "postgres", "protocol", "testing/bench", "testing/chaos", "testing/redo-check"],
    "testing": ["testing", "control", "compute", "storage", "postgres", "protocol"],
}
# Narrower than their folder: a crate that may use these crates alone.
ONLY = {
    # Protocol: types is the ground, wire and spec stand on it, quorum on all of them.
    "protocol/types": [],
    "protocol/wire": ["protocol/types", "protocol/spec"],
    "protocol/spec": ["protocol/types"],
    # Redo reads records; the decoder knows nothing of redo.
    "postgres/wal": ["protocol/types"],
    # The client is what compute may link, so it must not bring the engine along.
    "storage/client": ["protocol"],
    "storage/metrics": ["protocol", "storage/client"],
    "storage/store": ["postgres", "protocol"],
    # Pure: what a backup is, wherever it is kept.
    "storage/archive": ["protocol"],
    # Memory and shim run inside PostgreSQL: the less, the better.
    "compute/shm": ["protocol/types"],
    "compute/shim": ["protocol/types", "compute/shm"],
    # Pure: ship, read, cache.
    "compute/compute": ["postgres", "protocol"],
    "compute/instance": ["postgres", "protocol"],
    # Pure: it decides; control/conductor acts.
    "control/controller": ["protocol"],
    # It asks nodes and steers none of their processes: that is its host's matter. Metrics are one list for all.
    "control/conductor": ["protocol", "storage/client", "storage/metrics", "control/controller"],
}
# Places whose crates do no I/O and know no clock. Each has a clippy.toml that says the same to the compiler.
PURE = ["protocol", "postgres", "storage/archive", "compute/compute", "control/controller"]
# What a pure crate may use from outside the repository.
PURE_LIBRARIES = {"serde", "thiserror", "postcard", "crc32c", "lz4_flex", "ruzstd", "arrayvec", "serde_json", "zstd", "ring"}
# Crates that exist to test others: nothing that is delivered may depend on them.
TEST_ONLY = ["testing/fuzz", "testing/hostile", "testing/sim"]

# Whole modules cannot be refused by clippy, which knows functions and types. `super` and `crate` cannot hide these.
IMPURE = re.compile(
    r"\bstd\s*::\s*(?:(?:fs|net|thread|process|env|io|os)\b|\*)"
    # Under another name, `s::fs` would not be seen.
    r"|\bstd\s+as\s+\w+|\bstd\s*::\s*\{[^;]*?\bself\s+as\b"
    r"|\b(?:core|std)\s*::\s*hash\s*::\s*(?:RandomState|DefaultHasher)\b|\bstd\s*::\s*collections\s*::\s*hash_(?:map|set)\b|\b(?:HashMap|HashSet|RandomState|Instant|SystemTime|thread_local)\b"
    r"|\b(?:libc|nix|rand|getrandom|mio|tokio|tempfile)\s*::"
)
# `use std::{fs, io}` names them too.
GROUPED = re.compile(r"\bstd\s*::\s*\{[^;]*?\b(fs|net|thread|process|env|io|os)\b")
# Files of pure crates that may name such a module all the same, and why.
PURE_EXCEPTIONS = {
    "crates/protocol/wire/src/frame.rs": ("std::io", "reads and writes what it is given; it opens nothing"),
}
# Attributes below src that switch off the bans of clippy.toml in a pure crate: none so far.
ALLOWED_ALLOWS = {}
ALLOW = re.compile(r"#!?\[(?:cfg_attr\([^\]]*)?(?:allow|expect|warn)\([^\]]*clippy::(?:disallowed_\w+|all|style)\b[^\]]*\]")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def below(place, places):
    """Whether a place (`folder/crate`) is one of the places, or in one of them."""
    return any(place == other or place.startswith(other + "/") for other in places)


def licence_ok(expression):
    """Whether an SPDX expression can be satisfied by allowed licences alone."""
    expression = expression.replace("/", " OR ").replace("(", "").replace(")", "")
    return any(
        all(part.strip() in ALLOWED_LICENCES for part in option.split(" AND "))
        for option in expression.split(" OR ")
    )


def licences():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    for package in json.loads(subprocess.check_output(command, cwd=ROOT))["packages"]:
        if not licence_ok(package["license"] or ""):
            yield f"{package['name']}: licence {package['license']!r} is not among the allowed"


def lints(every):
    """Each crate takes the lints of the workspace, and has none of its own that would weaken them."""
    for crate in every:
        if crate.manifest.get("lints") != {"workspace": True}:
            yield f"{crate.place}/Cargo.toml: [lints] must be `workspace = true` and nothing else"


def layers(every, places):
    """Arrows that no layer allows, among what is delivered: dependencies for building or running, not for tests."""
    for crate in every:
        place = places[crate.name]
        folder = place.partition("/")[0]
        if folder not in LAYERS:
            yield f"crates/{place}: {folder} is no part of the picture; scripts/check-dependencies.py has the layers"
            continue
        for name in {**crate.dependencies(), **crate.dependencies("build-dependencies")}:
            if name not in places:
                if below(place, PURE) and name not in PURE_LIBRARIES:
                    yield f"crates/{place}: a pure crate must not depend on {name}"
                continue
            to = places[name]
            if not below(to, ONLY.get(place, LAYERS[folder])):
                yield f"crates/{place}: must not depend on crates/{to}"
            elif to in TEST_ONLY and place not in TEST_ONLY:
                yield f"crates/{place}: only tests may depend on crates/{to}"
            elif below(place, PURE) and not below(to, PURE):
                yield f"crates/{place}: a pure crate must not depend on crates/{to}, which is none"


def circles_of_tests(every, places):
    """Tests may use what stands above them in the picture, but not so that their own crate is built twice."""
    normal = {c.name: {n for n in c.dependencies() if n in places} for c in every}
    for crate in every:
        for name in crate.dependencies("dev-dependencies"):
            seen, todo = set(), [name] if name in places else []
            while todo:
                at = todo.pop()
                if at not in seen:
                    seen.add(at)
                    todo += normal[at]
            if crate.name in seen:
                yield f"crates/{places[crate.name]}: its tests use {name}, which is built on it"


def unused(every):
    for crate in every:
        # A build script or a test may use what it names; each section is held against all of the package.
        texts = {path: source.stripped for path, source in crate.sources.items()}
        delivered = "\n".join(text for path, text in texts.items() if path.relative_to(crate.folder).parts[0] in ("src", "build.rs"))
        everything = "\n".join(texts.values())
        for section in ("dependencies", "dev-dependencies", "build-dependencies"):
            for name in crate.dependencies(section):
                word = re.compile(rf"\b{name.replace('-', '_')}\b")
                if not word.search(everything):
                    yield f"{crate.place}: dependency {name} is not used"
                elif section == "dependencies" and not word.search(delivered):
                    yield f"{crate.place}: dependency {name} is used by tests only: it belongs to dev-dependencies"


def declared(every):
    """Entries of the workspace's table that no crate takes."""
    import tomllib
    table = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["dependencies"]
    taken = {n for c in every for s in ("dependencies", "dev-dependencies", "build-dependencies") for n in c.dependencies(s)}
    for name in sorted(table.keys() - taken):
        yield f"Cargo.toml: no crate uses {name} of workspace.dependencies"


def purity(every, places):
    """Modules that pure code must not name, in whole files; below src no attribute may switch clippy's bans off."""
    for crate in every:
        if not below(places[crate.name], PURE):
            continue
        for path, source in crate.sources.items():
            relative = path.relative_to(ROOT).as_posix()
            for match in ALLOW.finditer(source.stripped):
                if path.relative_to(crate.folder).parts[0] == "src" and relative not in ALLOWED_ALLOWS:
                    yield f"{relative}:{source.line(match.start())}: a pure crate switches clippy's bans off"
            if path.relative_to(crate.folder).parts[0] != "src":
                # Tests and examples that do I/O say so to clippy, at their top and with a reason.
                continue
            allowed = PURE_EXCEPTIONS.get(relative, ("", ""))[0]
            for match in [*IMPURE.finditer(source.stripped), *GROUPED.finditer(source.stripped)]:
                if "".join(match.group().split()) != allowed:
                    yield f"{relative}:{source.line(match.start())}: {' '.join(match.group().split())} in a pure crate"


def clippy_files():
    """Each pure place has its clippy.toml, all alike, and they repeat what the root's says for everyone."""
    def region(text, name):
        # Indentation apart, from the line that begins it to the next end.
        lines = [line.strip() for line in text.splitlines()]
        begin = lines.index(f"# region: {name}")
        return lines[begin : lines.index("# endregion", begin)]

    root = (ROOT / "clippy.toml").read_text()
    texts = {}
    for place in PURE:
        file = ROOT / "crates" / place / "clippy.toml"
        if not file.parent.exists():
            continue
        if not file.exists():
            yield f"crates/{place}: a pure folder without its clippy.toml; copy that of crates/{PURE[0]}"
            continue
        texts[place] = file.read_text()
        for name in ("common", "common-methods"):
            if region(texts[place], name) != region(root, name):
                yield f"crates/{place}/clippy.toml: the region {name} differs from that of clippy.toml"
    if len(set(texts.values())) > 1:
        yield f"clippy.toml of {', '.join('crates/' + place for place in texts)}: these must be equal"
    for file in sorted((ROOT / "crates").rglob("clippy.toml")):
        if file.parent.relative_to(ROOT / "crates").as_posix() not in PURE:
            yield f"{file.relative_to(ROOT)}: hides the bans of the folder above it"


def rust_version():
    """README is the only other place that names the version of Rust: a person reads it before there is a machine to ask."""
    version = re.search(r'^rust-version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    if f"Rust {version} or newer" not in (ROOT / "README.md").read_text():
        yield f"README.md does not say that Rust {version} or newer is needed, as Cargo.toml does"


def main():
    every = crates(ROOT)
    places = {crate.name: crate.place.removeprefix("crates/") for crate in every}
    problems = [
        *licences(), *lints(every), *layers(every, places), *circles_of_tests(every, places), *unused(every), *declared(every),
        *purity(every, places), *clippy_files(), *rust_version(),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
