//! spec: an example configuration to begin with.

use std::io::ErrorKind;
use std::path::PathBuf;

use cofferdam_runtime::example;

use super::Call;
use crate::failed::Failed;

pub(crate) fn spec(call: &Call<'_>) -> Result<i32, Failed> {
    let name = call.said.path("file").unwrap_or_else(|| PathBuf::from("config.json"));
    let path = call.said.path("bundle").unwrap_or_else(|| PathBuf::from(".")).join(&name);
    let text = if call.said.has("rootless") { example::rootless()? } else { example::CONFIG.to_owned() };
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes())).map_err(|error| {
        match error.kind() {
            ErrorKind::AlreadyExists => {
                Failed::new(format!("File {} exists. Remove it first", name.display()))
            }
            _ => Failed::new(format!("{}: {error}", path.display())),
        }
    })?;
    Ok(0)
}
