//! Puts a program of several plugins into a folder that runtimes search, under the name of each.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What becomes of programs in the folder that are not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    Kept,
    Replaced,
}

/// A folder that could not be filled.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    #[error("cannot {operation} {}: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} are other plugins: `install --replace` puts ours in their place", .0.join(", "))]
    Taken(Vec<String>),
}

/// Copies the running program into the folder and links every name to it.
///
/// Each file is renamed into place: a plugin that runs meanwhile goes on with the old one, and no runtime finds half of one.
pub(super) fn install(folder: &Path, names: &[&str], others: Others) -> Result<(), InstallError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| InstallError::File { operation, path, source }
    };
    let own = std::env::current_exe().map_err(failed("find", Path::new("/proc/self/exe")))?;
    let name = own.file_name().unwrap_or_default().to_owned();
    fs::create_dir_all(folder).map_err(failed("make", folder))?;
    let is_foreign = |path: &Path| {
        path.symlink_metadata().is_ok() && fs::read_link(path).ok().is_none_or(|target| target != *name)
    };
    let taken: Vec<String> = names
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| others == Others::Kept && is_foreign(path))
        .map(|path| path.display().to_string())
        .collect();
    if !taken.is_empty() {
        return Err(InstallError::Taken(taken));
    }
    let program = folder.join(&name);
    let is_there =
        fs::canonicalize(&program).is_ok_and(|there| fs::canonicalize(&own).is_ok_and(|own| own == there));
    if !is_there {
        put(&program, |path| fs::copy(&own, path).map(drop)).map_err(failed("write", &program))?;
    }
    for plugin in names {
        let link = folder.join(plugin);
        put(&link, |path| symlink(&name, path)).map_err(failed("link", &link))?;
    }
    Ok(())
}

fn put(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let temporary = path.with_extension("cofferdam-new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    make(&temporary)?;
    fs::rename(&temporary, path)
}
