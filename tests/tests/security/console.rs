//! CO: terminals.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_tests::oci::outcome;
use serde_json::json;

use crate::{Canary, RAN, assert_ran, assert_refused, attack, bundle, mount, unmount};

/// Listens as a console socket and lets go of every terminal that arrives.
pub(crate) struct Receiver {
    path: PathBuf,
    _listener: UnixListener,
}

impl Receiver {
    /// The kernel queues the connections; what is sent dies with the listener.
    pub(crate) fn listen(path: &Path) -> Receiver {
        let listener = UnixListener::bind(path).unwrap();
        Receiver { path: path.to_owned(), _listener: listener }
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

#[test]
fn co_01_a_terminal_comes_from_the_container_s_own_devpts_or_not_at_all() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let socket = Receiver::listen(&files.join("socket"));
        let dev = files.join("dev");
        let call = |name: &str, prepare: &dyn Fn(&Path)| {
            let _ = std::fs::remove_dir_all(&dev);
            std::fs::create_dir_all(dev.join("pts")).unwrap();
            prepare(&dev);
            let bundle = bundle(files, name, "", |config| {
                config["process"]["terminal"] = json!(true);
                unmount(config, "/dev");
                mount(config, "/dev", "bind", dev.to_str().unwrap(), &["bind"]);
            });
            let path = bundle.path().to_str().unwrap();
            let outcome =
                runtime.call(&["create", "--console-socket", socket.path(), "--bundle", path, "c"]).unwrap();
            let _ = runtime.call(&["delete", "--force", "c"]);
            canary.assert_intact(name);
            assert_refused(&outcome, name);
        };
        let link = |to: PathBuf, at: PathBuf| std::os::unix::fs::symlink(to, at).unwrap();
        call("no-devpts", &|_| {});
        call("false-ptmx", &|dev| std::fs::write(dev.join("pts/ptmx"), "").unwrap());
        call("linked-ptmx", &|dev| link(canary.path().join("ptmx"), dev.join("pts/ptmx")));
        call("host-ptmx", &|dev| link("/dev/ptmx".into(), dev.join("pts/ptmx")));
        call("linked-pts", &|dev| {
            std::fs::remove_dir(dev.join("pts")).unwrap();
            link(canary.path().into(), dev.join("pts"));
        });
        call("fifo-ptmx", &|dev| {
            assert!(Command::new("mkfifo").arg(dev.join("pts/ptmx")).status().unwrap().success());
        });
    });
}

#[test]
fn co_02_the_caller_s_terminal_cannot_be_taken_or_typed_into() {
    attack(|runtime, files| {
        let script = "test -t 0 && echo is a tty; (exec 3</dev/tty) 2>/dev/null && echo opened tty; \
            setsid -c sh -c '(exec 3</dev/tty) && echo took it' 2>/dev/null; cat /proc/self/stat | cut -d' ' -f7; true";
        let bundle = bundle(files, "tty", script, |_| {});
        let call = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        let words: Vec<_> = std::iter::once(call.get_program())
            .chain(call.get_args())
            .map(|word| word.to_str().unwrap().to_owned())
            .collect();
        // script(1) is the operator's terminal: its child's controlling one.
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
        let outcome = outcome(&mut command).unwrap();
        assert!(outcome.stdout.contains(RAN) && outcome.stdout.contains("is a tty"), "{outcome:?}");
        assert!(!outcome.stdout.contains("opened tty"), "it has a controlling terminal: {outcome:?}");
        assert!(!outcome.stdout.contains("took it"), "it took the terminal: {outcome:?}");
        assert_eq!(outcome.stdout.lines().last().unwrap().trim(), "0", "{outcome:?}");
        let _ = assert_ran;
    });
}
