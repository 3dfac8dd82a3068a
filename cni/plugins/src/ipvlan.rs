//! ipvlan: a further address of a link of the host, in the container.

use cofferdam_linux::netlink::{IpvlanMode, LinkKind};

use crate::container_link::{ContainerLink, Parent, Shape};
use crate::one_of;

pub(crate) static IPVLAN: ContainerLink = ContainerLink {
    kind: "ipvlan",
    link_kind: "ipvlan",
    parent: Parent::Chained,
    shape: |request| {
        let modes = [("l2", IpvlanMode::L2), ("l3", IpvlanMode::L3), ("l3s", IpvlanMode::L3s)];
        Ok(Shape::Link(LinkKind::Ipvlan { mode: one_of(request, "mode", &modes)? }))
    },
    unknown: &[],
};
