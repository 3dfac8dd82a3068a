//! Requests that cost the kernel as much for one as for many: whoever comes while one is under way is served by the next,
//! together with all others who came.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};

use cofferdam_cni::{Code, PluginError};
use cofferdam_linux::namespace::current_netns;

/// Threads of this process that want the same kind of thing, one group a network namespace.
pub(crate) struct Together<T: 'static> {
    turns: Mutex<Turns<T>>,
    over: Condvar,
    /// What serves many, and says what became of each.
    serve: fn(&[T]) -> Vec<Result<(), PluginError>>,
}

struct Turns<T> {
    /// By the namespace's inode.
    groups: Option<HashMap<u64, Group<T>>>,
    ticket: u64,
}

struct Group<T> {
    waiting: Vec<(u64, T)>,
    done: HashMap<u64, Result<(), PluginError>>,
    is_served: bool,
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), done: HashMap::new(), is_served: false }
    }
}

impl<T: Send> Together<T> {
    pub(crate) const fn new(serve: fn(&[T]) -> Vec<Result<(), PluginError>>) -> Self {
        Self { turns: Mutex::new(Turns { groups: None, ticket: 0 }), over: Condvar::new(), serve }
    }

    /// Asks, and waits for what became of it.
    pub(crate) fn ask(&self, what: T) -> Result<(), PluginError> {
        let place = place()?;
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.ticket += 1;
        let ticket = turns.ticket;
        turns.group(place).waiting.push((ticket, what));
        loop {
            let group = turns.group(place);
            if let Some(result) = group.done.remove(&ticket) {
                turns.forget_if_empty(place);
                return result;
            }
            if group.is_served {
                turns = self.over.wait(turns).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            group.is_served = true;
            let (tickets, wanted): (Vec<u64>, Vec<T>) =
                std::mem::take(&mut group.waiting).into_iter().unzip();
            drop(turns);
            let results = (self.serve)(&wanted);
            turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            let group = turns.group(place);
            group.is_served = false;
            group.done.extend(tickets.into_iter().zip(results));
            self.over.notify_all();
        }
    }
}

impl<T> Turns<T> {
    fn group(&mut self, place: u64) -> &mut Group<T> {
        self.groups.get_or_insert_default().entry(place).or_default()
    }

    fn forget_if_empty(&mut self, place: u64) {
        let group = self.group(place);
        if group.done.is_empty() && group.waiting.is_empty() && !group.is_served {
            self.groups.get_or_insert_default().remove(&place);
        }
    }
}

/// The same answer for everybody.
pub(crate) fn all<T>(wanted: &[T], result: &Result<(), PluginError>) -> Vec<Result<(), PluginError>> {
    wanted.iter().map(|_| result.clone()).collect()
}

/// Which network namespace the calling thread is in.
fn place() -> Result<u64, PluginError> {
    let inode = current_netns().and_then(rustix::fs::fstat).map(|stat| stat.st_ino);
    inode.map_err(|errno| {
        PluginError::new(Code::INVALID_NETNS, format!("cannot look at the namespace: {errno}"))
    })
}
