#!/usr/bin/env python3
"""The dependency audit: licences, sources and banned crates.

Reads `cargo metadata`; needs no network. Security advisories are not part of it: their database is
in none of the package registries that CI may use.
"""
import json
import re
import subprocess
import sys

ALLOWED = {
    "MIT", "MIT-0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause",
    "ISC", "Zlib", "Unlicense", "0BSD", "CC0-1.0", "Unicode-3.0", "CDLA-Permissive-2.0", "BSL-1.0",
}
BANNED = {
    "aws-lc-sys": "larger and harder to cross-compile than ring",
    "openssl-sys": "rustls is our TLS",
    "native-tls": "rustls is our TLS",
    "reqwest": "hyper is our HTTP client",
    "rumqttd": "no topic authorisation, loses retained messages",
    "rustables": "GPL",
    "libseccomp-sys": "a C library; filters are compiled by runtime::seccomp",
}

# Come with libcontainer, which the design fixes; looked at by hand.
EXCEPTIONS = {
    "pathrs": "MPL-2.0 OR LGPL-3.0-or-later",  # file-level copyleft, used unchanged
    "rust-criu": None,  # its LICENSE file is Apache-2.0
}


def satisfied(expression: str) -> bool:
    """Whether an SPDX expression can be met with allowed licences."""
    tokens = re.findall(r"\(|\)|\bOR\b|\bAND\b|[^()\s]+(?:\s+WITH\s+[^()\s]+)?", expression.replace("/", " OR "))

    def alternatives(at: int) -> tuple[bool, int]:
        met, at = conjunction(at)
        while at < len(tokens) and tokens[at] == "OR":
            other, at = conjunction(at + 1)
            met = met or other
        return met, at

    def conjunction(at: int) -> tuple[bool, int]:
        met, at = single(at)
        while at < len(tokens) and tokens[at] == "AND":
            other, at = single(at + 1)
            met = met and other
        return met, at

    def single(at: int) -> tuple[bool, int]:
        if tokens[at] == "(":
            met, at = alternatives(at + 1)
            return met, at + 1
        return " ".join(tokens[at].split()) in ALLOWED, at + 1

    return bool(tokens) and alternatives(0)[0]


def main() -> int:
    out = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"],
        check=True, capture_output=True, text=True).stdout
    packages = json.loads(out)["packages"]
    problems = []
    for package in packages:
        name, source = package["name"], package["source"]
        if source is not None and not source.startswith("registry+"):
            problems.append(f"{name}: comes from {source}, not from the registry")
        excepted = name in EXCEPTIONS and EXCEPTIONS[name] == package["license"]
        if not excepted and not satisfied(package["license"] or ""):
            problems.append(f"{name}: licence {package['license']!r} is not permissive")
        if name in BANNED:
            problems.append(f"{name}: banned, {BANNED[name]}")
    for problem in problems:
        print("audit:", problem)
    print(f"audit: {len(packages)} packages, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
