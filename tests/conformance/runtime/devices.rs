//! config-linux.md, "Devices", "Default Devices" and "Device Whitelist".

use serde_json::json;

use crate::case::{Case, case, chapter};

#[test]
fn devices_are_as_the_specification_says() {
    chapter("config-linux.md: devices", cases());
}

fn cases() -> Vec<Case> {
    vec![
        case("the default devices are there", "config-linux.md, Default Devices: MUST be supplied")
            .probe("for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$d; done")
            .prints(
                "/dev/null character special file 1:3 666\n/dev/zero character special file 1:5 666\n\
                 /dev/full character special file 1:7 666\n/dev/random character special file 1:8 666\n\
                 /dev/urandom character special file 1:9 666\n/dev/tty character special file 5:0 666",
            ),
        case("the links are there", "config-linux.md, runtime-linux.md, Dev symbolic links")
            .probe("for d in fd stdin stdout stderr ptmx; do readlink /dev/$d; done")
            .prints("/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx"),
        case("the default devices can be used", "config-linux.md, Default Devices")
            .probe("echo x > /dev/null; head -c 5 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; echo x > /dev/full; echo $?")
            .shows(&["5\n5\n1"]),
        case("a listed device has its number, mode and owner", "config-linux.md, Devices")
            .push("/linux/devices", json!({ "path": "/dev/mine", "type": "c", "major": 1, "minor": 5,
                "fileMode": 0o640, "uid": 3, "gid": 4 }))
            .probe("stat -c '%F %t:%T %a %u:%g' /dev/mine")
            .prints("character special file 1:5 640 3:4"),
        case("a block device", "config-linux.md, Devices, type b")
            .push("/linux/devices", json!({ "path": "/dev/block", "type": "b", "major": 7, "minor": 9, "fileMode": 0o600 }))
            .probe("stat -c '%F %t:%T %a' /dev/block")
            .prints("block special file 7:9 600"),
        case("a FIFO", "config-linux.md, Devices, type p")
            .push("/linux/devices", json!({ "path": "/run/pipe", "type": "p", "fileMode": 0o640, "uid": 1, "gid": 2 }))
            .probe("stat -c '%F %a %u:%g' /run/pipe")
            .prints("fifo 640 1:2"),
        case("the list may say more of a default device", "config-linux.md, Devices")
            .push("/linux/devices", json!({ "path": "/dev/null", "type": "c", "major": 1, "minor": 3,
                "fileMode": 0o606, "uid": 7, "gid": 8 }))
            .probe("stat -c '%a %u:%g' /dev/null")
            .prints("606 7:8"),
        case("a device that is not allowed cannot be opened", "config-linux.md, Allowed Device list")
            .push("/linux/devices", json!({ "path": "/dev/memory", "type": "c", "major": 1, "minor": 1, "fileMode": 0o666 }))
            .probe("head -c 1 /dev/memory 2>&1 | grep -o 'not permitted'")
            .prints("not permitted"),
        case("a device that is allowed can", "config-linux.md, Allowed Device list, allow")
            .push("/linux/devices", json!({ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 }))
            .push("/linux/resources/devices", json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" }))
            .probe("head -c 1 /dev/kmsg 2>&1 | grep -o 'not permitted'; : > /dev/kmsg && echo opened")
            .prints("not permitted\nopened"),
    ]
}
