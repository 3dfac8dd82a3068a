//! dummy: a link that leads nowhere, for addresses that must exist.

use cofferdam_linux::netlink::LinkKind;

use crate::container_link::{ContainerLink, Parent, Shape};

pub(crate) static DUMMY: ContainerLink = ContainerLink {
    kind: "dummy",
    link_kind: "dummy",
    parent: Parent::None,
    shape: |_| Ok(Shape::Link(LinkKind::Dummy)),
    unknown: &[],
};
