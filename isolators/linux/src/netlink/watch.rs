//! Waiting for a link to change, without asking again and again: each question takes the kernel's one lock for links.

use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::{Error, Link, Next, Socket, parse};

/// `RTMGRP_LINK`.
const LINKS: u32 = 1;

/// A socket that hears of every change of a link of the namespace from the moment that it was opened.
#[derive(Debug)]
pub struct LinkWatch(Socket);

impl LinkWatch {
    /// Opens it in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Socket::listening(None, LINKS).map(Self)
    }

    /// Waits until the kernel has told a state of link number `index` that is `done`, or until `limit` is over.
    ///
    /// Only changes since the watch was opened are heard. If there were more than the kernel keeps for us, it is over at once
    /// and the state is unknown: `false`, too.
    pub fn wait(&mut self, index: u32, limit: Duration, done: impl Fn(&Link) -> bool) -> Result<bool, Error> {
        let operation = || format!("wait for link number {index}");
        let deadline = Instant::now() + limit;
        let mut found = false;
        while !found {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(left))
                .map_err(|errno| Error::new(operation(), errno))?;
            let heard = self.0.receive_until(|received| {
                // What we cannot read is about something else.
                if let Ok(RouteNetlinkMessage::NewLink(message)) = parse(&received)
                    && message.header.index == index
                    && done(&Link::from(message))
                {
                    found = true;
                }
                Ok(Next::Stop)
            });
            match heard {
                Ok(()) => {}
                Err(Errno::TIMEDOUT | Errno::NOBUFS) => return Ok(false),
                Err(errno) => return Err(Error::new(operation(), errno)),
            }
        }
        Ok(true)
    }
}
