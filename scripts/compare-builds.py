#!/usr/bin/env python3
"""Commits per second and latency of two builds, in alternation, so that whatever else the machine does concerns both.

    python3 scripts/compare-builds.py OLD/borealis NEW/borealis [--rounds 6] [--seconds 15] [--clients 8]
    python3 scripts/compare-builds.py borealis borealis --second-up --tls      one build, over sockets and over TLS

Each build has a cluster of its own below a temporary folder. Only one of them runs at a time; each round starts it, lets
pgbench's write transaction run, and stops it. Prints each round, and the medians with the range of the rounds.
"""
import argparse
import pathlib
import re
import statistics
import subprocess
import tempfile

PGBENCH = "/usr/lib/postgresql/15/bin/pgbench"


def run(*command):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def pgbench(port, *words):
    return run(PGBENCH, "-h", "127.0.0.1", "-p", port, "-U", "postgres", *words, "postgres")


def one_round(program, folder, port, options):
    run(program, "up", "--detach", "--port", port, "--dir", folder)
    try:
        text = pgbench(port, "-n", "-M", "prepared", "-c", options.clients, "-T", options.seconds)
    finally:
        run(program, "down", "--dir", folder)
    tps = float(re.search(r"tps = ([\d.]+)", text)[1])
    latency_ms = float(re.search(r"latency average = ([\d.]+)", text)[1])
    return tps, latency_ms


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("programs", nargs=2, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--port", type=int, default=7655)
    parser.add_argument("--second-up", nargs=argparse.REMAINDER, default=[], help="more words for the second's first `up`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="borealis-compare-") as place:
        pathlib.Path(place).chmod(0o755)
        more = [[], options.second_up]
        clusters = [
            (f"{number} {' '.join([str(program), *words])}", program, pathlib.Path(place) / str(number), words)
            for number, (program, words) in enumerate(zip(options.programs, more), 1)
        ]
        for _, program, folder, words in clusters:
            run(program, "up", "--detach", "--port", options.port, "--dir", folder, *words)
            pgbench(options.port, "-i", "-q", "-s", "5")
            run(program, "down", "--dir", folder)
        results = {name: [] for name, *_ in clusters}
        for number in range(options.rounds):
            # Whoever goes first in one round goes last in the next.
            for name, program, folder, _ in clusters[:: 1 if number % 2 == 0 else -1]:
                tps, latency_ms = one_round(program, folder, options.port, options)
                results[name].append((tps, latency_ms))
                print(f"round {number + 1}  {name}: {tps:.0f} tps, {latency_ms:.2f} ms", flush=True)
        for name, rounds in results.items():
            tps, latency = zip(*rounds)
            print(
                f"median   {name}: {statistics.median(tps):.0f} tps ({min(tps):.0f}-{max(tps):.0f}), "
                f"{statistics.median(latency):.2f} ms ({min(latency):.2f}-{max(latency):.2f})"
            )


if __name__ == "__main__":
    main()
