#!/bin/sh
# Installs a browser, and noVNC and xterm.js into a folder that is there, for the tests of consoles. Does nothing that is done already.
# usage: install.sh FOLDER
set -eu

into=${1:?usage: install.sh FOLDER}
here=$(dirname "$0")
sh "$here/../../../systemd/packages.sh" "$here/packages.txt"
if ! command -v npm >/dev/null && [ "$(id -u)" -eq 0 ]; then # comes with Node.js, or as a package of its own
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm >/dev/null
fi
if ! command -v npm >/dev/null; then
    echo "no npm here, so consoles are not opened in a browser" >&2
    exit 0
fi
cp "$here/package.json" "$here/package-lock.json" "$into"
npm ci --prefix "$into" --ignore-scripts --no-audit --no-fund --loglevel=error
