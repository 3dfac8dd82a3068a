//! A plugin that is a program calls another plugin: the same environment but for the verb, the same input.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::program::Call;
use super::{Code, Delegate, PluginError};
use crate::call::said_error;
use crate::error::Verb;
use crate::result::AddResult;

/// How long a program that is being replaced (`ETXTBSY`) is tried again.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(50);

impl Delegate for Call<'_> {
    /// The program of that name on `CNI_PATH`. One that is this very file, or that is not there but linked into this
    /// program, is called in process.
    fn call(&self, kind: &str, verb: Verb) -> Result<AddResult, PluginError> {
        if kind.is_empty() || kind.contains('/') {
            return Err(PluginError::config(format!("{kind:?} is no name of a plugin")));
        }
        let program = find(&self.environment.path, kind);
        let own = self.plugins.iter().find(|plugin| plugin.kind() == kind);
        match (program, own) {
            (Some(program), Some(own)) if is_this_program(&program) => self.handle(*own, verb),
            (Some(program), _) => self.execute(&program, kind, verb),
            (None, Some(own)) => self.handle(*own, verb),
            (None, None) => Err(PluginError::config(format!(
                "there is no plugin {kind:?} on CNI_PATH ({})",
                self.environment
                    .path
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect::<Vec<_>>()
                    .join(":")
            ))),
        }
    }
}

fn find(path: &[PathBuf], kind: &str) -> Option<PathBuf> {
    let candidates = path.iter().filter(|folder| folder.is_absolute()).map(|folder| folder.join(kind));
    candidates.into_iter().find(|candidate| {
        std::fs::metadata(candidate).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
    })
}

fn is_this_program(program: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    file(program).is_some_and(|found| Some(found) == file(Path::new("/proc/self/exe")))
}

impl Call<'_> {
    /// In our process group, so that whoever ends us ends it; its standard error is ours.
    fn execute(&self, program: &Path, kind: &str, verb: Verb) -> Result<AddResult, PluginError> {
        let failed = |error: std::io::Error| {
            PluginError::new(Code::IO, format!("cannot run {}: {error}", program.display()))
        };
        let mut child = self.spawn(program, verb).map_err(failed)?;
        let (stdin, input) = (child.stdin.take(), self.config.to_text());
        let output = std::thread::scope(|scope| {
            // A plugin may answer before it has read everything, or not read at all.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        });
        let output = output.map_err(failed)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if let Some(said) = said_error(&stdout) {
            return Err(PluginError {
                code: Code(said.code),
                message: format!("{kind}: {}", said.msg),
                details: said.details,
            });
        }
        if !output.status.success() {
            return Err(PluginError::new(Code(999), format!("{kind} ended with {}", output.status)));
        }
        if verb != Verb::Add {
            return Ok(AddResult::default());
        }
        AddResult::parse(&stdout, self.version)
            .map_err(|error| PluginError::new(Code::DECODE, format!("{kind}: {error}")))
    }

    fn spawn(&self, program: &Path, verb: Verb) -> std::io::Result<std::process::Child> {
        let busy_until = Instant::now() + BUSY_LIMIT;
        loop {
            let spawned = Command::new(program)
                .env("CNI_COMMAND", verb.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            match spawned {
                Err(error)
                    if error.kind() == std::io::ErrorKind::ExecutableFileBusy
                        && Instant::now() < busy_until =>
                {
                    std::thread::sleep(BUSY_PAUSE);
                }
                spawned => return spawned,
            }
        }
    }
}
