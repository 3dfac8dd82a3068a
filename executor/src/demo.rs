//! The image that is part of the program (`cofferdam run demo`), and the guest program that it and `--init` use.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use cofferdam_image::{Image, ImageBuilder, ImageRef, ImportOptions, Naming, Store};

use crate::disk::make_private;
use crate::error::Error;
use crate::images::failed;
use crate::release::Places;
use crate::spec::Source;

/// The name that means the embedded image. One of a registry's is meant by its full name.
pub(crate) const DEMO: &str = "demo";

/// The full name under which it is stored; no registry has this host name.
const REFERENCE: &str = concat!("cofferdam.invalid/demo:", env!("CARGO_PKG_VERSION"));

/// Whether the embedded image is meant.
pub(crate) fn is_demo(reference: &str) -> bool {
    reference == DEMO
}

/// The name under which the store has what is called so.
pub(crate) fn stored_name(name: &str) -> &str {
    if is_demo(name) { REFERENCE } else { name }
}

/// Has the embedded image in the store. Its name holds the version, so that another version of this program brings its own.
pub(crate) fn ensure(store: &Store) -> Result<Image, Error> {
    let reference = ImageRef::parse(REFERENCE).map_err(|error| Error::Worker(error.to_string()))?;
    if let Some(image) = store.find(REFERENCE).map_err(failed)?
        && store.require_complete(&image).is_ok()
    {
        return Ok(image);
    }
    let archive = image(&reference).build().map_err(failed)?;
    let options = ImportOptions { naming: Naming::As(reference), ..ImportOptions::default() };
    let images = store.import(&mut archive.as_slice(), &options, &|_| {}).map_err(failed)?;
    images.into_iter().next().ok_or_else(|| Error::Worker("the embedded image holds no image".to_owned()))
}

/// The guest program under the name of each part that it can play.
fn image(reference: &ImageRef) -> ImageBuilder {
    let base = ImageBuilder::new()
        .name(reference)
        .file("bin/guest", 0o755, cofferdam_guest::PROGRAM)
        .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/false\nguest:x:1000:1000::/:/bin/false\n")
        .file("etc/group", 0o644, "root:x:0:\nguest:x:1000:\n")
        .directory("root", 0o700)
        .directory("tmp", 0o1777)
        .command(&["demo"]);
    cofferdam_guest::APPLETS.iter().fold(base, |image, part| image.symlink(&format!("bin/{part}"), "guest"))
}

/// What the demo is told of the host, so that it can tell whether its own namespaces differ.
pub(crate) fn environment(source: &Source) -> Vec<String> {
    match source {
        Source::Image(reference) if is_demo(reference) => {
            vec![format!(
                "{}={}",
                cofferdam_guest::HOST_NAMESPACES_VARIABLE,
                cofferdam_guest::host_namespaces()
            )]
        }
        _ => Vec::new(),
    }
}

/// The guest program as a file of the host's, to be bound into tasks.
pub(crate) fn guest_program(places: &Places) -> Result<PathBuf, Error> {
    let directory = places.root.join("programs");
    make_private(&directory)?;
    let path = directory.join(format!("guest-{}", env!("CARGO_PKG_VERSION")));
    let is_ours = fs::metadata(&path).is_ok_and(|meta| meta.len() == cofferdam_guest::PROGRAM.len() as u64);
    if !is_ours {
        cofferdam_shim::durable::store_bytes(
            &path,
            cofferdam_guest::PROGRAM,
            cofferdam_shim::durable::Durability::Process,
        )?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .map_err(Error::io("make executable", &path))?;
    }
    Ok(path)
}
