#!/usr/bin/env python3
"""Checks the dependency tree: allowed licences, pure crates that stay pure, nothing unused.

The rules are data at the top; the facts come from `cargo metadata`.
"""
import json
import pathlib
import re
import subprocess
import sys

ALLOWED_LICENCES = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CC0-1.0", "ISC", "Unicode-3.0", "Unlicense", "Zlib", "0BSD", "MIT-0",
}
# Crates that hold the difficult logic must not even be able to do I/O through a dependency.
PURE = {
    "borealis-types": set(),
    "borealis-wal": {"borealis-types"},
    "borealis-redo": {"borealis-types", "borealis-wal"},
    "borealis-quorum": {"borealis-types", "borealis-wire"},
    "borealis-wire": {"borealis-types"},
    "borealis-spec": {"borealis-types"},
    "borealis-compute": {"borealis-types", "borealis-wal", "borealis-quorum", "borealis-wire"},
}
PURE_LIBRARIES = {
    "serde", "thiserror", "postcard", "crc32c", "lz4_flex", "ruzstd", "zerocopy", "smallvec", "arrayvec",
}
# Crates that exist to test others: nothing that is delivered may depend on them.
TEST_ONLY = {"borealis-fuzz", "borealis-sim"}
# Tools that are part of the program and of nothing else.
TOOLS = {"borealis-bench", "borealis-redo-check"}
IMPURE_WORDS = re.compile(
    r"\b(std::(fs|net|thread|process)|SystemTime::now|Instant::now|HashMap|HashSet|rand::)\b"
)
# The framing module reads and writes what it is given; it opens nothing.
EXEMPT = {"crates/protocol/wire/src/frame.rs"}

root = pathlib.Path(__file__).resolve().parent.parent
metadata = json.loads(
    subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"],
        cwd=root,
    )
)
problems = []


def licence_ok(expression):
    """Whether an SPDX expression can be satisfied by allowed licences alone."""
    expression = expression.replace("/", " OR ").replace("(", "").replace(")", "")
    return any(
        all(part.strip() in ALLOWED_LICENCES for part in option.split(" AND "))
        for option in expression.split(" OR ")
    )


for package in metadata["packages"]:
    name = package["name"]
    if not licence_ok(package["license"] or ""):
        problems.append(f"{name}: licence {package['license']!r} is not among the allowed")
    if package["id"] not in metadata["workspace_members"]:
        continue
    folder = pathlib.Path(package["manifest_path"]).parent
    sources = "\n".join(
        path.read_text() for path in sorted(folder.rglob("*.rs")) if "target" not in path.parts
    )
    for dependency in package["dependencies"]:
        used = re.search(rf"\b{dependency['name'].replace('-', '_')}\b", sources)
        if not used:
            problems.append(f"{name}: dependency {dependency['name']} is not used")
        if dependency["name"] in TEST_ONLY and dependency["kind"] is None and name not in TEST_ONLY:
            problems.append(f"{name}: only tests may depend on {dependency['name']}")
        if dependency["name"] in TOOLS and name != "borealis":
            problems.append(f"{name}: only the program may depend on {dependency['name']}")
        if name in PURE and dependency["kind"] is None:
            if dependency["name"] not in PURE[name] | PURE_LIBRARIES:
                problems.append(f"{name}: a pure crate must not depend on {dependency['name']}")
    if name in PURE:
        for path in sorted((folder / "src").rglob("*.rs")):
            relative = str(path.relative_to(root))
            if relative in EXEMPT:
                continue
            text = path.read_text().split("#[cfg(test)]")[0]
            for match in IMPURE_WORDS.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                if not text.splitlines()[line - 1].lstrip().startswith("//"):
                    problems.append(f"{relative}:{line}: {match.group(0)} in a pure crate")

# The only place besides Cargo.toml that names the version of Rust, since a person reads it before there is a machine to ask.
version = re.search(r'^rust-version = "(.*)"$', (root / "Cargo.toml").read_text(), re.MULTILINE).group(1)
if f"Rust {version} or newer" not in (root / "README.md").read_text():
    problems.append(f"README.md does not say that Rust {version} or newer is needed, as Cargo.toml does")

for problem in problems:
    print(problem, file=sys.stderr)
sys.exit(1 if problems else 0)
