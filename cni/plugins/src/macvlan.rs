//! macvlan: a further hardware address of a link of the host, in the container.

use cofferdam_linux::netlink::{LinkKind, MacvlanMode};

use crate::container_link::{ContainerLink, Parent, Shape};
use crate::one_of;

pub(crate) static MACVLAN: ContainerLink = ContainerLink {
    kind: "macvlan",
    link_kind: "macvlan",
    parent: Parent::Master,
    shape: |request| {
        let modes = [
            ("bridge", MacvlanMode::Bridge),
            ("private", MacvlanMode::Private),
            ("vepa", MacvlanMode::Vepa),
            ("passthru", MacvlanMode::Passthru),
        ];
        Ok(Shape::Link(LinkKind::Macvlan {
            mode: one_of(request, "mode", &modes)?,
            broadcast_queue: request.get("bcqueuelen")?.filter(|length| *length > 0),
        }))
    },
    unknown: &[],
};
