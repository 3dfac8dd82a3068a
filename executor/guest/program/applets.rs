//! The small parts: what tests need to have run inside a task.

use std::fs::{self, OpenOptions};
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use crate::guest::abi::{self, Abi};
use crate::guest::signals::Blocked;
use crate::guest::terminal;

/// The code that a part ends with when it was misused.
pub(crate) const USAGE: u8 = 64;
const FAILED: u8 = 1;

/// How long `connect` tries, a hundred milliseconds apart, since the other side may not be listening yet.
const CONNECT_TRIES: u32 = 50;
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Says what is wrong on standard error and gives the code to end with.
pub(crate) fn complain(code: u8, message: &str) -> ExitCode {
    // With standard error closed there is nobody left to tell.
    drop(writeln!(io::stderr(), "guest: {message}"));
    ExitCode::from(code)
}

fn report(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(FAILED, &error.to_string()),
    }
}

fn number<T: FromStr>(arguments: &[String], usage: &str) -> Result<T, ExitCode> {
    arguments.first().and_then(|text| text.parse().ok()).ok_or_else(|| complain(USAGE, usage))
}

/// `true`
pub(crate) fn r#true(_: &[String]) -> ExitCode {
    ExitCode::SUCCESS
}

/// `false`
pub(crate) fn r#false(_: &[String]) -> ExitCode {
    ExitCode::FAILURE
}

/// `exit N`: ends with code N.
pub(crate) fn exit(arguments: &[String]) -> ExitCode {
    number::<u8>(arguments, "usage: exit CODE").map_or_else(|code| code, ExitCode::from)
}

/// `args …`: its arguments, one a line.
pub(crate) fn args(arguments: &[String]) -> ExitCode {
    report(arguments.iter().try_for_each(|argument| writeln!(io::stdout(), "{argument}")))
}

/// `env`: its environment, one `NAME=value` a line, in its order.
pub(crate) fn env(_: &[String]) -> ExitCode {
    report(std::env::vars_os().try_for_each(|(name, value)| {
        writeln!(io::stdout(), "{}={}", name.to_string_lossy(), value.to_string_lossy())
    }))
}

/// `id`: the lines of `/proc/self/status` that say who it is and what it may do, and its working directory.
pub(crate) fn id(_: &[String]) -> ExitCode {
    const SAID: [&str; 10] =
        ["Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
    let print = || {
        for line in fs::read_to_string("/proc/self/status")?.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            if SAID.contains(&name) || name == "Seccomp" {
                writeln!(io::stdout(), "{name} {}", value.trim().replace('\t', " "))?;
            }
        }
        writeln!(io::stdout(), "Cwd {}", std::env::current_dir()?.display())
    };
    report(print())
}

/// `cat [FILE…]`: the files, or standard input.
pub(crate) fn cat(arguments: &[String]) -> ExitCode {
    if arguments.is_empty() {
        return report(io::copy(&mut io::stdin(), &mut io::stdout()).map(drop));
    }
    report(arguments.iter().try_for_each(|path| {
        io::copy(&mut fs::File::open(path).map_err(|error| named(path, &error))?, &mut io::stdout()).map(drop)
    }))
}

/// `write FILE [TEXT…]`: the text, or standard input, into the file.
pub(crate) fn write(arguments: &[String]) -> ExitCode {
    let Some((path, text)) = arguments.split_first() else {
        return complain(USAGE, "usage: write FILE [TEXT…]");
    };
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        if text.is_empty() {
            return io::copy(&mut io::stdin(), &mut file).map(drop);
        }
        writeln!(file, "{}", text.join(" "))
    };
    report(write().map_err(|error| named(path, &error)))
}

fn named(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// `sleep SECONDS`: fractions allowed; without a number, until it is killed.
pub(crate) fn sleep(arguments: &[String]) -> ExitCode {
    let Some(seconds) = arguments.first() else {
        loop {
            thread::park();
        }
    };
    match seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(time) => {
            thread::sleep(time);
            ExitCode::SUCCESS
        }
        None => complain(USAGE, "usage: sleep [SECONDS]"),
    }
}

/// `parent native|compat|x32 [thread]`: asks for the parent's pid through one of the kernel's ABIs, in a thread if told so,
/// and says what came of it; then that the process is still there.
pub(crate) fn parent(arguments: &[String]) -> ExitCode {
    let abi = match arguments.first().map(String::as_str) {
        Some("native") => Abi::Native,
        Some("compat") => Abi::Compat,
        Some("x32") => Abi::X32,
        _ => return complain(USAGE, "usage: parent native|compat|x32 [thread]"),
    };
    let ask = move || match abi::parent(abi) {
        Ok(pid) => format!("parent {pid}"),
        Err(errno) => format!("errno {errno}"),
    };
    let said = if arguments.len() < 2 { ask() } else { in_thread(ask) };
    report(writeln!(io::stdout(), "{said}\nalive"))
}

/// What `ask` says in a thread of its own, which may be killed in the middle of it.
fn in_thread(ask: impl FnOnce() -> String + Send + 'static) -> String {
    let (send, receive) = std::sync::mpsc::channel();
    thread::spawn(move || send.send(ask()));
    // A killed thread drops nothing, so its end of the channel stays open: only its absence tells.
    loop {
        if let Ok(said) = receive.recv_timeout(Duration::from_millis(10)) {
            return said;
        }
        if fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1) {
            return "thread killed".to_owned();
        }
    }
}

/// `spin`: uses one CPU until it is killed.
pub(crate) fn spin(_: &[String]) -> ExitCode {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

/// `hog MIB`: touches that much memory, says so, and holds it until its standard input ends.
pub(crate) fn hog(arguments: &[String]) -> ExitCode {
    const MIB: usize = 1 << 20;
    const PAGE: usize = 4096;
    let mib: usize = match number(arguments, "usage: hog MIB") {
        Ok(mib) => mib,
        Err(code) => return code,
    };
    let mut held = Vec::new();
    for _ in 0..mib {
        let mut block = vec![0_u8; MIB];
        // A page of zeroes that nobody wrote to is not charged.
        block.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        held.push(black_box(block));
    }
    report(writeln!(io::stdout(), "holding {mib} MiB").and_then(|()| until_end_of_input()))
}

/// `hold`: says `ready` and waits for the end of its standard input.
pub(crate) fn hold(_: &[String]) -> ExitCode {
    report(writeln!(io::stdout(), "ready").and_then(|()| until_end_of_input()))
}

fn until_end_of_input() -> io::Result<()> {
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

/// `forks N`: starts N processes that live until their standard input ends, and says how many it got.
pub(crate) fn forks(arguments: &[String]) -> ExitCode {
    let wanted: usize = match number(arguments, "usage: forks COUNT") {
        Ok(wanted) => wanted,
        Err(code) => return code,
    };
    let mut children = Vec::new();
    let mut failure = None;
    while children.len() < wanted {
        let child = Command::new("/proc/self/exe")
            .arg("hold")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn();
        match child {
            Ok(child) => children.push(child),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let got = children.len();
    for mut child in children {
        drop(child.stdin.take());
        drop(child.wait());
    }
    let said = writeln!(io::stdout(), "started {got} of {wanted}");
    match failure {
        Some(error) => complain(FAILED, &error.to_string()),
        None => report(said),
    }
}

/// `listen [ADDRESS:]PORT`: sends back every line that it gets on any connection.
pub(crate) fn listen(arguments: &[String]) -> ExitCode {
    let Some(address) = arguments.first() else { return complain(USAGE, "usage: listen [ADDRESS:]PORT") };
    let address = if address.contains(':') { address.clone() } else { format!("0.0.0.0:{address}") };
    let serve = || {
        let listener = TcpListener::bind(&address)?;
        writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
        for connection in listener.incoming() {
            let connection = connection?;
            // One client that stalls or breaks off must not end the service.
            thread::spawn(move || drop(echo_lines(connection)));
        }
        Ok(())
    };
    report(serve())
}

fn echo_lines(connection: TcpStream) -> io::Result<()> {
    let mut writer = connection.try_clone()?;
    for line in BufReader::new(connection).lines() {
        writeln!(writer, "{}", line?)?;
    }
    Ok(())
}

/// `connect HOST PORT [TEXT…]`: sends the text as a line and prints what comes back.
pub(crate) fn connect(arguments: &[String]) -> ExitCode {
    let [host, port, text @ ..] = arguments else {
        return complain(USAGE, "usage: connect HOST PORT [TEXT…]");
    };
    let Ok(port) = port.parse::<u16>() else { return complain(USAGE, "a port is a number up to 65535") };
    let exchange = || {
        let mut connection = connect_patiently(host, port)?;
        writeln!(connection, "{}", text.join(" "))?;
        connection.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        write!(io::stdout(), "{answer}")
    };
    report(exchange())
}

fn connect_patiently(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut tries = 0;
    loop {
        match TcpStream::connect((host, port)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && tries < CONNECT_TRIES => {
                tries += 1;
                thread::sleep(CONNECT_PAUSE);
            }
            other => return other,
        }
    }
}

/// `tty`: for each standard descriptor, whether it is a terminal, and the window's size as rows × columns.
pub(crate) fn tty(_: &[String]) -> ExitCode {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let lines = [
        ("stdin", stdin.is_terminal(), terminal::window_size(stdin.as_fd())),
        ("stdout", stdout.is_terminal(), terminal::window_size(stdout.as_fd())),
        ("stderr", stderr.is_terminal(), terminal::window_size(stderr.as_fd())),
    ];
    report(lines.iter().try_for_each(|(name, is_terminal, size)| match (is_terminal, size) {
        (true, Some(size)) => writeln!(io::stdout(), "{name} terminal {}x{}", size.rows, size.columns),
        (true, None) => writeln!(io::stdout(), "{name} terminal"),
        (false, _) => writeln!(io::stdout(), "{name} not a terminal"),
    }))
}

/// `signals`: says `ready`, then the number of each signal that it gets, a line each, until one is SIGTERM (15).
pub(crate) fn signals(_: &[String]) -> ExitCode {
    const SIGTERM: i32 = 15;
    let listen = || {
        let blocked = Blocked::new()?;
        writeln!(io::stdout(), "ready")?;
        loop {
            let signal = blocked.wait()?;
            writeln!(io::stdout(), "{signal}")?;
            if signal == SIGTERM {
                return Ok(());
            }
        }
    };
    report(listen())
}
