#!/usr/bin/env python3
"""Prints name, version, licence and licence texts of every crate that is linked into the program or the shim.

Their licences ask for that wherever the result is distributed. Equal texts are printed once.
"""
import json
import pathlib
import re
import subprocess
import sys

ROOTS = {"borealis", "borealis-shim"}
TEXTS = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)

root = pathlib.Path(__file__).resolve().parent.parent
host = re.search(r"^host: (.*)$", subprocess.check_output(["rustc", "-vV"], cwd=root, text=True), re.MULTILINE).group(1)
metadata = json.loads(subprocess.check_output(
    ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", host], cwd=root))
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

linked = set()
waiting = [identity for identity, package in packages.items() if package["name"] in ROOTS]
while waiting:
    identity = waiting.pop()
    if identity not in linked:
        linked.add(identity)
        # Without build scripts and tests: those are not part of the result.
        waiting += [dependency["pkg"] for dependency in nodes[identity]["deps"]
                    if any(kind["kind"] is None for kind in dependency["dep_kinds"])]

users_by_text = {}
crates = sorted((packages[i] for i in linked - set(metadata["workspace_members"])), key=lambda p: (p["name"], p["version"]))
print("Crates linked into borealis and libborealis_shim.so\n")
for package in crates:
    print(f"  {package['name']} {package['version']}: {package['license']}")
    folder = pathlib.Path(package["manifest_path"]).parent
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and TEXTS.match(path.name)]
    if not files:
        print(f"{package['name']} {package['version']} comes without a licence text", file=sys.stderr)
    for path in files:
        users_by_text.setdefault(path.read_text(errors="replace").strip(), []).append(f"{package['name']} ({path.name})")
for text, users in users_by_text.items():
    print(f"\n{'=' * 100}\n{', '.join(users)}\n{'-' * 100}\n{text}")
