//! The example plugin of the documentation, as its readers will run it.

use std::os::fd::AsFd;

use cofferdam_linux::namespace::open_netns;
use cofferdam_linux::netlink::Socket;
use serde_json::json;

use crate::{Netns, call};

#[test]
fn the_example_is_complete_in_less_than_60_lines_and_works() {
    let text = include_str!("../../examples/extra-address.rs");
    assert!(text.lines().count() < 60, "{} lines", text.lines().count());
    let Some(netns) = Netns::make() else { return };
    let config = |previous: bool| {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "extra-address",
            "address": "169.254.169.254/32",
        });
        if previous {
            config["prevResult"] =
                json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.0.0.2/24" }], "unknown": 1 });
        }
        config.to_string()
    };
    let run = |verb, path: &str, previous| {
        call("extra-address", verb, &[("CNI_NETNS", path)], config(previous).as_bytes())
    };
    let addresses = || {
        let mut socket = Socket::route_in(open_netns(netns.path().as_ref()).unwrap().as_fd()).unwrap();
        let lo = socket.link("lo").unwrap().index;
        socket.addresses(lo).unwrap().len()
    };
    assert_eq!(run("ADD", netns.path(), false).object()["code"], 7);
    assert_eq!(addresses(), 0);
    let said = run("ADD", netns.path(), true);
    assert_eq!(said.status, Some(0), "{said:?}");
    let ips = json!([{ "address": "10.0.0.2/24" }, { "address": "169.254.169.254/32" }]);
    assert_eq!(said.object()["ips"], ips);
    assert_eq!(addresses(), 1);
    assert_eq!(run("CHECK", netns.path(), true).status, Some(0));
    for path in [netns.path(), netns.path(), "/nowhere", ""] {
        let said = run("DEL", path, true);
        assert_eq!((said.status, said.stdout.as_str()), (Some(0), ""), "{said:?}");
    }
    assert_eq!(addresses(), 0);
    assert_eq!(run("CHECK", netns.path(), true).object()["code"], 102);
    assert_eq!(run("STATUS", "", false).status, Some(0));
}
