//! seccomp in force in a container: every action asked for by a probe, every ABI, and a process that supervises the calls.
//! runtime-spec config-linux.md, "Seccomp".

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cofferdam_linux::seccomp::{Answer, answer, receive};
use cofferdam_runtime::{ContainerId, Create, Exec, Options, Runtime, Spec, Stdio, foreground};
use rustix::io::Errno;
use serde_json::{Value, json};

/// Longer than a supervisor is waited for, and short enough to be called no hang.
const NO_HANG: Duration = Duration::from_secs(15);

struct Place {
    directory: tempfile::TempDir,
    bundle: PathBuf,
    runtime: Runtime,
}

/// A throw-away state root and bundle; `None` without the privileges.
fn place() -> Option<Place> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bundle");
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    let program = bundle.join("rootfs/guest");
    std::fs::write(&program, cofferdam_guest::PROGRAM).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = Runtime::open(&directory.path().join("state"), Options::default()).unwrap();
    Some(Place { bundle, runtime, directory })
}

/// What a process came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    status: foreground::Ended,
    stdout: String,
}

impl Place {
    fn create(&self, name: &str, arguments: &[&str], seccomp: &Value) -> Create {
        let mut config: Value = serde_json::from_str(cofferdam_runtime::example::CONFIG).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(arguments);
        config["linux"]["cgroupsPath"] = json!(format!("/cofferdam-seccomp-{}-{name}", std::process::id()));
        config["linux"]["seccomp"] = seccomp.clone();
        config["annotations"] = json!({ "note": "for the supervisor" });
        let spec: Spec = serde_json::from_value(config).unwrap();
        let id = ContainerId::parse(name).unwrap();
        let mut create = Create::new(id, self.bundle.clone(), spec);
        create.start = true;
        create
    }

    /// Runs to the end.
    fn run(&self, mut create: Create) -> Result<Outcome, cofferdam_runtime::Error> {
        let (stdio, output) = captured();
        create.stdio = stdio;
        let id = create.id.clone();
        let created = self.runtime.create(create)?;
        let status = foreground::reap(created.pidfd.as_fd()).unwrap();
        self.runtime.delete(&id, true).unwrap();
        Ok(Outcome { status, stdout: text(output) })
    }
}

fn captured() -> (Stdio, File) {
    let output = tempfile::tempfile().unwrap();
    let copy = || OwnedFd::from(output.try_clone().unwrap());
    let stdin = File::open("/dev/null").unwrap().into();
    (Stdio::Fds { stdin, stdout: copy(), stderr: copy() }, output)
}

fn text(mut output: File) -> String {
    let mut text = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut text).unwrap();
    text
}

fn profile(rule: Value) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })
}

const ALIVE: foreground::Ended = foreground::Ended::Exited(0);
const KILLED: foreground::Ended = foreground::Ended::Signalled(31);

#[test]
fn every_action_does_what_the_specification_says() {
    let Some(place) = place() else { return };
    let parent = ["/guest", "parent", "native"];
    let in_thread = ["/guest", "parent", "native", "thread"];
    for (name, action, errno, arguments, expected) in [
        ("allow", "SCMP_ACT_ALLOW", None, &parent[..], Ok("parent 0\nalive\n")),
        ("log", "SCMP_ACT_LOG", None, &parent, Ok("parent 0\nalive\n")),
        ("errno", "SCMP_ACT_ERRNO", None, &parent, Ok("errno 1\nalive\n")),
        ("errno-77", "SCMP_ACT_ERRNO", Some(77), &parent, Ok("errno 77\nalive\n")),
        // Without a tracer there is nobody to ask: seccomp(2), SECCOMP_RET_TRACE.
        ("trace", "SCMP_ACT_TRACE", Some(9), &parent, Ok("errno 38\nalive\n")),
        ("trap", "SCMP_ACT_TRAP", None, &parent, Err(KILLED)),
        ("kill", "SCMP_ACT_KILL", None, &in_thread, Ok("thread killed\nalive\n")),
        ("kill-thread", "SCMP_ACT_KILL_THREAD", None, &in_thread, Ok("thread killed\nalive\n")),
        ("kill-process", "SCMP_ACT_KILL_PROCESS", None, &in_thread, Err(KILLED)),
    ] {
        let mut rule = json!({ "names": ["getppid"], "action": action });
        if let Some(errno) = errno {
            rule["errnoRet"] = json!(errno);
        }
        let outcome = place.run(place.create(name, arguments, &profile(rule))).unwrap();
        match expected {
            Ok(stdout) => assert_eq!((outcome.status, outcome.stdout.as_str()), (ALIVE, stdout), "{name}"),
            Err(status) => assert_eq!((outcome.status, outcome.stdout.as_str()), (status, ""), "{name}"),
        }
    }
}

/// SC-02: who reaches the kernel through another ABI is killed, unless the profile speaks of that ABI too.
#[test]
fn calls_through_other_abis_are_refused_unless_they_are_listed() {
    let Some(place) = place() else { return };
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: needs x86-64, whose other ABIs these are");
        return;
    }
    let native = json!(["SCMP_ARCH_X86_64"]);
    let both = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    let all = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    let refused = "errno 77\nalive\n";
    // This kernel may have been built without them; then it is not the filter that answers an allowed call.
    let has = |abi: &str| {
        let outcome = place.run(place.create("has", &["/guest", "parent", abi], &Value::Null)).unwrap();
        outcome.stdout.starts_with("parent")
    };
    let (has_compat, has_x32) = (has("compat"), has("x32"));
    for (architectures, abi, there, expected) in [
        (&Value::Null, "native", true, Ok(refused)),
        (&Value::Null, "compat", true, Err(KILLED)),
        (&Value::Null, "x32", true, Err(KILLED)),
        (&native, "compat", true, Err(KILLED)),
        (&native, "x32", true, Err(KILLED)),
        (&both, "compat", has_compat, Ok(refused)),
        (&both, "x32", true, Err(KILLED)),
        (&all, "x32", has_x32, Ok(refused)),
    ] {
        if !there {
            continue;
        }
        let rule = json!({ "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 });
        let mut seccomp = profile(rule);
        seccomp["architectures"] = architectures.clone();
        let outcome = place.run(place.create(abi, &["/guest", "parent", abi], &seccomp)).unwrap();
        let case = format!("{abi} under {architectures}");
        match expected {
            Ok(stdout) => assert_eq!((outcome.status, outcome.stdout.as_str()), (ALIVE, stdout), "{case}"),
            Err(status) => assert_eq!((outcome.status, outcome.stdout.as_str()), (status, ""), "{case}"),
        }
    }
}

/// Every flag of the specification, with and without a supervisor, is taken by this kernel.
#[test]
fn every_flag_is_taken() {
    let Some(place) = place() else { return };
    for flag in ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"] {
        let mut seccomp = profile(json!({ "names": ["getppid"], "action": "SCMP_ACT_ERRNO" }));
        seccomp["flags"] = json!([format!("SECCOMP_FILTER_FLAG_{flag}")]);
        let outcome = place.run(place.create("flag", &["/guest", "parent", "native"], &seccomp)).unwrap();
        assert_eq!(outcome.stdout, "errno 1\nalive\n", "{flag}");
    }
    let agent = Agent::listen(&place, Manner::Answers);
    let mut seccomp = agent.profile(&["getppid"]);
    seccomp["flags"] = json!([
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG"
    ]);
    let outcome = place.run(place.create("killable", &["/guest", "parent", "native"], &seccomp)).unwrap();
    assert_eq!(outcome.stdout, "parent 12345\nalive\n");
}

/// How a supervisor behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// As it should: 12345 for getppid, anything else goes on.
    Answers,
    /// It takes the descriptor and is gone.
    DropsIt,
    /// It takes the descriptor and says nothing until the test is over.
    IsSilent,
    /// It closes every connection.
    HangsUp,
}

/// A supervisor on a socket of its own, with what it was told.
struct Agent {
    path: PathBuf,
    told: Receiver<Value>,
}

impl Agent {
    fn listen(place: &Place, manner: Manner) -> Self {
        let path = place.directory.path().join(format!("{manner:?}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let (send, told) = channel();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for connection in listener.incoming().map_while(Result::ok) {
                if manner == Manner::HangsUp {
                    continue;
                }
                let mut message = vec![0; 65536];
                let (length, descriptor) =
                    cofferdam_linux::terminal::receive_descriptor(connection.as_fd(), &mut message).unwrap();
                // Exactly one message a connection, and then its end.
                assert_eq!((&connection).read(&mut [0]).unwrap(), 0);
                let _ = send.send(serde_json::from_slice(&message[..length]).unwrap());
                let descriptor = descriptor.unwrap();
                match manner {
                    Manner::Answers => drop(std::thread::spawn(move || supervise(&descriptor))),
                    Manner::IsSilent => kept.push(descriptor),
                    Manner::DropsIt | Manner::HangsUp => {}
                }
            }
        });
        Self { path, told }
    }

    fn profile(&self, calls: &[&str]) -> Value {
        let mut seccomp = profile(json!({ "names": calls, "action": "SCMP_ACT_NOTIFY" }));
        seccomp["listenerPath"] = json!(self.path);
        seccomp["listenerMetadata"] = json!("some \"data\"");
        seccomp
    }

    fn told(&self) -> Value {
        self.told.recv_timeout(NO_HANG).unwrap()
    }
}

fn supervise(descriptor: &OwnedFd) {
    loop {
        let call = match receive(descriptor.as_fd()) {
            Ok(call) => call,
            Err(Errno::NOENT | Errno::INTR) => continue,
            Err(_) => return,
        };
        // The kernel wakes a reader of a filter without processes as well: then there is nothing to answer.
        let is_parent = call.number == 110 && cfg!(target_arch = "x86_64");
        let told = if is_parent { Answer::Value(12_345) } else { Answer::Continue };
        if answer(descriptor.as_fd(), call.id, told) == Err(Errno::BADF) {
            return;
        }
    }
}

/// config-linux.md, "The container process state": one message with the descriptor, for every process of the container.
#[test]
fn a_supervisor_is_told_of_every_process_and_answers_its_calls() {
    let Some(place) = place() else { return };
    let agent = Agent::listen(&place, Manner::Answers);
    // execve too: the supervisor has the descriptor before the program is executed.
    let seccomp = agent.profile(&["getppid", "execve"]);
    let bundle = std::path::absolute(&place.bundle).unwrap();
    for no_new_privileges in [true, false] {
        let mut create = place.create("supervised", &["/guest", "sleep"], &seccomp);
        create.start = false;
        let process = create.spec.process_mut().as_mut().unwrap();
        process.set_no_new_privileges(Some(no_new_privileges));
        let (stdio, _output) = captured();
        create.stdio = stdio;
        let id = create.id.clone();
        let created = place.runtime.create(create).unwrap();
        let message = |status: &str, pid: i32| {
            json!({
                "ociVersion": "1.0.2", "fds": ["seccompFd"], "pid": pid, "metadata": "some \"data\"",
                "state": {
                    "ociVersion": "1.0.2", "id": "supervised", "status": status, "pid": created.pid,
                    "bundle": bundle, "annotations": { "note": "for the supervisor" },
                },
            })
        };
        let mut told = agent.told();
        let version = told["ociVersion"].clone();
        assert_eq!(told["state"]["ociVersion"], version);
        told["ociVersion"] = json!("1.0.2");
        told["state"]["ociVersion"] = json!("1.0.2");
        // Before start: whoever creates may wait for the supervisor first.
        assert_eq!(told, message("creating", created.pid));
        place.runtime.start(&id).unwrap();

        let mut process = place.runtime.spec(&id).unwrap().process().clone().unwrap();
        process.set_args(Some(vec!["/guest".into(), "parent".into(), "native".into()]));
        let mut exec = Exec::new(process);
        let (stdio, output) = captured();
        exec.stdio = stdio;
        let executed = place.runtime.exec(&id, exec).unwrap();
        assert_eq!(foreground::reap(executed.pidfd.as_fd()).unwrap(), ALIVE);
        assert_eq!(text(output), "parent 12345\nalive\n");
        let mut told = agent.told();
        told["ociVersion"] = json!("1.0.2");
        told["state"]["ociVersion"] = json!("1.0.2");
        assert_eq!(told, message("running", executed.pid));
        place.runtime.delete(&id, true).unwrap();
        let _ = foreground::reap(created.pidfd.as_fd());
    }
}

/// SC-08: whatever the supervisor does, the runtime goes on, and what it made can be deleted.
#[test]
fn sc_08_a_supervisor_that_fails_stops_nobody_but_the_container() {
    let Some(place) = place() else { return };
    let parent = ["/guest", "parent", "native"];

    // Gone after it took the descriptor: its calls do not exist.
    let agent = Agent::listen(&place, Manner::DropsIt);
    let outcome = place.run(place.create("dropped", &parent, &agent.profile(&["getppid"]))).unwrap();
    assert_eq!(outcome.stdout, "errno 38\nalive\n");
    // Nor is one that the child would end its own part with.
    let outcome = place.run(place.create("dropped", &parent, &agent.profile(&["close"]))).unwrap();
    assert!(outcome.stdout.ends_with("alive\n"), "{outcome:?}");
    // That of execve too, which fails in words.
    let error = place.run(place.create("dropped", &parent, &agent.profile(&["execve"]))).unwrap_err();
    assert!(error.to_string().contains("function not implemented"), "{error}");

    // Never there: refused before there is a process.
    let mut seccomp = agent.profile(&["getppid"]);
    seccomp["listenerPath"] = json!(place.directory.path().join("nobody.sock"));
    let error = place.run(place.create("absent", &parent, &seccomp)).unwrap_err().to_string();
    assert!(error.contains("connect-listener") && error.contains("no such file"), "{error}");

    // Gone between connection and handover.
    let agent = Agent::listen(&place, Manner::HangsUp);
    let mut create = place.create("hung-up", &parent, &agent.profile(&["getppid", "accept4"]));
    create.start = false;
    let id = create.id.clone();
    let created = place.runtime.create(create).unwrap();
    // The gate tells nobody when the other side of a socket was closed: it is gone once a second connection was.
    let probe = std::os::unix::net::UnixStream::connect(&agent.path).unwrap();
    assert_eq!((&probe).read(&mut [0]).unwrap(), 0);
    let error = place.runtime.start(&id).unwrap_err().to_string();
    assert!(error.contains("load-filter") && error.contains("broken pipe"), "{error}");
    place.runtime.delete(&id, true).unwrap();
    let _ = foreground::reap(created.pidfd.as_fd());

    // Silent in the very call that starts the program.
    let agent = Agent::listen(&place, Manner::IsSilent);
    let begin = Instant::now();
    for start in [true, false] {
        let mut create = place.create("silent", &parent, &agent.profile(&["execve"]));
        create.start = start;
        let id = create.id.clone();
        let created = place.runtime.create(create).unwrap();
        if !start {
            place.runtime.start(&id).unwrap();
        }
        place.runtime.delete(&id, true).unwrap();
        let _ = foreground::reap(created.pidfd.as_fd());
    }
    assert!(begin.elapsed() < NO_HANG, "{:?}", begin.elapsed());
}

/// A supervisor that is asked about what is done while a container waits for `start` would be waited for as well: it gets the
/// descriptor after that.
#[test]
fn a_container_waits_for_start_without_its_supervisor() {
    let Some(place) = place() else { return };
    let agent = Agent::listen(&place, Manner::Answers);
    for (no_new_privileges, call, status) in [
        (true, "getppid", "creating"),
        (true, "accept4", "created"),
        (true, "rt_sigaction", "created"),
        (true, "setresuid", "creating"),
        (false, "setresuid", "created"),
    ] {
        let mut create = place.create("waiting", &["/guest", "sleep"], &agent.profile(&[call]));
        create.start = false;
        let process = create.spec.process_mut().as_mut().unwrap();
        process.set_no_new_privileges(Some(no_new_privileges));
        let (stdio, _output) = captured();
        create.stdio = stdio;
        let id = create.id.clone();
        let created = place.runtime.create(create).unwrap();
        let early = (status == "creating").then(|| agent.told());
        assert!(agent.told.try_recv().is_err(), "{call}: told once");
        place.runtime.start(&id).unwrap();
        let told = early.unwrap_or_else(|| agent.told());
        assert_eq!(told["state"]["status"], status, "{call} {no_new_privileges}");
        place.runtime.delete(&id, true).unwrap();
        let _ = foreground::reap(created.pidfd.as_fd());
    }
}

/// A filter that says nothing about what is done at the gate holds there already, before anybody calls `start`; any other is
/// loaded after it. Either way it holds in the program.
#[test]
fn a_filter_is_loaded_while_the_container_waits_for_start() {
    let Some(place) = place() else { return };
    let read = |index: u64| json!([{ "index": index, "value": 99, "op": "SCMP_CMP_EQ" }]);
    for (name, no_new_privileges, action, args, mode) in [
        ("getppid", true, "SCMP_ACT_ERRNO", None, 2),
        ("getppid", false, "SCMP_ACT_ERRNO", None, 2),
        ("capset", false, "SCMP_ACT_LOG", None, 2),
        ("accept4", true, "SCMP_ACT_ERRNO", None, 0),
        ("accept4", true, "SCMP_ACT_KILL_PROCESS", None, 0),
        ("close", false, "SCMP_ACT_LOG", None, 0),
        ("read", true, "SCMP_ACT_ERRNO", Some(read(0)), 0),
    ] {
        let mut seccomp =
            profile(json!({ "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 }));
        let mut rule = json!({ "names": [name], "action": action });
        if let Some(args) = args {
            rule["args"] = args;
        }
        if name != "getppid" {
            seccomp["syscalls"].as_array_mut().unwrap().push(rule);
        }
        let mut create = place.create("ahead", &["/guest", "parent", "native"], &seccomp);
        create.start = false;
        create.spec.process_mut().as_mut().unwrap().set_no_new_privileges(Some(no_new_privileges));
        let (stdio, output) = captured();
        create.stdio = stdio;
        let id = create.id.clone();
        let created = place.runtime.create(create).unwrap();
        let waiting = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", created.pid)).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap();
            line.trim().parse::<u32>().unwrap()
        };
        // It is said to be created first.
        let begin = Instant::now();
        while mode != 0 && waiting() != mode && begin.elapsed() < NO_HANG {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(waiting(), mode, "{name} {action} {no_new_privileges}");
        place.runtime.start(&id).unwrap();
        assert_eq!(foreground::reap(created.pidfd.as_fd()).unwrap(), ALIVE, "{name} {action}");
        assert_eq!(text(output), "errno 77\nalive\n", "{name} {action}");
        place.runtime.delete(&id, true).unwrap();
    }
}

/// The moment that a container is said to be created it can be told to end, whatever it still does at the gate.
#[test]
fn a_container_ends_when_it_is_told_to_at_once() {
    let Some(place) = place() else { return };
    // Long, so that loading it takes longer than telling.
    let rule = |value| {
        json!({ "names": ["getppid"], "action": "SCMP_ACT_ERRNO",
            "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }] })
    };
    let rules: Vec<_> = (0..900).map(rule).collect();
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules });
    for round in 0..20 {
        let mut create = place.create("told", &["/guest", "sleep"], &seccomp);
        create.start = false;
        let (stdio, _output) = captured();
        create.stdio = stdio;
        let id = create.id.clone();
        let created = place.runtime.create(create).unwrap();
        rustix::process::pidfd_send_signal(&created.pidfd, rustix::process::Signal::TERM).unwrap();
        assert!(
            cofferdam_linux::wait::readable(created.pidfd.as_fd(), NO_HANG).unwrap(),
            "round {round}: it goes on"
        );
        assert_eq!(
            foreground::reap(created.pidfd.as_fd()).unwrap(),
            foreground::Ended::Exited(128 + 15),
            "round {round}"
        );
        place.runtime.delete(&id, true).unwrap();
    }
}

/// What a runtime has to do itself between the filter and the program can be asked about.
#[test]
fn calls_of_the_way_to_the_program_can_be_supervised() {
    let Some(place) = place() else { return };
    let agent = Agent::listen(&place, Manner::Answers);
    let calls =
        ["execve", "openat", "open", "read", "close", "fcntl", "accept4", "exit_group", "rt_sigprocmask"];
    for no_new_privileges in [true, false] {
        let mut create = place.create("way", &["/guest", "parent", "native"], &agent.profile(&calls));
        create.spec.process_mut().as_mut().unwrap().set_no_new_privileges(Some(no_new_privileges));
        assert!(place.run(create).unwrap().stdout.ends_with("alive\n"), "{no_new_privileges}");
    }
}

/// Calls in which the child could never be answered are refused before there is one.
#[test]
fn sc_08_supervising_the_handover_itself_is_refused() {
    let Some(place) = place() else { return };
    let agent = Agent::listen(&place, Manner::Answers);
    for calls in [&["write"][..], &["sendmsg"], &["close", "close_range"]] {
        let error = place.run(place.create("handover", &["/guest", "true"], &agent.profile(calls)));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(calls[0]) && error.contains("/linux/seccomp/syscalls/0"), "{error}");
    }
    // A profile that denies what hands the descriptor over fails in words, whatever the filter answers.
    let mut seccomp = agent.profile(&["getppid"]);
    let deny = json!({ "names": ["sendmsg"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 });
    seccomp["syscalls"].as_array_mut().unwrap().push(deny);
    let error = place.run(place.create("denied", &["/guest", "true"], &seccomp)).unwrap_err().to_string();
    assert!(error.contains("/linux/seccomp"), "{error}");
    assert!(agent.told.try_recv().is_err(), "nothing reached the supervisor");
}
