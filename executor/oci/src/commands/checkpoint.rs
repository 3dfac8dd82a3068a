//! checkpoint and restore: the processes of a container to files and back, by CRIU.

use std::path::PathBuf;

use cofferdam_runtime::checkpoint::{NetworkLock, Shared};
use cofferdam_runtime::{CgroupMode, Checkpoint, Create, Namespace, Restore, bundle};

use super::Call;
use crate::failed::Failed;
use crate::foreground::{Foreground, console};

/// Where images are when nothing is said, below the working directory.
const IMAGES: &str = "checkpoint";

pub(crate) fn checkpoint(call: &Call<'_>) -> Result<i32, Failed> {
    let said = call.said;
    let checkpoint = Checkpoint {
        images: images(call),
        work: said.path("work-path"),
        parent: parent(call)?,
        leave_running: said.has("leave-running"),
        pre_dump: said.has("pre-dump"),
        tcp_skip_in_flight: said.has("tcp-skip-in-flight"),
        link_remap: said.has("link-remap"),
        page_server: said.text("page-server").map(|text| page_server(&text)).transpose()?,
        status_fd: said.number::<i32>("status-fd")?.filter(|number| *number >= 0),
        shared: shared(call)?,
    };
    call.global.runtime()?.checkpoint(&said.id()?, checkpoint)?;
    Ok(0)
}

pub(crate) fn restore(call: &Call<'_>) -> Result<i32, Failed> {
    let said = call.said;
    let folder = said.path("bundle").unwrap_or_else(|| PathBuf::from("."));
    let spec = bundle::load(&folder)?;
    let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
    let mut create = Create::new(said.id()?, folder, spec);
    let socket = said.path("console-socket");
    // Somebody has to take the terminal's master also when we wait: it comes out of the checkpoint.
    create.console = console(terminal, said.has("detach") || socket.is_some(), socket)?;
    create.pid_file = said.path("pid-file");
    let id = create.id.clone();
    let restore = Restore {
        create,
        images: images(call),
        work: said.path("work-path"),
        tcp_close: said.has("tcp-close"),
        lsm_profile: said.text("lsm-profile"),
        lsm_mount_context: said.text("lsm-mount-context"),
        shared: shared(call)?,
    };
    let runtime = call.global.runtime()?;
    let restored = runtime.restore(restore)?;
    call.warn(&restored.warnings);
    if said.has("detach") {
        return Ok(0);
    }
    let status = Foreground { process: &restored.pidfd, terminal: None }.wait();
    runtime.delete(&id, true)?;
    status
}

fn images(call: &Call<'_>) -> PathBuf {
    call.said.path("image-path").unwrap_or_else(|| PathBuf::from(IMAGES))
}

/// A parent is named relative to the images, so that both can be moved together.
fn parent(call: &Call<'_>) -> Result<Option<PathBuf>, Failed> {
    let Some(parent) = call.said.path("parent-path") else { return Ok(None) };
    if parent.is_absolute() {
        return Err(Failed::new("--parent-path must be relative to the image path"));
    }
    match std::fs::metadata(images(call).join(&parent)) {
        Ok(metadata) if metadata.is_dir() => Ok(Some(parent)),
        Ok(_) => Err(Failed::new(format!("--parent-path {}: not a directory", parent.display()))),
        // The images' directory may be made only now, and the parent lies beside it.
        Err(_) => Ok(Some(parent)),
    }
}

fn page_server(text: &str) -> Result<(String, u16), Failed> {
    let parts =
        text.rsplit_once(':').and_then(|(address, port)| Some((address.to_owned(), port.parse().ok()?)));
    parts
        .filter(|(address, _)| !address.is_empty())
        .ok_or_else(|| Failed::new("Use --page-server ADDRESS:PORT to specify page server"))
}

fn shared(call: &Call<'_>) -> Result<Shared, Failed> {
    let said = call.said;
    let mode = said.text("manage-cgroups-mode").filter(|word| !word.is_empty());
    let invalid = |word: &String| Failed::new(format!("invalid manage-cgroups-mode value: {word:?}"));
    let lock = said.text("network-lock");
    let unknown = |word: &String| Failed::new(format!("unknown network lock method {word:?}"));
    let mut empty_namespaces = 0;
    for name in said.texts("empty-ns") {
        empty_namespaces |= match name.as_str() {
            "network" => Namespace::Network.flag(),
            other => return Err(Failed::new(format!("namespace {other:?} is not supported in --empty-ns"))),
        };
    }
    Ok(Shared {
        tcp_established: said.has("tcp-established"),
        external_unix_sockets: said.has("ext-unix-sk"),
        shell_job: said.has("shell-job"),
        file_locks: said.has("file-locks"),
        auto_dedup: said.has("auto-dedup"),
        cgroup_mode: mode
            .map(|word| CgroupMode::parse(&word).ok_or_else(|| invalid(&word)))
            .transpose()?
            .unwrap_or_default(),
        empty_namespaces: u32::try_from(empty_namespaces).unwrap_or(0),
        lazy_pages: said.has("lazy-pages"),
        network_lock: lock.map(|word| NetworkLock::parse(&word).ok_or_else(|| unknown(&word))).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_is_an_address_and_a_port() {
        assert_eq!(page_server("10.0.0.1:27").unwrap(), ("10.0.0.1".into(), 27));
        assert_eq!(page_server("::1:27").unwrap(), ("::1".into(), 27));
        for text in ["", "10.0.0.1", ":27", "a:b", "a:70000"] {
            assert!(page_server(text).is_err(), "{text:?}");
        }
    }
}
