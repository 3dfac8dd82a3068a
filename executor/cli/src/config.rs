//! The configuration file: what the command line's options are where they are not given.

use std::path::Path;

use cofferdam_executor::{PullConfig, StoreOptions};
use serde::Deserialize;

use crate::failure::Failure;

/// Where it is if nothing else is said.
const DEFAULT_PATH: &str = "/etc/cofferdam/config.toml";

/// The file, table by table.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct ConfigFile {
    /// How images are pulled.
    pub(crate) pull: PullConfig,
    /// How the image store is operated.
    pub(crate) store: StoreOptions,
}

impl ConfigFile {
    /// Reads the file that was named, which must exist, or the usual one, which need not.
    pub(crate) fn load(named: Option<&Path>) -> Result<ConfigFile, Failure> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(ConfigFile::default());
            }
            Err(error) => return Err(Failure::plain(format!("configuration {}: {error}", path.display()))),
        };
        toml::from_str(&text)
            .map_err(|error| Failure::plain(format!("configuration {}: {error}", path.display())))
    }
}
