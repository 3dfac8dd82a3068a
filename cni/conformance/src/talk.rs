//! Two containers that talk: a connection between them, on which a byte goes forth and back.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam_linux::namespace::{open_netns, with_netns};

use crate::stage::Attached;

/// Containers that do not reach each other within this time never do.
const CONNECT: Duration = Duration::from_secs(2);
/// An answer that takes longer is lost: TCP itself tries again several times within this time.
const ANSWER: Duration = Duration::from_secs(20);
/// Exchanges after the work: what was cut off only then shows in them.
const AFTERWARDS: usize = 16;

/// An open connection.
pub(crate) struct Talk {
    client: TcpStream,
    server: TcpStream,
}

impl Talk {
    /// Connects one container to another; none if they cannot.
    pub(crate) fn between(one: &Attached, two: &Attached) -> Option<Self> {
        let address = address_of(two)?;
        let listener = inside(&two.container.netns, || TcpListener::bind((address, 0)))?;
        let to: SocketAddr = listener.local_addr().ok()?;
        let client = inside(&one.container.netns, || TcpStream::connect_timeout(&to, CONNECT))?;
        let (server, _) = listener.accept().ok()?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(ANSWER)).ok()?;
            stream.set_nodelay(true).ok()?;
        }
        Some(Self { client, server })
    }

    fn exchange(&self) -> io::Result<()> {
        let mut byte = [7];
        (&self.client).write_all(&byte)?;
        (&self.server).read_exact(&mut byte)?;
        (&self.server).write_all(&byte)?;
        (&self.client).read_exact(&mut byte)
    }

    /// Talks while something is done and a little longer; tells how many exchanges there were, or what broke. An error is the
    /// work's.
    pub(crate) fn while_doing<E>(self, work: impl FnOnce() -> Result<(), E>) -> Result<io::Result<usize>, E> {
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let talking = scope.spawn(|| {
                let mut exchanges = 0;
                while !is_done.load(Ordering::Acquire) {
                    self.exchange()?;
                    exchanges += 1;
                }
                (0..AFTERWARDS).try_for_each(|_| self.exchange()).map(|()| exchanges)
            });
            let worked = work();
            is_done.store(true, Ordering::Release);
            let talked = talking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            worked.map(|()| talked)
        })
    }
}

/// The container's address, of the older family if it has both: the newer one's are not usable at once.
fn address_of(attached: &Attached) -> Option<IpAddr> {
    let ips = attached.result["ips"].as_array()?;
    let all = ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok());
    all.min_by_key(IpAddr::is_ipv6)
}

fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> Option<T> {
    let netns = open_netns(netns).ok()?;
    with_netns(netns.as_fd(), work).ok()?.ok()
}
