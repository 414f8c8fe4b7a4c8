#!/bin/sh
# Make a Debian 12 host ready to join a cluster: packages, /opt/gugus, units. A user on bare metal runs the same script.
# usage: provision.sh CHECKOUT (as root). May be repeated.
set -eu

checkout=${1:?usage: provision.sh CHECKOUT}
sh "$checkout/systemd/packages.sh"

# The environment is made in place, from the checkout, and owned by root.
[ -x /opt/gugus/bin/python3 ] || /usr/bin/python3 -m venv /opt/gugus
/opt/gugus/bin/pip install -q --upgrade 'pip>=25.1'
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
# Without what a checkout on another machine may hold: its environment and its generated stubs.
tar -C "$checkout" --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./.vagrant -c . | tar -x -C "$build"
/opt/gugus/bin/pip install -q 'grpcio-tools>=1.85.1' mypy-protobuf
site=$(/opt/gugus/bin/python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$build/build/proto"
find "$build/proto" -name '*.proto' -exec /opt/gugus/bin/python3 -m grpc_tools.protoc -I"$build/proto" -I"$site" \
    --python_out="$build/build/proto" --grpc_python_out="$build/build/proto" {} +
/opt/gugus/bin/pip install -q --force-reinstall --no-deps "$build"
/opt/gugus/bin/pip install -q "$build"
sh "$checkout/systemd/install.sh"
systemctl enable --now libvirtd.socket
