#!/usr/bin/env bash
# Fetches every minor release of PostgreSQL 15 that this machine's package archive offers, beside the installed one,
# into target/postgresql/<version>/ (readable for everyone, so also for the user that runs postgres), and prints their
# folders with programs, oldest first. What is there already is not fetched again. Installs nothing; needs no root.
#
# On a machine without Debian's tools, or without the archive, it prints what is there and says so. That the archive
# offers one release only is no failure; that something it offers cannot be fetched is one, after the others were tried.
set -euo pipefail
cd "$(dirname "$0")/.."

root="$PWD/${CARGO_TARGET_DIR:-target}/postgresql"
[[ ${CARGO_TARGET_DIR:-} != /* ]] || root="$CARGO_TARGET_DIR/postgresql"
mkdir -p "$root"
chmod 755 "$root"

# `15.20-0+deb12u1` of every line like `postgresql-15 | 15.20-0+deb12u1 | http://… Packages`. The archive may have
# several builds of one release; the newest one is the last, and the one that counts.
offered() {
    command -v apt-cache >/dev/null && command -v dpkg-deb >/dev/null || return 0
    apt-cache madison postgresql-15 2>/dev/null | awk -F' *[|] *' '/Packages/ { print $2 }' | sort -Vu |
        awk -F- 'NR > 1 && $1 != release { print build } { release = $1; build = $0 } END { if (NR) print build }'
}

failed=0
for package in $(offered); do
    release=${package%%-*}
    folder="$root/$release"
    [ -x "$folder/usr/lib/postgresql/15/bin/postgres" ] && [ "$(cat "$folder/package" 2>/dev/null)" = "$package" ] && continue
    work=$(mktemp -d "$root/fetching.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # The server with its extensions, and the clients of the same release.
    if (cd "$work" && apt-get download -q "postgresql-15=$package" "postgresql-client-15=$package" >&2); then
        for archive in "$work"/*.deb; do
            dpkg-deb -x "$archive" "$work/tree"
        done
        echo "$package" >"$work/tree/package"
        chmod -R a+rX "$work/tree"
        rm -rf "$folder"
        mv "$work/tree" "$folder"
    else
        echo "PostgreSQL $package is listed and cannot be fetched" >&2
        failed=1
    fi
    rm -rf "$work"
    trap - EXIT
done

found=0
while read -r bin; do
    [ -x "$bin/postgres" ] || continue
    echo "$bin"
    found=$((found + 1))
done < <(printf '%s\n' "$root"/*/usr/lib/postgresql/15/bin | sort -V)
[ "$found" -ge 2 ] || echo "the archive offers $found minor release(s) of PostgreSQL 15; two are needed to move between" >&2
exit "$failed"
