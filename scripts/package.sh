#!/usr/bin/env bash
# Makes the Debian package: builds, writes manual pages, completions and the licences of what is linked in, packs them
# with cargo-deb (what goes where: crates/control/cli/Cargo.toml, packaging/), has lintian look at it where there is one.
# The last line is the package's path.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."
./scripts/install-dependencies.sh

# A tool, not a dependency: with the rest of what was built here, unless the machine has its own.
CARGO_DEB_VERSION=3.8.0
target=${CARGO_TARGET_DIR:-target}
PATH=$(realpath -m -- "$target")/tools/bin:$PATH
if ! cargo-deb --version >/dev/null 2>&1; then
    echo "installing cargo-deb $CARGO_DEB_VERSION into $target/tools" >&2
    cargo install --quiet --locked --root "$target/tools" "cargo-deb@$CARGO_DEB_VERSION" >&2
fi

cargo build --release --locked >&2
program=$target/release/borealis
made=$target/release/package
rm -rf -- "$made"
mkdir -p "$made"
# -n: without the time, so that the same sources make the same bytes.
"$program" internal manual "$made/man"
gzip -9n "$made"/man/*
"$program" completion bash >"$made/borealis.bash"
"$program" completion zsh >"$made/_borealis"
"$program" completion fish >"$made/borealis.fish"
./scripts/third-party-licences.py | gzip -9n >"$made/third-party-licences.gz"

package=$(cargo-deb --quiet --no-build --strip -p borealis | tail -n 1)
if command -v lintian >/dev/null; then
    # As root it would only say that it would rather not be root.
    lintian --allow-root --fail-on error -- "$package" >&2
else
    echo "lintian is not installed; the package was not checked" >&2
fi
realpath -- "$package"
