//! A manager of our own on a private socket: it records every call, and answers as it is told to. Its messages are zvariant's,
//! the encoder of the zbus project, so that they are not our own ones read back.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde::Serialize;
use zvariant::serialized::{Context, Data};
use zvariant::{DynamicType, LE, ObjectPath, OwnedValue, Signature, Value, to_bytes};

/// What it does when it is asked for a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It moves the process, answers, and says that the job is done.
    Works,
    /// Its job fails.
    JobFails,
    /// It answers by an error.
    Refuses,
    /// It closes the connection.
    HangsUp,
    /// It sends what is no message.
    SaysNonsense,
    /// It never answers.
    IsSilent,
    /// A failed unit of the name is there until it is forgotten.
    HasFailedUnit,
}

/// A call that came in.
#[derive(Debug)]
pub(crate) struct Call {
    member: String,
    /// The texts before the properties.
    pub(crate) words: Vec<String>,
    /// The properties, as zvariant prints their values.
    pub(crate) properties: BTreeMap<String, String>,
}

/// The manager, which lives as long as the test's process.
pub(crate) struct Fake {
    pub(crate) socket: PathBuf,
    control_group: String,
    calls: Receiver<Call>,
}

type Property = (String, OwnedValue);
type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Value<'a>)>);

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const JOB: &str = "/org/freedesktop/systemd1/job/1";

impl Fake {
    pub(crate) fn listen(files: &Path, manner: Manner) -> Self {
        let socket = files.join(format!("{manner:?}.sock"));
        let control_group = format!("/cofferdam-suite-{}-{manner:?}", std::process::id());
        let listener = UnixListener::bind(&socket).unwrap();
        let (send, calls) = channel();
        let prefix = control_group.clone();
        std::thread::spawn(move || {
            let failed = Arc::new(AtomicBool::new(manner == Manner::HasFailedUnit));
            for stream in listener.incoming().map_while(Result::ok) {
                let mut connection = Connection { stream, serial: 0, manner, prefix: prefix.clone() };
                let (send, failed) = (send.clone(), failed.clone());
                // A connection that ends is no failure: clients close them.
                std::thread::spawn(move || connection.serve(&send, &failed));
            }
        });
        Self { socket, control_group, calls }
    }

    /// The next call of this method; others are passed over.
    pub(crate) fn take(&self, member: &str) -> Call {
        loop {
            let call =
                self.calls.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| panic!("no {member}"));
            if call.member == member {
                return call;
            }
        }
    }

    /// Slices' folders stay: a real manager removes its own.
    pub(crate) fn remove_folders(&self) {
        let first = Path::new("/sys/fs/cgroup");
        let roots = std::fs::read_dir(first).unwrap().flatten().map(|entry| entry.path());
        for root in roots.chain([first.to_owned()]) {
            crate::manager::remove(&root.join(&self.control_group[1..]));
        }
    }
}

struct Connection {
    stream: UnixStream,
    serial: u32,
    manner: Manner,
    prefix: String,
}

impl Connection {
    fn serve(&mut self, calls: &Sender<Call>, failed: &AtomicBool) -> Option<()> {
        // A bus would be greeted; a service that is spoken to straight knows no such object.
        self.authenticate()?;
        loop {
            let (header, body) = self.receive()?;
            let serial = header.5;
            let field = |code: u8| {
                let found = header.6.iter().find(|field| field.0 == code);
                found.and_then(|field| String::try_from(field.1.try_clone().ok()?).ok()).unwrap_or_default()
            };
            let member = field(3);
            let call = |words: Vec<String>, properties: Vec<Property>| {
                let properties =
                    properties.into_iter().map(|(name, value)| (name, Value::from(value).to_string()));
                drop(calls.send(Call { member: member.clone(), words, properties: properties.collect() }));
            };
            match member.as_str() {
                "Hello" => self.error(serial, "org.freedesktop.DBus.Error.UnknownObject", "no bus")?,
                "AddMatch" | "Subscribe" => self.answer(serial, None::<&str>)?,
                "Get" => {
                    let (_, name): (String, String) = body.deserialize().unwrap().0;
                    let text = if name == "Version" { "252 (fake)".to_owned() } else { self.prefix.clone() };
                    self.answer(serial, Some(&Value::from(text)))?;
                }
                "StartTransientUnit" => {
                    type Arguments = (String, String, Vec<Property>, Vec<(String, Vec<Property>)>);
                    let (unit, mode, properties, others): Arguments = body.deserialize().unwrap().0;
                    assert!(others.is_empty());
                    call(vec![unit, mode], properties);
                    self.start(serial, failed.load(Relaxed))?;
                }
                "SetUnitProperties" => {
                    let (unit, runtime, properties): (String, bool, Vec<Property>) =
                        body.deserialize().unwrap().0;
                    assert!(runtime, "until the next boot");
                    call(vec![unit], properties);
                    self.answer(serial, None::<&str>)?;
                }
                "StopUnit" => {
                    let (unit, mode): (String, String) = body.deserialize().unwrap().0;
                    call(vec![unit, mode], Vec::new());
                    // The signal first: the client must not lose what comes before the answer.
                    self.job_removed("done")?;
                    self.answer(serial, Some(&ObjectPath::try_from(JOB).unwrap()))?;
                }
                "ResetFailedUnit" => {
                    let (unit,): (String,) = body.deserialize().unwrap().0;
                    call(vec![unit], Vec::new());
                    failed.store(false, Relaxed);
                    self.answer(serial, None::<&str>)?;
                }
                other => panic!("nobody should call {other}"),
            }
        }
    }

    fn start(&mut self, serial: u32, failed: bool) -> Option<()> {
        match self.manner {
            Manner::Works | Manner::JobFails | Manner::HasFailedUnit if !failed => {
                self.answer(serial, Some(&ObjectPath::try_from(JOB).unwrap()))?;
                self.job_removed(if self.manner == Manner::JobFails { "failed" } else { "done" })
            }
            Manner::HasFailedUnit => self.error(serial, "org.freedesktop.systemd1.UnitExists", "it is there"),
            Manner::Refuses => self.error(serial, "org.freedesktop.DBus.Error.AccessDenied", "no such luck"),
            Manner::SaysNonsense => self.stream.write_all(&[b'?'; 64]).ok(),
            Manner::IsSilent => Some(()),
            _ => None,
        }
    }

    fn authenticate(&mut self) -> Option<()> {
        let mut lines = Vec::new();
        while !lines.ends_with(b"BEGIN\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).ok()?;
            lines.extend(byte);
        }
        assert_eq!(lines, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
        self.stream.write_all(b"DATA\r\nOK 0123456789abcdef0123456789abcdef\r\n").ok()
    }

    fn receive(&mut self) -> Option<(Header<'static>, Data<'static, 'static>)> {
        let mut bytes = vec![0; 16];
        self.stream.read_exact(&mut bytes).ok()?;
        let word =
            |at: usize| usize::try_from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).unwrap();
        let header = (16 + word(12)).next_multiple_of(8);
        let whole = header + word(4);
        bytes.resize(whole, 0);
        self.stream.read_exact(&mut bytes[16..]).ok()?;
        let context = Context::new_dbus(LE, 0);
        let read = Data::new(bytes[..header].to_vec(), context);
        let (fields, _): (Header<'_>, usize) = read.deserialize().unwrap();
        let owned = fields.6.into_iter().map(|(code, value)| (code, value.try_into_owned().unwrap().into()));
        let fields = (fields.0, fields.1, fields.2, fields.3, fields.4, fields.5, owned.collect());
        Some((fields, Data::new(bytes[header..].to_vec(), context)))
    }

    fn answer<T: Serialize + DynamicType + ?Sized>(&mut self, to: u32, body: Option<&T>) -> Option<()> {
        self.send(2, vec![(5, Value::from(to))], body)
    }

    fn error(&mut self, to: u32, name: &'static str, words: &str) -> Option<()> {
        self.send(3, vec![(5, Value::from(to)), (4, Value::from(name))], Some(words))
    }

    fn job_removed(&mut self, result: &str) -> Option<()> {
        let path = ObjectPath::try_from("/org/freedesktop/systemd1").unwrap();
        let fields = vec![(1, Value::from(path)), (2, Value::from(MANAGER)), (3, Value::from("JobRemoved"))];
        let job = ObjectPath::try_from(JOB).unwrap();
        self.send(4, fields, Some(&(1_u32, job, "libpod-c1.scope", result)))
    }

    fn send<T: Serialize + DynamicType + ?Sized>(
        &mut self,
        kind: u8,
        mut fields: Vec<(u8, Value<'_>)>,
        body: Option<&T>,
    ) -> Option<()> {
        self.serial += 1;
        let context = Context::new_dbus(LE, 0);
        let body = body.map(|body| {
            fields
                .push((8, Value::from(Signature::try_from(body.signature().to_string().as_str()).unwrap())));
            to_bytes(context, body).unwrap().bytes().to_vec()
        });
        let body = body.unwrap_or_default();
        let length = u32::try_from(body.len()).unwrap();
        let header: Header<'_> = (b'l', kind, 0, 1, length, self.serial, fields);
        let mut bytes = to_bytes(context, &header).unwrap().bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(body);
        self.stream.write_all(&bytes).ok()
    }
}
