//! Who does the calls of a plugin: the one linked into this program, or a program on the plugin path.

use std::path::{Path, PathBuf};

use crate::caller::{Caller, Prefer};
use crate::config::PluginConfig;
use crate::error::Error;
use crate::name::NetworkName;
use crate::object::Object;
use crate::plugin::Plugin;
use crate::record::{Implementation, Record};

/// Who does a call.
#[derive(Clone)]
pub(crate) enum Resolved {
    Builtin(&'static dyn Plugin),
    External(PathBuf),
}

impl Resolved {
    pub(crate) fn implementation(&self) -> Implementation {
        match self {
            Self::Builtin(_) => Implementation::Builtin,
            Self::External(path) => Implementation::Path(path.clone()),
        }
    }
}

impl Caller {
    /// Decides who does the calls of a plugin.
    pub(crate) fn resolve(
        &self,
        kind: &str,
        config: &Object,
        network: &NetworkName,
    ) -> Result<Resolved, Error> {
        let builtin = self.options.builtins.iter().copied().find(|plugin| plugin.kind() == kind);
        let external = || find_program(&self.options.plugin_path, kind);
        let chosen = match (self.options.prefer, builtin) {
            (Prefer::Builtin, Some(builtin)) => Some(Resolved::Builtin(builtin)),
            (Prefer::Auto, Some(builtin)) if builtin.supports(config).is_ok() => {
                Some(Resolved::Builtin(builtin))
            }
            _ => {
                let found = external();
                if found.program.is_some() && !found.note.is_empty() {
                    self.warn(&format!("plugin {kind}{}", found.note));
                }
                found.program.map(Resolved::External)
            }
        };
        // Better our own plugin with its own error than no plugin.
        chosen.or_else(|| builtin.map(Resolved::Builtin)).ok_or_else(|| Error::PluginMissing {
            plugin: kind.into(),
            network: network.clone(),
            searched: self.options.plugin_path.clone(),
            note: external().note,
        })
    }

    /// Tells the observer of something that does not stop us.
    pub(crate) fn warn(&self, text: &str) {
        if let Some(observer) = &self.options.observer {
            observer.warning(text);
        }
    }

    /// Decides who does the calls of a plugin whose ADD is on record: whoever did that, if it is still there.
    pub(crate) fn resolve_again(
        &self,
        record: &Record,
        at: usize,
        plugin: &PluginConfig,
        network: &NetworkName,
    ) -> Result<Resolved, Error> {
        match record.plugins().get(at) {
            // libcni executes programs and nothing else.
            None if record.is_libcnis() && self.options.prefer == Prefer::Auto => {
                if let Some(program) = find_program(&self.options.plugin_path, &plugin.kind).program {
                    return Ok(Resolved::External(program));
                }
            }
            Some(Implementation::Builtin) => {
                let builtin =
                    self.options.builtins.iter().copied().find(|builtin| builtin.kind() == plugin.kind);
                if let Some(builtin) = builtin {
                    return Ok(Resolved::Builtin(builtin));
                }
            }
            Some(Implementation::Path(path)) if is_program(path) => {
                return Ok(Resolved::External(path.clone()));
            }
            _ => {}
        }
        self.resolve(&plugin.kind, &plugin.object, network)
    }
}

struct Found {
    program: Option<PathBuf>,
    note: String,
}

/// The first executable file of that name; what is there but not executable is noted.
fn find_program(path: &[PathBuf], kind: &str) -> Found {
    let mut note = String::new();
    for candidate in
        path.iter().filter(|directory| directory.is_absolute()).map(|directory| directory.join(kind))
    {
        if is_program(&candidate) {
            return Found { program: Some(candidate), note };
        }
        if candidate.exists() {
            note = format!("; {} is there but is not an executable file", candidate.display());
        }
    }
    Found { program: None, note }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
