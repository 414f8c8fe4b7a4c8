# Runs first in the booted kernel, with the repository's path and a command: gives the command this machine's own file
# system, writable and fast.
#
# virtme-ng's init mounts it without a cache, so that every import asks the machine hundreds of times. Here it is mounted
# again with one, and below an overlay in memory: whatever the command writes is gone with the kernel.
set -eu
repository=$1
shift
lab=/run/gugus-kernel
umount "$lab/lower"
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000,access=any virtme.initmount1 "$lab/lower"
mkdir "$lab/upper" "$lab/work" "$lab/root"
mount -t overlay -o "lowerdir=$lab/lower,upperdir=$lab/upper,workdir=$lab/work" root "$lab/root"
cd "$lab/root"
for folder in dev proc sys; do mount --rbind "/$folder" "$folder"; done
for folder in run tmp var/tmp; do mount -t tmpfs -o mode=1777 "${folder##*/}" "$folder"; done
# The repository itself may lie in one of those.
if [ ! -e ".$repository/pyproject.toml" ]; then
    mkdir -p ".$repository"
    mount --bind "$lab/lower$repository" ".$repository"
fi
mkdir run/old "run/${lab##*/}"
mount --bind "$lab/shared" "run/${lab##*/}"
exec unshare --mount sh -euc 'pivot_root . run/old; umount -l /run/old; exec chroot . "$@"' sh "$@"
