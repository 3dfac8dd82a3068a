//! config.md, "User"; hostname and domainname.

use serde_json::json;

use crate::case::{Case, case, chapter};

#[test]
fn user_and_names_are_as_the_specification_says() {
    chapter("config.md: user, hostname, domainname", cases());
}

fn cases() -> Vec<Case> {
    vec![
        case("uid and gid", "config.md, User, uid and gid")
            .set("/process/user", json!({ "uid": 1000, "gid": 1001 }))
            .probe("grep -E '^[UG]id' /proc/self/status")
            .prints("Uid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001"),
        case("additional groups", "config.md, User, additionalGids")
            .set("/process/user/additionalGids", json!([5, 6]))
            .probe("grep Groups /proc/self/status")
            .shows(&["5 6"]),
        case("without additional groups there are none of the caller's", "config.md, User, additionalGids")
            .probe("grep Groups /proc/self/status | tr -d ' \\t'")
            .prints("Groups:"),
        case("the umask", "config.md, User, umask")
            .set("/process/user/umask", json!(0o077))
            .probe("umask; touch /tmp/f; stat -c %a /tmp/f")
            .prints("0077\n600"),
        case("without a umask it is 0022", "as runc and crun do; config.md leaves it to the runtime")
            .probe("umask")
            .prints("0022"),
        case("the host name", "config.md, Hostname")
            .set("/hostname", json!("castle.example"))
            .probe("hostname")
            .prints("castle.example"),
        case("a host name without a uts namespace is refused", "config.md, Hostname: private UTS namespace")
            .set("/linux/namespaces", json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "mount" }]))
            .refused("/hostname"),
        case("the domain name", "config.md, Domainname")
            .set("/domainname", json!("realm.example"))
            .probe("cat /proc/sys/kernel/domainname")
            .prints("realm.example"),
    ]
}
