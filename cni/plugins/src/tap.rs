//! tap: a link whose other end is a program of the container that opens /dev/net/tun, a virtual machine mostly.

use cofferdam_linux::tap::Tap;

use crate::container_link::{ContainerLink, Parent, Shape};

pub(crate) static TAP: ContainerLink = ContainerLink {
    kind: "tap",
    link_kind: "tun",
    parent: Parent::None,
    shape: |request| {
        Ok(Shape::Tap(Tap {
            owner: request.get("owner")?,
            group: request.get("group")?,
            multi_queue: request.get("multiQueue")?.unwrap_or(false),
        }))
    },
    unknown: &["bridge", "selinuxContext"],
};
