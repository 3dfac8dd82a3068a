//! A complete plugin: gives the container one more address, on its loopback, as for a metadata service.
//!
//! `{ "type": "extra-address", "address": "169.254.169.254/32" }` behind a plugin that makes an interface.

use std::os::fd::AsFd;

use cofferdam_cni::{AddResult, Code, IpConfig, Plugin, PluginError, Prefix, Program, Request};
use cofferdam_linux::netlink::{Address, Socket};

struct ExtraAddress;

#[derive(serde::Deserialize)]
struct Config {
    address: Prefix,
}

/// A connection into the container, its loopback, and the address that it shall have.
fn open(request: &Request<'_>) -> Result<(Socket, u32, Address), PluginError> {
    let Prefix { address, length } = request.settings::<Config>()?.address;
    let mut socket = Socket::route_in(request.open_netns()?.as_fd())?;
    let lo = socket.link("lo")?.index;
    Ok((socket, lo, Address { address, prefix: length }))
}

impl Plugin for ExtraAddress {
    fn kind(&self) -> &'static str {
        "extra-address"
    }
    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let mut result = request.chained()?;
        let (mut socket, lo, wanted) = open(request)?;
        socket.add_address(lo, wanted)?;
        let address = Prefix { address: wanted.address, length: wanted.prefix };
        result.ips.push(IpConfig { interface: None, address, gateway: None });
        Ok(result)
    }
    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        // Without a namespace the address is gone with it.
        let Some(_) = request.netns else { return Ok(()) };
        let (mut socket, lo, unwanted) = open(request)?;
        PluginError::unless_gone(socket.delete_address(lo, unwanted))
    }
    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let (mut socket, lo, wanted) = open(request)?;
        let is_there = socket.addresses(lo)?.contains(&wanted);
        is_there.then_some(()).ok_or_else(|| PluginError::new(Code::CHECK_FAILED, "the address is gone"))
    }
    fn gc(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(()) // Everything is in the container's namespace and ends with it.
    }
    fn status(&self, request: &Request<'_>) -> Result<(), PluginError> {
        request.settings::<Config>().map(drop)
    }
}

fn main() -> std::process::ExitCode {
    Program::new("one more address on the loopback", &[&ExtraAddress]).run()
}
