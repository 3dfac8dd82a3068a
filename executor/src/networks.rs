//! The task's network: a pinned namespace and what connects it. (Seam: attachments come with the cni crate.)

use std::net::IpAddr;

use crate::disk::Disk;
use crate::error::{Error, Kind};
use crate::etc::Resolver;
use crate::id::TaskId;
use crate::release::Places;
use crate::spec::{NetworkChoice, TaskSpec};

/// What connecting a task brought.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attached {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) resolver: Option<Resolver>,
}

/// Makes and connects the task's network namespace. Undo: [`detach`].
pub(crate) fn attach(_places: &Places, disk: &Disk, id: &TaskId, spec: &TaskSpec) -> Result<Attached, Error> {
    if spec.network == NetworkChoice::Host {
        return Ok(Attached::default());
    }
    let path = disk.netns(id);
    cofferdam_linux::namespace::create_pinned_netns(&path).map_err(|errno| Error::Network {
        kind: Kind::Internal,
        message: format!("cannot make a network namespace at {}: {errno}", path.display()),
    })?;
    Ok(Attached::default())
}

/// Disconnects the task and removes its namespace. What is not there is disconnected already.
pub(crate) fn detach(_places: &Places, disk: &Disk, id: &TaskId) -> Result<(), Vec<Error>> {
    let path = disk.netns(id);
    cofferdam_linux::namespace::remove_pinned_netns(&path)
        .map_err(|errno| vec![Error::io("remove the network namespace", &path)(errno.into())])
}

/// A network that tasks can be connected to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// Its plugins, in order.
    pub plugins: Vec<String>,
    /// The file it comes from; none for the built-in one.
    pub file: Option<std::path::PathBuf>,
}

/// Every network that tasks can be connected to.
pub(crate) fn list(_places: &Places) -> Result<Vec<NetworkInfo>, Error> {
    Ok(Vec::new())
}
