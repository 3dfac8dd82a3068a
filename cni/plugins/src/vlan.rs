//! vlan: the frames of one IEEE 802.1Q tag of a link of the host, in the container.

use cofferdam_cni::PluginError;
use cofferdam_linux::netlink::LinkKind;

use crate::container_link::{ContainerLink, Parent, Shape};

/// 4095 is reserved.
const LAST_ID: u16 = 4094;

pub(crate) static VLAN: ContainerLink = ContainerLink {
    kind: "vlan",
    link_kind: "vlan",
    parent: Parent::Master,
    shape: |request| {
        let id: Option<u16> = request.get("vlanId")?;
        let id = id.ok_or_else(|| PluginError::config("vlan: vlanId is missing"))?;
        if id > LAST_ID {
            return Err(PluginError::config(format!("vlan: vlanId {id} is not between 0 and {LAST_ID}")));
        }
        Ok(Shape::Link(LinkKind::Vlan { id }))
    },
    unknown: &[],
};
