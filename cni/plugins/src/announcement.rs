//! Telling a network whose an address is now. Whoever still knows the container that had it before would send to nobody for half
//! a minute.
//!
//! The kernel's own announcement (arp_notify) goes out when a link is set up, before the bridge has opened the port, and
//! reaches nobody. So it is made to announce once more. That is a frame to every port of the bridge: among a thousand it takes
//! longer than all the rest of an attachment, and the kernel holds the lock of all links meanwhile. So nobody waits for it: it is
//! done on a thread of its own, when the rest of the attachment may be expected to be made.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder, JoinHandle};
use std::time::Duration;

use cofferdam_linux::netlink::{Link, LinkChange, Socket};

/// What is left of an attachment when its link passes frames takes a tenth of this.
const PATIENCE: Duration = Duration::from_millis(10);

static UNDER_WAY: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Announces the addresses of a link that has carrier. The socket is of the link's namespace.
pub(crate) fn begin(mut socket: Socket, link: &Link) {
    let index = link.index;
    let announce = move || {
        // Shorter if somebody waits for the end, see below.
        thread::park_timeout(PATIENCE);
        // A hardware address that is set is announced, whether or not it is another; somebody may have given the link one
        // meanwhile. A link that is gone has no addresses.
        let Ok(Link { mac: Some(mac), .. }) = socket.link_by_index(index) else { return };
        drop(socket.change_link(index, &LinkChange { mac: Some(mac), ..LinkChange::default() }));
    };
    let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    under_way.retain(|one| !one.is_finished());
    // Who finds no thread any more has other needs.
    under_way.extend(Builder::new().name("announce".into()).spawn(announce));
}

/// Waits for the announcements that are under way. For a program that ends: its threads would end with it.
pub fn finish_announcements() {
    let under_way = std::mem::take(&mut *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner));
    for one in under_way {
        one.thread().unpark();
        // One that panicked has nothing to say.
        drop(one.join());
    }
}
