#!/usr/bin/env bash
# Installs what Borealis needs and the machine lacks: PostgreSQL 15 with its contributed programs (pgbench,
# pg_amcheck), a linker for Rust, Python for the checks in this folder, and the certificates with which cargo
# checks what it downloads. Then checks that Rust is there and new enough; Rust is each user's own, so this script says
# how to get it and leaves it at that. Does nothing when all is there.
#
# With the argument `lint` it is about what `./test lint` needs: no PostgreSQL, but rustfmt, clippy, and codespell, which is
# only installed where that needs no question to a person; lint.sh says so when spelling could not be checked. With `test` it is
# about what tests need beside that: Python's environments, into which a server that speaks S3 is brought from PyPI.
#
# Everything that is wrong is said before it ends with 1, so that one round of repairs is enough.
set -euo pipefail
purpose=${1:-use}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

bin=/usr/lib/postgresql/15/bin
# Debian would create and start a server of its own, on the port that `borealis up` wants; Borealis needs the programs
# only. Whoever has decided about that already keeps the decision.
no_server="mkdir -p /etc/postgresql-common && { [ -e /etc/postgresql-common/createcluster.conf ] || \
echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf; }"

# Whether something can be installed without asking a person for anything.
root_without_question() {
    command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }
}

# The packages that the machine lacks, one a line.
missing_packages() {
    local file
    [ "$purpose" = lint ] || for file in "$bin"/{postgres,initdb,psql,pgbench,pg_amcheck,pg_waldump} \
        /usr/share/postgresql/15/extension/{amcheck,pg_visibility}.control; do
        [ -e "$file" ] || { echo postgresql-15; break; }
    done
    command -v python3 >/dev/null || echo python3
    # For a server that speaks S3, which a test brings from PyPI into a folder of its own.
    [ "$purpose" != test ] || python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    [ "$purpose" != lint ] || command -v codespell >/dev/null || ! root_without_question || echo codespell
    command -v cc >/dev/null || printf '%s\n' gcc libc6-dev
    # Where this and other distributions keep them; cargo's own OpenSSL looks there too.
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -n "${SSL_CERT_FILE:-}" ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] ||
        echo ca-certificates
}

# Runs a line of shell as root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        sh -c "$1"
    else
        sudo sh -c "$1"
    fi
}

# Whether apt knows a version of a package that it could install.
has_candidate() {
    # Not `| grep -q`: it leaves early, and apt-cache would fail at that.
    [[ $(LC_ALL=C apt-cache policy "$1" 2>/dev/null) =~ 'Candidate: '[^\(] ]]
}

say_no_postgresql_15() {
    local system others
    # shellcheck source=/dev/null
    system=$(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME:-}")
    others=$(apt-cache search --names-only '^postgresql-[0-9]+$' 2>/dev/null |
        sed -n 's/^postgresql-\([0-9]*\) .*/\1/p' | sort -n | tr '\n' ' ')
    cat >&2 <<END
PostgreSQL 15 cannot be installed: the package sources of this machine (${system:-unknown system}) have no package
postgresql-15. They have PostgreSQL ${others:-(none) }only, and this version of Borealis supports 15 only. Either
  * use a machine with Debian 12, which has PostgreSQL 15;
  * or add a package source that has postgresql-15 for this system, and run this again;
  * or, if PostgreSQL 15 is installed elsewhere: cargo build --release, then
    target/release/borealis up --pg-bin FOLDER_OF_POSTGRES_15
END
}

install_packages() {
    local packages=("$@") install no_server_said=''
    # It stays after this, so whoever wants a server of Debian's later must hear of it.
    [ -e /etc/postgresql-common/createcluster.conf ] || no_server_said="/etc/postgresql-common/createcluster.conf, with \
which Debian makes no PostgreSQL server of its own; remove that file to undo it"
    install="$no_server && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends \
-o DPkg::Lock::Timeout=300 ${packages[*]}"
    if ! command -v apt-get >/dev/null; then
        cat >&2 <<END
Missing (by Debian's package names): ${packages[*]}
This script knows Debian's apt-get only. Install them in your system's way: PostgreSQL 15's server, client and contrib
programs in $bin, Python 3, a C compiler that links.
END
        return 1
    fi
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        # Lists that were never fetched say nothing about what there is.
        if has_candidate postgresql-common && [[ " ${packages[*]} " == *" postgresql-15 "* ]] &&
            ! has_candidate postgresql-15; then
            say_no_postgresql_15
            return 1
        fi
        cat >&2 <<END
Missing: ${packages[*]}
Installing them needs root, and there is no sudo. Run this as root once, then ./run or ./test again as yourself:
  apt-get update && $install
END
        [ -z "$no_server_said" ] || echo "That also writes $no_server_said." >&2
        return 1
    fi
    echo "installing ${packages[*]}" >&2
    as_root "apt-get update -q >&2" || {
        echo "apt-get update failed, see above: can this machine reach its package sources?" >&2
        return 1
    }
    if [[ " ${packages[*]} " == *" postgresql-15 "* ]] && ! has_candidate postgresql-15; then
        say_no_postgresql_15
        return 1
    fi
    as_root "$install >&2" || {
        echo "apt-get could not install ${packages[*]}, see above. Repair that, then run this again." >&2
        [ ! -e /etc/postgresql-common/createcluster.conf ] || [ -z "$no_server_said" ] || echo "wrote $no_server_said" >&2
        return 1
    }
    [ -z "$no_server_said" ] || echo "wrote $no_server_said" >&2
}

# Whether version $1 is $2 or newer.
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

say_how_to_get_rust() {
    local own
    if command -v rustup >/dev/null; then
        echo "rustup is there; let it fetch one:  rustup update stable && rustup default stable" >&2
        return
    fi
    # rust-version is about rustc; Debian numbers cargo otherwise.
    own=$(LC_ALL=C apt-cache policy rustc 2>/dev/null | sed -n 's/^  Candidate: \([0-9][0-9.]*\).*/\1/p' || true)
    if [ -n "$own" ] && at_least "$own" "$wanted"; then
        echo "This system's own is new enough:  apt-get install cargo rustc rustfmt rust-clippy  (as root)" >&2
        return
    fi
    echo "${own:+The packages of this system have Rust $own. }Those of Debian 12 and 13 are too old." >&2
    if has_candidate rustup; then
        echo "Get it with rustup:  apt-get install rustup  (as root), then as yourself  rustup default stable" >&2
    else
        cat >&2 <<'END'
Get it with rustup, as the user who builds (https://rustup.rs; needs curl, on Debian: apt-get install curl ca-certificates):
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
then open a new shell.
END
    fi
}

check_rust() {
    local tool path output version cargo_home=${CARGO_HOME:-${HOME:-}/.cargo}
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$here/../Cargo.toml")
    for tool in cargo rustc; do
        if ! path=$(command -v "$tool"); then
            if [ -x "$cargo_home/bin/$tool" ]; then
                printf 'Rust is installed in %s, but not in the PATH of this shell. Open a new one, or:  . %q\n' \
                    "$cargo_home" "$cargo_home/env" >&2
                return 1
            fi
            echo "Rust is missing: there is no $tool in the PATH. Borealis needs Rust $wanted or newer." >&2
            say_how_to_get_rust
            return 1
        fi
        # In the repository's folder, where rustup may have been told to use another toolchain.
        if ! output=$(cd "$here/.." && "$tool" --version 2>&1); then
            printf '%s does not run:\n%s\nBorealis needs Rust %s or newer.\n' "$path" "$output" "$wanted" >&2
            say_how_to_get_rust
            return 1
        fi
        version=$(sed -n "s/^$tool \([0-9.]*\).*/\1/p" <<<"$output")
        if ! at_least "${version:-0}" "$wanted"; then
            echo "Rust is too old: $path is version ${version:-unknown}, Borealis needs Rust $wanted or newer." >&2
            say_how_to_get_rust
            return 1
        fi
    done
    [ "$purpose" = lint ] || return 0
    # A minimal profile of rustup has neither, nor have Debian's packages of cargo and rustc.
    for tool in fmt clippy; do
        if ! (cd "$here/.." && cargo "$tool" --version) >/dev/null 2>&1; then
            echo "cargo $tool is missing. With rustup:  rustup component add rustfmt clippy" >&2
            echo "with Debian's packages:  apt-get install rustfmt rust-clippy  (as root)" >&2
            return 1
        fi
    done
}

failed=0
mapfile -t packages < <(missing_packages)
[ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}" || failed=1
check_rust || failed=1
exit "$failed"
