//! Manipulations of an attachment, one at a time, that CHECK has to see.
//!
//! Each is a shell line in the host's namespace. It finds `$NETNS`, `$IF`, `$HOSTIF` (the host's end), `$BRIDGE`,
//! `$ADDRESS`, `$GATEWAY` and `$DATA`; what an attachment does not have is empty. A line that fails, or after which
//! everything is as before, manipulated nothing.

use serde_json::Value;

use crate::stage::{Attached, Stage};

/// One manipulation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tamper {
    pub(crate) name: &'static str,
    lines: &'static str,
}

const fn tamper(name: &'static str, lines: &'static str) -> Tamper {
    Tamper { name, lines }
}

/// Rules of our own table first, then where the reference plugins keep theirs.
const ALL: &[Tamper] = &[
    tamper("link-down", "nsenter --net=$NETNS ip link set $IF down"),
    tamper("link-gone", "nsenter --net=$NETNS ip link delete $IF"),
    tamper("address-removed", "nsenter --net=$NETNS ip address flush dev $IF scope global"),
    tamper("mtu-changed", "nsenter --net=$NETNS ip link set $IF mtu 1300"),
    tamper("mac-changed", "nsenter --net=$NETNS ip link set $IF address 02:00:00:00:77:77"),
    tamper("default-route-removed", "nsenter --net=$NETNS ip route delete default"),
    tamper(
        "default-route-moved",
        "nsenter --net=$NETNS ip route replace default via ${GATEWAY%.*}.253 dev $IF onlink",
    ),
    tamper("host-link-down", "ip link set $HOSTIF down"),
    tamper("host-link-off-bridge", "ip link set $HOSTIF nomaster"),
    tamper("gateway-removed", "ip address flush dev $BRIDGE scope global"),
    tamper("host-route-removed", "ip route delete ${ADDRESS%/*}"),
    tamper("ip-forward-off", "echo 0 >/proc/sys/net/ipv4/ip_forward"),
    tamper("lease-renamed", "cd $DATA/conformance; mv ${ADDRESS%/*} ${ADDRESS%.*}.250"),
    tamper("lease-removed", "rm $DATA/conformance/${ADDRESS%/*}"),
    tamper(
        "masquerade-removed",
        "nft flush set inet cofferdam masquerade4 2>/dev/null || iptables -t nat -F POSTROUTING",
    ),
    tamper(
        "dnat-removed",
        "nft flush map inet cofferdam ports4 2>/dev/null || iptables -t nat -F CNI-HOSTPORT-DNAT",
    ),
    tamper(
        "dnat-retargeted",
        "set -- $(nft list map inet cofferdam ports4 | sed -n 's/.*elements = { \\(tcp . [0-9]*\\) .*comment \\(\"[^\"]*\"\\) : .*/\\1 \\2/p')\n\
         nft \"delete element inet cofferdam ports4 { $1 . $3 }\n\
         add element inet cofferdam ports4 { $1 . $3 comment $4 : 10.99.0.99 . 80 }\"",
    ),
    tamper(
        "hairpin-removed",
        "nft flush set inet cofferdam hairpin4 2>/dev/null || iptables -t nat -F CNI-HOSTPORT-MASQ",
    ),
    tamper(
        "dnat-jump-removed",
        "nft flush chain inet cofferdam prerouting 2>/dev/null || iptables -t nat -F PREROUTING",
    ),
    tamper("forward-removed", "nft flush set inet cofferdam forward4 2>/dev/null || iptables -F CNI-FORWARD"),
    tamper("root-qdisc-removed", "tc qdisc delete dev $HOSTIF root"),
    tamper("ingress-removed", "tc qdisc delete dev $HOSTIF ingress"),
    tamper("rules-flushed", "nsenter --net=$NETNS ip rule delete from ${ADDRESS%/*}"),
    tamper("sysctl-changed", "nsenter --net=$NETNS sh -c 'echo 0 >/proc/sys/net/ipv4/conf/all/log_martians'"),
];

/// The manipulation of that name.
pub(crate) fn find(name: &str) -> Option<&'static Tamper> {
    ALL.iter().find(|tamper| tamper.name == name)
}

impl Tamper {
    /// Manipulates; false if there was nothing to manipulate.
    pub(crate) fn apply(&self, stage: &Stage<'_>, attached: &Attached) -> bool {
        let looks = || (stage.look(), stage.look_inside(&attached.container));
        let before = looks();
        let is_done = stage.shell(self.lines, &variables(stage, attached)).is_ok();
        // Values of /proc/sys are in no look.
        is_done && (self.lines.contains("/proc/sys") || looks() != before)
    }
}

fn variables(stage: &Stage<'_>, attached: &Attached) -> Vec<(&'static str, String)> {
    let Attached { container, result } = attached;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let empty = Vec::new();
    let interfaces = result["interfaces"].as_array().unwrap_or(&empty);
    let on_host: Vec<String> = interfaces
        .iter()
        .filter(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty())
        .map(|interface| text(&interface["name"]))
        .collect();
    vec![
        ("NETNS", container.netns.display().to_string()),
        ("IF", container.ifname.clone()),
        ("HOSTIF", on_host.last().cloned().unwrap_or_default()),
        ("BRIDGE", on_host.first().cloned().unwrap_or_default()),
        ("ADDRESS", text(&result["ips"][0]["address"])),
        ("GATEWAY", text(&result["ips"][0]["gateway"])),
        ("DATA", stage.data().display().to_string()),
    ]
}
