#!/bin/sh
# Installs the Debian packages of a list that are missing. Does nothing when all are there, or when not root.
# usage: packages.sh [LIST]; without it packages.txt, what a node needs
set -eu
list="${1:-$(dirname "$0")/../packages.txt}"
wanted=$(sed 's/#.*//' "$list" | tr -s '[:space:]' '\n' | sed '/^$/d')
missing=""
for package in $wanted; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "packages: not root on Debian, so these stay missing:$missing" >&2
    exit 0
fi
echo "packages: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Keeping configuration files as they are avoids a prompt that would leave packages half installed.
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold $missing >/dev/null
