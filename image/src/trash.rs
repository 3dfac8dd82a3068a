//! Deleting what was discarded: on a thread that sees nothing of the host but the trash.
//!
//! What lies there was made from archives of strangers, was in the hands of tasks, or is half of something. Names in it are
//! never followed; and if one were, it would lead nowhere (see [`cofferdam_linux::confined`]).

use std::fs;
use std::path::Path;
use std::thread;

use cofferdam_linux::confined;
use cofferdam_linux::removal::remove_tree;
use rustix::io::Errno;

use crate::error::Error;

/// The thread's name.
const THREAD: &str = "cofferdam-trash";

/// Deletes everything in the folder `trash`. What resists keeps the rest from nothing; the first failure is returned.
pub(crate) fn empty(trash: &Path) -> Result<(), Error> {
    let done = thread::scope(|scope| {
        // Relative names: the thread's working directory is the folder, whether it could be made its root or not.
        confined::spawn(scope, THREAD, trash, move |_root| delete(trash)).map(thread::ScopedJoinHandle::join)
    });
    match done.map_err(Error::io("start a thread for", trash))? {
        Ok(deleted) => deleted.map_err(Error::io("confine the thread for", trash))?,
        Err(_) => Err(Error::io("delete what is in", trash)(std::io::Error::other("the thread panicked"))),
    }
}

fn delete(trash: &Path) -> Result<(), Error> {
    let mut failed = None;
    for entry in fs::read_dir(".").map_err(Error::io("read", trash))?.flatten() {
        let name = entry.file_name();
        match remove_tree(Path::new(&name)) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => failed = failed.or(Some(Error::io("delete", &trash.join(&name))(errno))),
        }
    }
    failed.map_or(Ok(()), Err)
}
