#!/bin/sh
# Second stage: a host as the suites expect one, with cgroup v2 alone. Reports on the second serial line.
export PATH=/programs:/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
ln -s /proc/self/fd /dev/fd
for number in 0:stdin 1:stdout 2:stderr; do
    ln -s "/proc/self/fd/${number%:*}" "/dev/${number#*:}"
done
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
for module in /modules/*.ko; do
    insmod "$module" 2>/dev/null || echo "not loaded: $module"
done
hostname vm
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
dmesg -n 1
. /session
