//! The supervisor on plain processes instead of containers: no privileges needed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_shim::engine::{Engine, Process, ProcessStdio};
use cofferdam_shim::frame::{self, Decoder, Frame, FrameKind};
use cofferdam_shim::log::{LogLimits, Record};
use cofferdam_shim::policy::{Fact, Order, Policy};
use cofferdam_shim::protocol::{AttachStreams, Failure, KillScope, Reply, Request, StepTime};
use cofferdam_shim::{Exit, Launch, RootfsSource, supervise};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A "container" that is a shell waiting at a FIFO before it runs a script.
struct Shell {
    script: &'static str,
    gate: PathBuf,
    pid: Option<Pid>,
}

impl Engine for Shell {
    #[expect(clippy::zombie_processes, reason = "the supervisor is the one that reaps")]
    fn create(&mut self, stdio: ProcessStdio) -> Result<Process, Failure> {
        let ProcessStdio::Pipes { stdin, stdout, stderr } = stdio else {
            panic!("no terminal was asked for")
        };
        let child = Command::new("sh")
            .args(["-c", "read _ < \"$0\"; eval \"$1\""])
            .arg(&self.gate)
            .arg(self.script)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        self.pid = Some(pid);
        let pidfd: OwnedFd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        Ok(Process { pid: pid.as_raw_nonzero().get(), pidfd, console: None })
    }

    fn start(&mut self) -> Result<Vec<StepTime>, Failure> {
        std::fs::write(&self.gate, "\n").unwrap();
        Ok(Vec::new())
    }

    fn exec(&mut self, _: &oci_spec::runtime::Process, _: ProcessStdio) -> Result<Process, Failure> {
        unreachable!("nobody asks for it here")
    }

    fn kill(&mut self, signal: i32, _: KillScope) -> Result<(), Failure> {
        let signal = Signal::from_named_raw(signal).unwrap();
        let _ = kill_process(self.pid.unwrap(), signal);
        Ok(())
    }

    fn oom_killed(&mut self) -> bool {
        false
    }

    fn delete(&mut self) -> Result<(), Failure> {
        let _ = kill_process(self.pid.unwrap(), Signal::KILL);
        Ok(())
    }
}

/// Writes facts down; ends the task when it ends.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<Fact>>>);

impl Policy for Notes {
    fn decide(&mut self, fact: Fact) -> Vec<Order> {
        let orders = match &fact {
            Fact::Exited { .. } | Fact::StartFailed(_) | Fact::LauncherGone => vec![Order::Finish],
            Fact::StopAsked { signal, grace } => {
                vec![Order::Signal(*signal, KillScope::Init), Order::ArmGrace(*grace)]
            }
            Fact::GraceOver => vec![Order::Signal(9, KillScope::All)],
            _ => Vec::new(),
        };
        self.0.lock().unwrap().push(fact);
        orders
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!("status")
    }

    fn is_over(&self) -> bool {
        false
    }

    fn release(&mut self) {}
}

struct Scene {
    directory: tempfile::TempDir,
    launcher: Option<UnixStream>,
    decoder: Decoder,
    notes: Notes,
    supervisor: std::thread::JoinHandle<()>,
}

impl Scene {
    fn begin(script: &'static str) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let gate = directory.path().join("gate");
        assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let launch = launch(directory.path());
        let notes = Notes::default();
        let mut policy = notes.clone();
        let supervisor = std::thread::spawn(move || {
            let mut engine = Shell { script, gate, pid: None };
            supervise(&launch, theirs, listener, &mut engine, &mut policy).unwrap();
        });
        let mut scene =
            Scene { directory, launcher: Some(ours), decoder: Decoder::default(), notes, supervisor };
        assert!(matches!(scene.reply(), Reply::Created { .. }));
        scene
    }

    fn say(&mut self, kind: FrameKind, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::encode(kind, payload, &mut bytes);
        self.launcher.as_mut().unwrap().write_all(&bytes).unwrap();
    }

    fn ask(&mut self, request: &Request) {
        self.say(FrameKind::Request, &serde_json::to_vec(request).unwrap());
    }

    fn start(&mut self, attach: Option<AttachStreams>) {
        self.ask(&Request::Start { attach });
        assert!(matches!(self.reply(), Reply::Started { .. }));
    }

    fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 4096];
            match self.launcher.as_mut().unwrap().read(&mut bytes).unwrap() {
                0 => return None,
                length => self.decoder.feed(&bytes[..length]),
            }
        }
    }

    fn reply(&mut self) -> Reply {
        serde_json::from_slice(&self.next().unwrap().payload).unwrap()
    }

    /// Everything that comes until the supervisor closes, by kind.
    fn rest(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(frame) = self.next() {
            match frame.kind {
                FrameKind::Stdout => out.extend(frame.payload),
                FrameKind::Stderr => err.extend(frame.payload),
                _ => {}
            }
        }
        (out, err)
    }

    fn end(self) -> (Vec<Fact>, Vec<Record>) {
        self.supervisor.join().unwrap();
        let log = std::fs::read(self.directory.path().join("log")).unwrap();
        let records = log.split(|byte| *byte == b'\n').filter_map(Record::decode).collect();
        (self.notes.0.lock().unwrap().clone(), records)
    }
}

fn launch(directory: &Path) -> Launch {
    Launch {
        version: cofferdam_shim::PROTOCOL_VERSION,
        container: "test".to_owned(),
        runtime_root: directory.to_owned(),
        bundle: directory.to_owned(),
        rootfs: RootfsSource::Host,
        terminal: false,
        stdin: true,
        log_directory: directory.to_owned(),
        log_limits: LogLimits::default(),
        stdio_owner: (0, 0),
        policy: serde_json::Value::Null,
    }
}

const ALL: Option<AttachStreams> = Some(AttachStreams { stdin: true, output: true, size: None });

#[test]
fn output_is_heard_from_the_first_byte_and_logged() {
    let mut scene = Scene::begin("echo out; echo err >&2; exit 3");
    scene.start(ALL);
    assert_eq!(scene.rest(), (b"out\n".to_vec(), b"err\n".to_vec()));
    let (facts, records) = scene.end();
    assert_eq!(facts.last(), Some(&Fact::Exited { exit: Exit::Code(3), out_of_memory: false }));
    let mut lines: Vec<_> = records.iter().map(|record| record.payload.as_slice()).collect();
    lines.sort_unstable();
    assert_eq!(lines, [&b"err"[..], b"out"]);
}

#[test]
fn input_reaches_the_process_and_ends() {
    let mut scene = Scene::begin("cat");
    scene.start(ALL);
    let sent = vec![b'x'; 300_000];
    scene.say(FrameKind::Stdin, &sent);
    scene.say(FrameKind::StdinEnd, &[]);
    assert_eq!(scene.rest().0.len(), sent.len());
    scene.end();
}

#[test]
fn a_launcher_that_goes_away_before_the_start_takes_the_launch_along() {
    let mut scene = Scene::begin("echo never");
    scene.launcher = None;
    let (facts, records) = scene.end();
    assert_eq!(facts, [Fact::LauncherGone]);
    assert!(records.is_empty());
}

#[test]
fn a_launcher_that_goes_away_later_is_not_missed() {
    let mut scene = Scene::begin("sleep 0.2; exit 5");
    scene.start(None);
    scene.launcher = None;
    let (facts, _) = scene.end();
    assert_eq!(facts.last(), Some(&Fact::Exited { exit: Exit::Code(5), out_of_memory: false }));
}

#[test]
fn a_stop_that_is_not_heard_becomes_a_kill_after_its_grace() {
    let mut scene = Scene::begin("trap '' TERM; while :; do sleep 0.01; done");
    scene.start(ALL);
    // The trap must be there before the signal.
    std::thread::sleep(Duration::from_millis(200));
    scene.ask(&Request::Stop { signal: 15, grace_ms: 50 });
    scene.rest();
    let (facts, _) = scene.end();
    assert!(facts.contains(&Fact::GraceOver));
    assert_eq!(facts.last(), Some(&Fact::Exited { exit: Exit::Signal(9), out_of_memory: false }));
}

#[test]
fn requests_that_make_no_sense_are_refused_and_harm_nobody() {
    let mut scene = Scene::begin("sleep 0.3");
    scene.start(None);
    scene.say(FrameKind::Request, b"{\"nonsense\":1}");
    assert!(matches!(scene.reply(), Reply::Failed(_)));
    scene.ask(&Request::Start { attach: None });
    assert!(matches!(scene.reply(), Reply::Failed(_)));
    scene.ask(&Request::Status);
    assert!(matches!(scene.reply(), Reply::Status(_)));
    scene.rest();
    scene.end();
}
