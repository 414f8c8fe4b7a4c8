"""Virtual machines through libvirt and QEMU."""
