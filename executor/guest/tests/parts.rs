//! The embedded program, run.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

struct Program {
    _folder: TempDir,
    path: PathBuf,
}

impl Program {
    fn write() -> Program {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("guest");
        fs::write(&path, cofferdam_guest::PROGRAM).expect("the program written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        Program { _folder: folder, path }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn init_ends_as_its_command_ended() {
    let program = Program::write();
    let guest = program.path.to_str().expect("a path in UTF-8");
    assert_eq!(program.run(&["init", "--", guest, "exit", "7"]).status.code(), Some(7));
    assert_eq!(program.run(&["init", "/bin/sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(program.run(&["init", "/no/such/program"]).status.code(), Some(127));
    assert_eq!(program.run(&["init", "/"]).status.code(), Some(126));
    assert_eq!(program.run(&["init"]).status.code(), Some(64));
}

#[test]
fn init_forwards_signals_that_would_end_an_ordinary_process() {
    let program = Program::write();
    let guest = program.path.to_str().expect("a path in UTF-8");
    let mut init = program.command(&["init", guest, "signals"]).stdout(Stdio::piped()).spawn().expect("init");
    let mut lines = BufReader::new(init.stdout.take().expect("its output")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "ready");
    // SIGHUP, SIGUSR1 and SIGWINCH, one at a time: equal pending signals are merged and others are not ordered.
    for number in ["1", "10", "28", "15"] {
        let sent = Command::new("kill").args([&format!("-{number}"), &init.id().to_string()]).status();
        assert!(sent.expect("kill(1)").success());
        assert_eq!(lines.next().expect("a line").expect("text"), number);
    }
    assert_eq!(init.wait().expect("init ends").code(), Some(0));
}

#[test]
fn init_is_not_confused_by_children_that_are_not_its_command() {
    let program = Program::write();
    // The inner shell leaves a process behind that ends first.
    let output = program.run(&["init", "/bin/sh", "-c", "(true &); exit 3"]);
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_host_process_sees_open_walls() {
    let program = Program::write();
    let mut demo = program.command(&["demo"]);
    let host = cofferdam_guest::host_namespaces();
    let output =
        demo.env(cofferdam_guest::HOST_NAMESPACES_VARIABLE, host).output().expect("the program runs");
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("✘ processes"), "{printed}");
    assert!(printed.contains("uses the host's network"), "{printed}");
    assert_eq!(output.status.signal(), None);
}

#[test]
fn probes_say_what_a_test_wants_to_know() {
    let program = Program::write();
    assert_eq!(text(&program.run(&["args", "a b", ""]).stdout), "a b\n\n");
    let mut env = program.command(&["env"]);
    assert_eq!(text(&env.env_clear().env("A", "b=c").output().expect("it runs").stdout), "A=b=c\n");
    assert!(text(&program.run(&["id"]).stdout).contains("\nCapBnd "));
    assert_eq!(text(&program.run(&["forks", "2"]).stdout), "started 2 of 2\n");
    assert_eq!(
        text(&program.command(&["tty"]).stdin(Stdio::null()).output().expect("it runs").stdout)
            .lines()
            .count(),
        3
    );
    assert_eq!(program.run(&["nonsense"]).status.code(), Some(64));
    assert_eq!(program.run(&["sleep", "0.01"]).status.code(), Some(0));
    assert_eq!(program.run(&["false"]).status.code(), Some(1));
}

#[test]
fn what_is_written_can_be_read_back() {
    let program = Program::write();
    let file = program.path.with_file_name("file");
    let file = file.to_str().expect("a path in UTF-8");
    assert!(program.run(&["write", file, "some", "text"]).status.success());
    assert_eq!(text(&program.run(&["cat", file]).stdout), "some text\n");
    let mut cat =
        program.command(&["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
    cat.stdin.take().expect("its input").write_all(b"through").expect("written");
    assert_eq!(text(&cat.wait_with_output().expect("its end").stdout), "through");
}

#[test]
fn one_instance_answers_another_over_tcp() {
    let program = Program::write();
    let mut server =
        program.command(&["listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().expect("a server");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let port = line.trim().rsplit(':').next().expect("a port");
    let output = program.run(&["connect", "127.0.0.1", port, "hello", "there"]);
    server.kill().expect("the server ends");
    server.wait().expect("its status");
    assert_eq!(text(&output.stdout), "hello there\n");
}
