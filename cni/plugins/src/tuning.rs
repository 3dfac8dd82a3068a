//! tuning: settings of the container's kernel, and of an interface that a plugin before made.
//!
//! What an interface was before is kept in a file, from which DEL restores it: an interface may outlive the attachment, as
//! one that host-device moved in does. Settings under /proc/sys are not restored; they end with the namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cofferdam_cni::{AddResult, Code, NetnsFate, Object, Plugin, PluginError, Request};
use cofferdam_linux::netlink::{Link, LinkChange, MacAddress, Socket};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use crate::container::inside;
use crate::container_link::netns_if_there;
use crate::veth::wanted_mac;
use crate::{arguments, sysctl};

pub(crate) struct Tuning;

/// Which settings are allowed: a regular expression a line; without the file, all of the namespace's.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";
/// Where the reference plugin keeps what was before.
const DATA: &str = "/run/cni/tuning";

/// What is to be set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    sysctl: BTreeMap<String, String>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    mtu: Option<u32>,
    #[serde(rename = "txQLen")]
    queue_length: Option<u32>,
    mac: Option<String>,
}

/// What was before.
#[derive(Debug, Serialize, Deserialize)]
struct Backup {
    owner: String,
    mac: Option<String>,
    mtu: Option<u32>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    queue_length: Option<u32>,
}

impl Config {
    fn of(request: &Request<'_>) -> Result<Self, PluginError> {
        let mut config: Self = request.settings()?;
        let sysctl: Option<BTreeMap<String, String>> = arguments(request, "sysctl")?;
        config.sysctl.extend(sysctl.unwrap_or_default());
        config.promisc = arguments(request, "promisc")?.or(config.promisc);
        config.allmulti = arguments(request, "allmulti")?.or(config.allmulti);
        config.mtu = arguments(request, "mtu")?.or(config.mtu).filter(|mtu| *mtu > 0);
        config.queue_length = arguments(request, "txQLen")?.or(config.queue_length);
        config.mac = arguments(request, "mac")?.or(config.mac);
        Ok(config)
    }

    fn mac(&self, request: &Request<'_>) -> Result<Option<MacAddress>, PluginError> {
        let Some(text) = self.mac.as_deref().filter(|text| !text.is_empty()) else {
            return wanted_mac(request);
        };
        let mac = MacAddress::parse(text);
        mac.map(Some).ok_or_else(|| PluginError::config(format!("tuning: {text:?} is no hardware address")))
    }

    fn change<'a>(&self, request: &Request<'_>) -> Result<LinkChange<'a>, PluginError> {
        Ok(LinkChange {
            mac: self.mac(request)?,
            mtu: self.mtu,
            promiscuous: self.promisc,
            all_multicast: self.allmulti,
            queue_length: self.queue_length,
            ..LinkChange::default()
        })
    }

    /// The settings as paths below /proc/sys/net, each with its value.
    fn settings(&self, request: &Request<'_>) -> Result<Vec<(String, String)>, PluginError> {
        let allowed = allowed()?;
        let path = |(key, value): (&String, &String)| {
            if allowed.as_ref().is_some_and(|patterns| !patterns.iter().any(|one| one.is_match(key))) {
                return Err(PluginError::config(format!("tuning: {ALLOWED} does not allow {key:?}")));
            }
            // The name of an interface may hold dots, so it comes last.
            let path = key.replace('.', "/").replace("IFNAME", request.if_name.as_str());
            match path.strip_prefix("net/") {
                Some(rest) if !rest.split('/').any(|part| matches!(part, "" | "." | "..")) => {
                    Ok((rest.to_owned(), value.clone()))
                }
                _ => {
                    Err(PluginError::config(format!("tuning: {key:?} is no setting of a network namespace")))
                }
            }
        };
        self.sysctl.iter().map(path).collect()
    }
}

fn allowed() -> Result<Option<Vec<Regex>>, PluginError> {
    let text = match fs::read_to_string(ALLOWED) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => {
            text.map_err(|error| PluginError::new(Code::IO, format!("cannot read {ALLOWED}: {error}")))?
        }
    };
    let patterns = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let compile =
        |line| Regex::new(line).map_err(|error| PluginError::config(format!("{ALLOWED}: {line:?}: {error}")));
    patterns.map(compile).collect::<Result<_, _>>().map(Some)
}

impl Plugin for Tuning {
    fn kind(&self) -> &'static str {
        "tuning"
    }

    fn supports(&self, _config: &Object) -> Result<(), String> {
        Ok(())
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let mut result = request
            .previous
            .clone()
            .ok_or_else(|| PluginError::config("tuning must come after a plugin that makes an interface"))?;
        let config = Config::of(request)?;
        let (settings, change) = (config.settings(request)?, config.change(request)?);
        let netns = request.open_netns()?;
        let store = directory(request)?;
        let (name, owner) = (request.if_name.as_str(), request.owner());
        let backup = backup_path(&store, &owner);
        let changed = inside(netns.as_fd(), |socket| {
            settings.iter().try_for_each(|(key, value)| sysctl::set(key, value))?;
            if is_nothing(&change) {
                return Ok(None);
            }
            let link = socket.link(name)?;
            write_backup(&store, &backup, &Backup::of(&link, &change, &owner))?;
            apply(socket, &link, &change)?;
            Ok(Some(socket.link(name)?))
        })?;
        for interface in
            result.interfaces.iter_mut().filter(|one| one.name == name && !one.sandbox.is_empty())
        {
            let Some(link) = &changed else { continue };
            interface.mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
            interface.mtu = interface.mtu.map(|_| link.mtu);
        }
        Ok(result)
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let path = backup_path(&directory(request)?, &request.owner());
        let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
        let netns = netns_if_there(request).filter(|_| request.netns_fate == NetnsFate::Stays);
        // A file that a crash cut is none: it is written before anything is changed.
        if let (Some(netns), Ok(backup)) = (netns, serde_json::from_str::<Backup>(&text)) {
            let mut socket = Socket::route_in(netns.as_fd())?;
            if let Some(link) = socket.find_link(request.if_name.as_str())? {
                apply(&mut socket, &link, &backup.change())?;
            }
        }
        remove(&path)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let config = Config::of(request)?;
        let (settings, change) = (config.settings(request)?, config.change(request)?);
        let wrong = |what: String| PluginError::new(Code::CHECK_FAILED, format!("tuning: {what}"));
        let name = request.if_name.as_str();
        inside(request.open_netns()?.as_fd(), |socket| {
            for (key, value) in &settings {
                let now = sysctl::get(key)?;
                // Several numbers are printed with tabs between them.
                if !now.split_whitespace().eq(value.split_whitespace()) {
                    return Err(wrong(format!("/proc/sys/net/{key} is {now} instead of {value}")));
                }
            }
            let link = socket.link(name)?;
            let differs = change.mac.is_some_and(|mac| link.mac != Some(mac))
                || change.mtu.is_some_and(|mtu| link.mtu != mtu)
                || change.promiscuous.is_some_and(|on| link.promiscuous != on)
                || change.all_multicast.is_some_and(|on| link.all_multicast != on)
                || change.queue_length.is_some_and(|length| link.queue_length != length);
            if differs { Err(wrong(format!("{name} is not as it was set: {link:?}"))) } else { Ok(()) }
        })
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let unwanted = crate::ruleset::unwanted(request)?;
        let entries = fs::read_dir(directory(request)?).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let backup =
                fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Backup>(&text).ok());
            if backup.is_some_and(|backup| unwanted(&backup.owner)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn status(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        allowed().map(drop)
    }
}

impl Backup {
    fn of(link: &Link, change: &LinkChange<'_>, owner: &str) -> Self {
        Self {
            owner: owner.into(),
            mac: change.mac.and(link.mac).map(|mac| mac.to_string()),
            mtu: change.mtu.map(|_| link.mtu),
            promisc: change.promiscuous.map(|_| link.promiscuous),
            allmulti: change.all_multicast.map(|_| link.all_multicast),
            queue_length: change.queue_length.map(|_| link.queue_length),
        }
    }

    fn change(&self) -> LinkChange<'static> {
        LinkChange {
            mac: self.mac.as_deref().and_then(MacAddress::parse),
            mtu: self.mtu,
            promiscuous: self.promisc,
            all_multicast: self.allmulti,
            queue_length: self.queue_length,
            ..LinkChange::default()
        }
    }
}

fn is_nothing(change: &LinkChange<'_>) -> bool {
    change.mac.is_none()
        && change.mtu.is_none()
        && change.promiscuous.is_none()
        && change.all_multicast.is_none()
        && change.queue_length.is_none()
}

/// Some drivers change their address only while they are down, and lose their routes by it: so only if they say so.
fn apply(socket: &mut Socket, link: &Link, change: &LinkChange<'_>) -> Result<(), PluginError> {
    match socket.change_link(link.index, change) {
        Err(error) if error.errno() == rustix::io::Errno::BUSY && change.mac.is_some() => {
            socket.change_link(link.index, &LinkChange { up: Some(false), ..LinkChange::default() })?;
            Ok(socket.change_link(link.index, &LinkChange { up: Some(link.up), ..change.clone() })?)
        }
        changed => Ok(changed?),
    }
}

fn directory(request: &Request<'_>) -> Result<PathBuf, PluginError> {
    let own: Option<PathBuf> = request.get("dataDir")?;
    Ok(own.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| DATA.into()))
}

fn backup_path(store: &Path, owner: &str) -> PathBuf {
    store.join(format!("{}.json", owner.replace('/', "_")))
}

fn write_backup(store: &Path, path: &Path, backup: &Backup) -> Result<(), PluginError> {
    let failed =
        |error: io::Error| PluginError::new(Code::IO, format!("cannot write {}: {error}", path.display()));
    let text = serde_json::to_string(backup).map_err(|error| failed(error.into()))?;
    let temporary = path.with_extension("new");
    fs::create_dir_all(store).map_err(failed)?;
    fs::write(&temporary, text).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

fn remove(path: &Path) -> Result<(), PluginError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PluginError::new(Code::IO, format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}
