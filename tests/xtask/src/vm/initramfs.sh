#!/bin/busybox sh
# First process of the virtual machine: load the disk's driver and go on from there.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    /bin/busybox insmod "$module"
done
tries=0
until [ -b /dev/vda ] || [ $tries -ge 100 ]; do
    /bin/busybox usleep 100000
    tries=$((tries + 1))
done
/bin/busybox mount -t ext4 /dev/vda /disk || /bin/busybox poweroff -f
/bin/busybox mount --move /dev /disk/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /disk /sbin/init
