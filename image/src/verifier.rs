//! Verifiers: programs that are asked whether an image may come in, before any of its layers is fetched.
//!
//! The interface is that of containerd's image verifiers: `-name`, `-digest` and `-stdin-media-type` as arguments, a
//! descriptor in JSON on standard input; exit code 0 means yes, standard output says why. A program that cannot be started,
//! takes too long or ends in any other way has not said yes.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cofferdam_registry::{ImageRef, Resolved};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::event::Cancel;

/// How long a verifier may take if nothing else is said; it may be asking a service.
pub const VERIFIER_TIMEOUT: Duration = Duration::from_secs(30);
/// The most of a verifier's output that is read, in bytes.
const OUTPUT_LIMIT_BYTES: usize = 16 * 1024;
/// The most of it that is shown, in characters.
const SHOWN_CHARS: usize = 300;
/// How often a waiting verifier is looked at for a caller who has cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// A program that is asked about every image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    /// The program.
    pub program: PathBuf,
    /// How long it may take.
    pub timeout: Duration,
}

impl Verifier {
    /// A verifier with the usual time.
    pub fn new(program: impl Into<PathBuf>) -> Verifier {
        Verifier { program: program.into(), timeout: VERIFIER_TIMEOUT }
    }

    /// Asks the program; an error is the reason against the image.
    pub(crate) fn ask(&self, reference: &ImageRef, image: &Resolved, cancel: &Cancel) -> Result<(), String> {
        let failed = |error: io::Error| format!("cannot run it: {error}");
        let mut child = self.start(reference, image).map_err(failed)?;
        let answer = self.wait(&mut child, cancel);
        // Whatever it still does, it does no more; a child that has ended takes no harm.
        let _ = child.kill();
        let status = child.wait().map_err(failed)?;
        let (output, ended) = answer.map_err(failed)?;
        match ended {
            Ended::Itself => verdict(status, &output),
            Ended::Late => Err(format!("killed after {:?}", self.timeout)),
            Ended::Cancelled => Err("cancelled".to_owned()),
        }
    }

    fn start(&self, reference: &ImageRef, image: &Resolved) -> io::Result<Child> {
        let descriptor = serde_json::json!({
            "mediaType": image.target_type,
            "digest": image.target.to_string(),
            "size": image.target_size,
        });
        // A file in memory, not a pipe: a program that does not read its input breaks nothing.
        let mut input = File::from(rustix::fs::memfd_create("descriptor", MemfdFlags::CLOEXEC)?);
        input.write_all(descriptor.to_string().as_bytes())?;
        input.rewind()?;
        Command::new(&self.program)
            .args(["-name", &reference.to_string(), "-digest", &image.target.to_string()])
            .args(["-stdin-media-type", "application/vnd.oci.descriptor.v1+json"])
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    }

    fn wait(&self, child: &mut Child, cancel: &Cancel) -> io::Result<(Vec<u8>, Ended)> {
        let deadline = Instant::now() + self.timeout;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("it has no process id"))?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let mut stdout = child.stdout.take();
        let mut output = Vec::new();
        loop {
            if cancel.is_cancelled() {
                return Ok((output, Ended::Cancelled));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok((output, Ended::Late));
            }
            let (has_ended, has_output) = look(&process, stdout.as_ref(), left.min(CANCEL_INTERVAL))?;
            if let (true, Some(pipe)) = (has_output, stdout.as_mut()) {
                let mut piece = [0; 4096];
                let count = pipe.read(&mut piece)?;
                output.extend_from_slice(&piece[..count]);
                if count == 0 || output.len() >= OUTPUT_LIMIT_BYTES {
                    stdout = None;
                }
            } else if has_ended {
                // What its own children may still write is not its answer.
                return Ok((output, Ended::Itself));
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Itself,
    Late,
    Cancelled,
}

/// Whether the process has ended, and whether there is output to read.
fn look(process: &impl AsFd, output: Option<&impl AsFd>, limit: Duration) -> io::Result<(bool, bool)> {
    let mut waiting = vec![PollFd::new(process, PollFlags::IN)];
    waiting.extend(output.map(|output| PollFd::new(output, PollFlags::IN)));
    let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()).max(1) };
    match poll(&mut waiting, Some(&limit)) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok((false, false)),
        Err(error) => return Err(error.into()),
    }
    let ready = |at: usize| waiting.get(at).is_some_and(|one| !one.revents().is_empty());
    Ok((ready(0), ready(1)))
}

fn verdict(status: ExitStatus, output: &[u8]) -> Result<(), String> {
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(output);
    let said: String = text.trim().chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect();
    Err(if said.is_empty() { format!("{status}") } else { format!("{status}: {said}") })
}
