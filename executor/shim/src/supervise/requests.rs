//! What clients ask for, and what is done about it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Phase, Supervisor, TASK, stdio_failure};
use crate::client::{Client, Role};
use crate::frame::{Frame, FrameKind};
use crate::policy::Fact;
use crate::protocol::{AttachStreams, ExecRequest, Failure, FailureKind, Reply, Request, WindowSize};
use crate::session::{self, Session, StdioWish};

/// Connections at a time; more are refused at once. Each costs a buffer of at most 256 KiB.
const CLIENT_LIMIT: usize = 256;

impl Supervisor<'_> {
    pub(super) fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if self.clients.len() >= CLIENT_LIMIT || !is_our_user(&stream) {
            return;
        }
        let id = self.take_id();
        self.clients.extend(Client::new(id, stream));
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    pub(super) fn serve(&mut self, id: u64) {
        let Some(client) = self.client(id) else { return };
        if !client.receive().unwrap_or(false) {
            return self.drop_client(id);
        }
        loop {
            let Some(client) = self.client(id) else { return };
            match client.next_frame() {
                Ok(Some(frame)) => self.take_frame(id, &frame),
                Ok(None) => return,
                Err(_) => return self.drop_client(id),
            }
        }
    }

    fn take_frame(&mut self, id: u64, frame: &Frame) {
        match frame.kind {
            FrameKind::Request => match serde_json::from_slice(&frame.payload) {
                Ok(request) => self.take_request(id, request),
                Err(error) => {
                    self.refuse(id, FailureKind::InvalidInput, format!("unreadable request: {error}"))
                }
            },
            FrameKind::Stdin => self.with_input(id, |session| session.write(&frame.payload)),
            FrameKind::StdinEnd => self.with_input(id, Session::end_input),
            FrameKind::Resize => {
                if let Ok(size) = serde_json::from_slice::<WindowSize>(&frame.payload) {
                    self.with_attached(id, |session| session.resize(size));
                }
            }
            FrameKind::Reply | FrameKind::Stdout | FrameKind::Stderr => self.drop_client(id),
        }
    }

    fn with_attached(&mut self, client: u64, act: impl FnMut(&mut Session)) {
        if let Some(Role::Attached { session, .. }) = self.client(client).map(|client| client.role) {
            self.session(session).into_iter().for_each(act);
        }
    }

    fn with_input(&mut self, client: u64, act: impl FnMut(&mut Session)) {
        if let Some(Role::Attached { session, stdin: true, .. }) =
            self.client(client).map(|client| client.role)
        {
            self.session(session).into_iter().for_each(act);
        }
    }

    fn refuse(&mut self, id: u64, kind: FailureKind, message: impl Into<String>) {
        self.answer(id, &Reply::Failed(Failure::new(kind, message)));
    }

    fn take_request(&mut self, id: u64, request: Request) {
        match request {
            Request::Start { attach } if id == TASK && self.phase == Phase::Gated => self.start_first(attach),
            Request::Start { .. } => self.refuse(id, FailureKind::Conflict, "the task was started before"),
            Request::Status => {
                let status = self.policy.status();
                self.answer(id, &Reply::Status(status));
            }
            Request::Wait => self.set_role(id, Role::Waiting),
            Request::Kill { signal, scope } => self.ask(id, Fact::KillAsked { signal, scope }),
            Request::Stop { signal, grace_ms } => {
                self.ask(id, Fact::StopAsked { signal, grace: Duration::from_millis(grace_ms) });
            }
            Request::Attach(streams) => self.attach(id, streams),
            Request::Exec(request) => self.exec(id, &request),
        }
    }

    fn ask(&mut self, id: u64, fact: Fact) {
        self.report(fact);
        self.answer(id, &Reply::Done);
    }

    fn set_role(&mut self, id: u64, role: Role) {
        if let Some(client) = self.client(id) {
            client.role = role;
        }
    }

    fn attach(&mut self, id: u64, streams: AttachStreams) {
        let Some(pid) = self.session(TASK).map(|session| session.pid) else {
            return self.refuse(id, FailureKind::Conflict, "the task is not running at the moment");
        };
        self.join(id, TASK, streams);
        self.answer(id, &Reply::Attached { pid });
    }

    pub(super) fn join(&mut self, id: u64, session: u64, streams: AttachStreams) {
        self.set_role(id, Role::Attached { session, output: streams.output, stdin: streams.stdin });
        if let (Some(size), Some(session)) = (streams.size, self.session(session)) {
            session.resize(size);
        }
    }

    fn exec(&mut self, id: u64, request: &ExecRequest) {
        match self.run_exec(request) {
            Ok((session, pid)) => {
                match request.attach {
                    Some(streams) => self.join(id, session, streams),
                    None => self.client(id).into_iter().for_each(|client| client.closing = true),
                }
                self.answer(id, &Reply::Attached { pid });
            }
            Err(failure) => self.answer(id, &Reply::Failed(failure)),
        }
    }

    fn run_exec(&mut self, request: &ExecRequest) -> Result<(u64, i32), Failure> {
        if self.phase != Phase::Live || self.session(TASK).is_none() {
            return Err(Failure::new(FailureKind::Conflict, "the task is not running"));
        }
        let user = request.process.user();
        let wish = StdioWish {
            terminal: request.process.terminal().unwrap_or(false),
            stdin: request.attach.is_some_and(|streams| streams.stdin),
            owner: (user.uid(), user.gid()),
        };
        let (stdio, ends) = session::make_stdio(wish).map_err(|error| stdio_failure(&error))?;
        let process = self.engine.exec(&request.process, stdio)?;
        let (id, pid) = (self.take_id(), process.pid);
        self.sessions.push(Session::new(id, process, ends).map_err(|error| stdio_failure(&error))?);
        Ok((id, pid))
    }
}

fn is_our_user(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream.as_fd())
        .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root())
}
