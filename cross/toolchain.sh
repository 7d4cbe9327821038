#!/usr/bin/env bash
# Sourced by the scripts that build: sees to it that cargo and a C compiler are there.
# A Rust of 1.95 or newer that is already installed is used as it is; else Debian's is installed.

need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        echo "Please run as root, or install first: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "Installing ${missing[*]}" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

need_toolchain() {
    command -v gcc >/dev/null || need_packages gcc libc6-dev
    local version
    version=$(cargo --version 2>/dev/null | cut -d' ' -f2) || version=0
    if [ "$(printf '%s\n' 1.95.0 "${version:-0}" | sort -V | head -n1)" != 1.95.0 ]; then
        need_packages rustc-web cargo-web rust-web-clippy rustfmt-web
    fi
}
