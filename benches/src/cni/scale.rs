//! What a host costs that is full: a thousand attachments, sixty thousand leases.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cofferdam_cni::{NetnsFate, NetworkList};
use serde_json::json;

use super::host::{Container, Contestant, Cycle, Host};
use crate::statistics::Samples;

/// How often each is measured.
const ROUNDS: usize = 21;
/// How long the kernel may take to come to rest after a crowd came: each link looks for neighbours and routers for half a
/// minute, and the bridge sends every word of each to all the others.
const SETTLE: Duration = Duration::from_secs(90);
/// What the kernel does besides when it is at rest, in hundredths of a second a second.
const AT_REST: u64 = 4;
/// Interfaces of one container of the crowd: a namespace each would take longer than what is measured.
const INTERFACES: usize = 50;

/// The same, several times.
#[derive(Debug)]
pub struct Measured {
    /// ADD.
    pub add: Samples,
    /// DEL.
    pub del: Samples,
    /// The processors' time of ADD.
    pub add_cpu: Samples,
}

/// The same attachment on an empty host and on a full one.
#[derive(Debug)]
pub struct Crowd {
    /// Alone.
    pub empty: Measured,
    /// Among others.
    pub full: Measured,
}

/// An attachment among many leases.
#[derive(Debug)]
pub struct Leases {
    /// The first of a process.
    pub first: Cycle,
    /// Every later one.
    pub later: Measured,
}

/// One comes and goes alone, then among `count` others.
pub fn crowd(host: &Host, count: usize) -> Result<Crowd> {
    let contestant = Contestant::InProcess;
    host.cycle(&contestant)?;
    let empty = measure(|| host.cycle(&contestant))?;
    let (caller, network) = (host.caller(&contestant)?, host.network(&contestant)?);
    let containers: Vec<Container> =
        (0..count.div_ceil(INTERFACES)).map(|at| host.container(&format!("c{at}"))).collect::<Result<_>>()?;
    let mut ports = 20_000..;
    for number in 0..count {
        let container = &containers[number / INTERFACES];
        let attachment = container.attachment(&format!("eth{}", number % INTERFACES), ports.next())?;
        caller.attach(&network, &attachment).with_context(|| format!("attachment {number}"))?;
    }
    settle()?;
    let full = measure(|| host.cycle(&contestant))?;
    // They end with the namespaces.
    Ok(Crowd { empty, full })
}

/// One comes and goes in a network with `count` leases of others.
pub fn leases(host: &Host, count: usize) -> Result<Leases> {
    let data = host.directory().join("leases");
    let list = json!({ "cniVersion": "1.1.0", "name": "many", "plugins": [{ "type": "host-local",
        "ipam": { "type": "host-local", "dataDir": data, "ranges": [[{ "subnet": "10.0.0.0/8" }]] } }] });
    let network = NetworkList::parse(&list.to_string(), None)?;
    let folder = data.join("many");
    std::fs::create_dir_all(&folder)?;
    let first_address = u32::from(Ipv4Addr::new(10, 0, 0, 2));
    for (number, address) in (first_address..).take(count).enumerate() {
        std::fs::write(
            folder.join(Ipv4Addr::from(address).to_string()),
            format!("container-{number}\r\neth0"),
        )?;
    }
    // As whoever gave them out left it.
    let last = Ipv4Addr::from(first_address + u32::try_from(count).unwrap_or(1) - 1);
    std::fs::write(folder.join("last_reserved_ip.0"), last.to_string())?;
    let container = host.container("one")?;
    let attachment = container.attachment("eth0", None)?;
    let caller = host.caller(&Contestant::InProcess)?;
    let time = |work: &mut dyn FnMut() -> Result<()>| -> Result<Duration> {
        let begun = Instant::now();
        work()?;
        Ok(begun.elapsed())
    };
    let mut add = || Ok(caller.attach(&network, &attachment).map(drop)?);
    let mut del =
        || Ok(caller.detach(&network.name, &container.id, &attachment.if_name, NetnsFate::Stays)?);
    let mut cycle = || {
        let add = time(&mut add)?;
        Ok(Cycle { add, del: time(&mut del)?, ..Cycle::default() })
    };
    Ok(Leases { first: cycle()?, later: measure(cycle)? })
}

/// Waits until the kernel is at rest: what is measured is a crowd that is there, not one that comes.
fn settle() -> Result<()> {
    let interrupts = || -> Result<u64> {
        let text = std::fs::read_to_string("/proc/stat")?;
        // `cpu user nice system idle iowait irq softirq …`, proc_stat(5).
        let spent = text.split_whitespace().nth(7).context("/proc/stat has no time of soft interrupts")?;
        Ok(spent.parse()?)
    };
    let begun = Instant::now();
    let mut before = interrupts()?;
    while begun.elapsed() < SETTLE {
        std::thread::sleep(Duration::from_secs(1));
        let now = interrupts()?;
        if now - before <= AT_REST {
            break;
        }
        before = now;
    }
    Ok(())
}

fn measure(mut cycle: impl FnMut() -> Result<Cycle>) -> Result<Measured> {
    let cycles: Vec<Cycle> = (0..ROUNDS).map(|_| cycle()).collect::<Result<_>>()?;
    let of = |part: fn(&Cycle) -> Duration| Samples::new(cycles.iter().map(part).collect());
    Ok(Measured {
        add: of(|cycle| cycle.add),
        del: of(|cycle| cycle.del),
        add_cpu: of(|cycle| cycle.add_cpu),
    })
}
