//! loopback: the container's `lo`, up.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use cofferdam_cni::{AddResult, Code, Interface, IpConfig, Object, Plugin, PluginError, Prefix, Request};
use cofferdam_linux::netlink::{self, Socket};

pub(crate) struct Loopback;

/// Brings the loopback of a network namespace up, which gives it 127.0.0.1 and ::1.
pub fn bring_loopback_up(netns: BorrowedFd<'_>) -> Result<(), netlink::Error> {
    let mut socket = Socket::route_in(netns)?;
    let lo = socket.link("lo")?;
    if lo.up { Ok(()) } else { socket.set_up(lo.index) }
}

impl Plugin for Loopback {
    fn kind(&self) -> &'static str {
        "loopback"
    }

    fn supports(&self, _config: &Object) -> Result<(), String> {
        Ok(())
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let netns = request.open_netns()?;
        bring_loopback_up(netns.as_fd())?;
        Ok(request.previous.clone().unwrap_or_else(|| result(request)))
    }

    /// The namespace takes its loopback with it.
    fn del(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let netns = request.open_netns()?;
        let lo = Socket::route_in(netns.as_fd())?.link("lo")?;
        if lo.up { Ok(()) } else { Err(PluginError::new(Code::CHECK_FAILED, "lo is down")) }
    }

    fn gc(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn status(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }
}

fn result(request: &Request<'_>) -> AddResult {
    let sandbox = request.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let ip =
        |address, length| IpConfig { interface: Some(0), address: Prefix { address, length }, gateway: None };
    AddResult {
        interfaces: vec![Interface {
            name: "lo".into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox,
            ..Interface::default()
        }],
        ips: vec![ip(Ipv4Addr::LOCALHOST.into(), 8), ip(Ipv6Addr::LOCALHOST.into(), 128)],
        ..AddResult::default()
    }
}
