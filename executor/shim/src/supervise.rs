//! The supervisor: one loop, one thread, all waiting in `poll`.
//!
//! ```text
//!            launcher's socket pair ─┐            ┌─ pidfd of the task and of each exec
//!   control socket ─▶ clients ───────┼─▶ poll ◀───┼─ their stdout, stderr or terminal ─▶ log, attached clients
//!            timers (grace, restart) ┘            └─ their stdin, when it blocks
//! ```
//!
//! A life: create → (`Start`) → run → exit → policy decides: again, or over → clients are told → the container is
//! deleted → the policy releases the rest → clients that still read are served → end.

mod requests;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::client::{Client, Role};
use crate::engine::Engine;
use crate::exit::Exit;
use crate::frame::FrameKind;
use crate::launch::Launch;
use crate::log::{Framer, LogWriter, Stream};
use crate::policy::{Fact, Order, Policy};
use crate::protocol::{AttachStreams, Failure, FailureKind, Reply, StepTime};
use crate::session::{self, Session, StdioWish};
use crate::time::Timestamp;

/// How long output is waited for after a process has ended while something else holds its streams open.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// How long a client that does not read keeps the shim after everything else is done.
const LINGER_LIMIT: Duration = Duration::from_secs(60);

/// The session of the task's first process.
const TASK: u64 = 0;

#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Client(u64),
    ClientWrite(u64),
    Exit(u64),
    Output(u64, Stream),
    Input(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Created; the launcher has not said `Start`.
    Gated,
    /// It runs, or waits to be restarted.
    Live,
    /// The policy said `Finish`.
    Over,
}

/// Creates the task, supervises it until it is over, and releases what it held.
///
/// `launcher` is the connection on which `Start` will come; `listener` the control socket. Errors are those that
/// keep the shim from doing its work at all; what happens to the task goes to `policy`.
pub fn supervise(
    launch: &Launch,
    launcher: UnixStream,
    listener: UnixListener,
    engine: &mut dyn Engine,
    policy: &mut dyn Policy,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut supervisor = Supervisor {
        launch,
        engine,
        policy,
        listener,
        log: LogWriter::open(&launch.log_directory, launch.log_limits)?,
        framers: [Framer::new(Stream::Stdout), Framer::new(Stream::Stderr)],
        clients: vec![Client::new(TASK, launcher)?],
        sessions: Vec::new(),
        phase: Phase::Gated,
        grace_at: None,
        restart_at: None,
        next_id: 1,
    };
    supervisor.create_first();
    while supervisor.phase != Phase::Over {
        supervisor.turn()?;
    }
    supervisor.finish()
}

struct Supervisor<'a> {
    launch: &'a Launch,
    engine: &'a mut dyn Engine,
    policy: &'a mut dyn Policy,
    listener: UnixListener,
    log: LogWriter,
    framers: [Framer; 2],
    clients: Vec<Client>,
    sessions: Vec<Session>,
    phase: Phase,
    grace_at: Option<Instant>,
    restart_at: Option<Instant>,
    next_id: u64,
}

impl Supervisor<'_> {
    fn create_first(&mut self) {
        let reply = match self.create() {
            Ok(pid) => Reply::Created { pid },
            Err(failure) => {
                self.report(Fact::StartFailed(failure.clone()));
                Reply::Failed(failure)
            }
        };
        self.answer(TASK, &reply);
    }

    fn create(&mut self) -> Result<i32, Failure> {
        let wish = StdioWish {
            terminal: self.launch.terminal,
            stdin: self.launch.stdin,
            owner: self.launch.stdio_owner,
        };
        let (stdio, ends) = session::make_stdio(wish).map_err(|error| stdio_failure(&error))?;
        let process = self.engine.create(stdio)?;
        let pid = process.pid;
        let session = Session::new(TASK, process, ends).map_err(|error| stdio_failure(&error))?;
        self.sessions.push(session);
        Ok(pid)
    }

    /// One round: wait, then serve everything that is ready.
    fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        for source in ready {
            match source {
                Source::Listener => self.accept(),
                Source::Client(id) => self.serve(id),
                Source::ClientWrite(id) => self.flush_client(id),
                Source::Exit(id) => self.reap(id)?,
                Source::Output(id, stream) => self.copy_output(id, stream),
                Source::Input(id) => self.session(id).into_iter().for_each(Session::flush_input),
            }
        }
        self.log.flush();
        self.end_sessions();
        self.run_timers();
        self.clients.retain(|client| !client.closing || client.wants_to_write());
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Listener];
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        for session in &self.sessions {
            if session.exit.is_none() {
                sources.push(Source::Exit(session.id));
                fds.push(PollFd::from_borrowed_fd(session.pidfd(), PollFlags::IN));
            }
            if !self.is_backed_up(session.id) {
                for (stream, fd) in session.outputs() {
                    sources.push(Source::Output(session.id, stream));
                    fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                }
            }
            if let Some(fd) = session.blocked_input() {
                sources.push(Source::Input(session.id));
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
            }
        }
        for client in &self.clients {
            if !client.closing && self.may_send(client) {
                sources.push(Source::Client(client.id));
                fds.push(PollFd::from_borrowed_fd(client.fd(), PollFlags::IN));
            }
            if client.wants_to_write() {
                sources.push(Source::ClientWrite(client.id));
                fds.push(PollFd::from_borrowed_fd(client.fd(), PollFlags::OUT));
            }
        }
        poll(&mut fds, self.next_deadline())?;
        Ok(sources
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(source, _)| source)
            .collect())
    }

    fn is_backed_up(&self, session: u64) -> bool {
        self.clients.iter().any(|client| gets_output_of(client, session) && client.is_full())
    }

    fn may_send(&self, client: &Client) -> bool {
        match client.role {
            Role::Attached { session, .. } => {
                self.sessions.iter().find(|other| other.id == session).is_none_or(Session::takes_input)
            }
            Role::Control | Role::Waiting => true,
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let drains = self.sessions.iter().filter_map(|session| session.drain_until);
        drains.chain(self.grace_at).chain(self.restart_at).min()
    }

    fn session(&mut self, id: u64) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    fn client(&mut self, id: u64) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.id == id)
    }

    fn answer(&mut self, id: u64, reply: &Reply) {
        if let Some(client) = self.client(id) {
            client.reply(reply);
        }
        self.flush_client(id);
    }

    fn flush_client(&mut self, id: u64) {
        if let Some(client) = self.client(id)
            && client.flush().is_err()
        {
            self.drop_client(id);
        }
    }

    fn drop_client(&mut self, id: u64) {
        self.clients.retain(|client| client.id != id);
        if id == TASK && self.phase == Phase::Gated {
            self.report(Fact::LauncherGone);
        }
    }

    fn start_first(&mut self, attach: Option<AttachStreams>) {
        self.phase = Phase::Live;
        if let Some(streams) = attach {
            self.join(TASK, TASK, streams);
        }
        let reply = match self.start() {
            Ok((pid, steps)) => Reply::Started { pid, steps },
            Err(failure) => Reply::Failed(failure),
        };
        self.answer(TASK, &reply);
    }

    fn start(&mut self) -> Result<(i32, Vec<StepTime>), Failure> {
        let pid = self.session(TASK).map_or(0, |session| session.pid);
        match self.engine.start() {
            Ok(steps) => {
                self.report(Fact::Started { pid });
                Ok((pid, steps))
            }
            Err(failure) => {
                self.sessions.retain(|session| session.id != TASK);
                self.report(Fact::StartFailed(failure.clone()));
                Err(failure)
            }
        }
    }

    fn restart(&mut self) {
        let again = self.engine.delete().and_then(|()| self.create()).and_then(|_| self.start());
        if let Err(failure) = again
            && self.phase == Phase::Live
        {
            self.report(Fact::StartFailed(failure));
        }
    }

    fn report(&mut self, fact: Fact) {
        for order in self.policy.decide(fact) {
            self.obey(order);
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Restart => self.restart(),
            Order::Signal(signal, scope) => {
                // The process may have ended a moment ago; its exit is the answer.
                let _ = self.engine.kill(signal, scope);
            }
            Order::ArmGrace(pause) => self.grace_at = Some(Instant::now() + pause),
            Order::ArmRestart(pause) => self.restart_at = Some(Instant::now() + pause),
            Order::Finish => self.phase = Phase::Over,
        }
    }

    fn reap(&mut self, id: u64) -> io::Result<()> {
        if let Some(session) = self.session(id)
            && session.reap()?.is_some()
        {
            session.drain_until = Some(Instant::now() + DRAIN_LIMIT);
        }
        Ok(())
    }

    fn copy_output(&mut self, id: u64, stream: Stream) {
        let Some(bytes) = self.session(id).and_then(|session| session.read(stream)) else { return };
        if id == TASK {
            self.log_output(stream, &bytes);
        }
        let kind = if stream == Stream::Stdout { FrameKind::Stdout } else { FrameKind::Stderr };
        let mut gone = Vec::new();
        for client in self.clients.iter_mut().filter(|client| !bytes.is_empty() && gets_output_of(client, id))
        {
            client.send(kind, &bytes);
            if client.flush().is_err() {
                gone.push(client.id);
            }
        }
        gone.into_iter().for_each(|id| self.drop_client(id));
    }

    fn log_output(&mut self, stream: Stream, bytes: &[u8]) {
        let (log, now) = (&mut self.log, Timestamp::now());
        let framer = &mut self.framers[usize::from(stream == Stream::Stderr)];
        framer.feed(bytes, now, |record| log.push(&record));
        if bytes.is_empty() {
            framer.finish(now).iter().for_each(|record| log.push(record));
        }
    }

    /// Says good-bye to processes that ended and whose output is read, or was waited for long enough.
    fn end_sessions(&mut self) {
        let now = Instant::now();
        for session in &mut self.sessions {
            if session.drain_until.is_some_and(|until| until <= now) {
                session.abandon_output();
            }
        }
        while let Some(at) = self.sessions.iter().position(Session::has_ended) {
            let session = self.sessions.remove(at);
            let Some(exit) = session.exit else { continue };
            if session.id == TASK { self.end_task(exit) } else { self.end_exec(session.id, exit) }
        }
    }

    fn end_task(&mut self, exit: Exit) {
        self.log.flush();
        self.grace_at = None;
        let out_of_memory = self.engine.oom_killed();
        self.report(Fact::Exited { exit, out_of_memory });
    }

    fn end_exec(&mut self, id: u64, exit: Exit) {
        let attached = self.clients.iter_mut().filter(|client| session_of(client) == Some(id));
        for client in attached {
            client.reply(&Reply::Ended { exit });
            client.closing = true;
        }
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        if self.grace_at.take_if(|at| *at <= now).is_some() {
            self.report(Fact::GraceOver);
        }
        if self.restart_at.take_if(|at| *at <= now).is_some() {
            self.report(Fact::RestartDue);
        }
    }

    /// The task is over: tell everybody, clean up, serve those who still read.
    fn finish(&mut self) -> io::Result<()> {
        let status = self.policy.status();
        for client in &mut self.clients {
            if client.role == Role::Control && client.id != TASK {
                continue;
            }
            client.reply(&Reply::Status(status.clone()));
            // A peer that is gone is found again when it is waited for below.
            let _ = client.flush();
        }
        let deleted = self.engine.delete();
        if deleted.is_ok() {
            self.policy.release();
        }
        self.linger()
    }

    fn linger(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + LINGER_LIMIT;
        loop {
            self.clients.retain_mut(|client| client.flush().is_ok() && client.wants_to_write());
            if self.clients.is_empty() || Instant::now() >= deadline {
                return Ok(());
            }
            let mut fds: Vec<_> = self
                .clients
                .iter()
                .map(|client| PollFd::from_borrowed_fd(client.fd(), PollFlags::OUT))
                .collect();
            poll(&mut fds, Some(deadline))?;
        }
    }
}

fn gets_output_of(client: &Client, session: u64) -> bool {
    matches!(client.role, Role::Attached { session: other, output: true, .. } if other == session)
}

fn session_of(client: &Client) -> Option<u64> {
    if let Role::Attached { session, .. } = client.role { Some(session) } else { None }
}

fn stdio_failure(error: &io::Error) -> Failure {
    Failure::new(FailureKind::Exhausted, format!("cannot make the task's standard streams: {error}"))
}

fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let timeout = deadline.map(|at| {
        let rest = at.saturating_duration_since(Instant::now());
        // Rounded up: waking a moment early would make the loop spin until the deadline.
        let rest = rest + Duration::from_millis(1);
        Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: i64::from(rest.subsec_nanos()) }
    });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
