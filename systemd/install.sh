#!/bin/sh
# Install the units of Gugus into the running system, or with --root DIR into a system that is not running (an image).
# /opt/gugus must hold the Python environment with the console scripts. May be repeated; enables nothing by itself.
set -eu

root=
while [ $# -gt 0 ]; do
    case $1 in
        --root) root=${2:?--root needs a folder}; shift 2 ;;
        *) echo "usage: $0 [--root DIR]" >&2; exit 64 ;;
    esac
done
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

install -d "$root/etc/systemd/system" "$root/etc/sysusers.d" "$root/etc/tmpfiles.d" "$root/usr/local/bin"
install -m 0644 "$here"/*.service "$root/etc/systemd/system/"
install -m 0644 "$here/gugus.sysusers" "$root/etc/sysusers.d/gugus.conf"
install -m 0644 "$here/gugus.tmpfiles" "$root/etc/tmpfiles.d/gugus.conf"
for name in gugus gugus-agent gugus-manager gugus-watchdog gugus-lab; do
    ln -sfn "/opt/gugus/bin/$name" "$root/usr/local/bin/$name"
done

# Unprivileged containers use one range of user ids on all hosts (agent/compute/idmap.py), which root must be allowed to map.
for file in subuid subgid; do
    grep -qs '^root:1000000000:65536$' "$root/etc/$file" || echo 'root:1000000000:65536' >> "$root/etc/$file"
done

if [ -n "$root" ]; then
    systemd-sysusers --root="$root" "$root/etc/sysusers.d/gugus.conf"
else
    systemd-sysusers /etc/sysusers.d/gugus.conf
    systemd-tmpfiles --create /etc/tmpfiles.d/gugus.conf
    systemctl daemon-reload
fi
