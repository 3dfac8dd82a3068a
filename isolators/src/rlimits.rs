//! Resource limits. runtime-spec config.md, "rlimits"; setrlimit(2).

use cofferdam_plan::{Builder, HostFeatures, Limit, Op, Refusal, Stage};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType};

use crate::compile::Context;

/// CAP_SYS_RESOURCE: may raise hard limits.
const SYS_RESOURCE: u32 = 24;

/// One step a limit, before any capability is given up.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let limits = context.process().and_then(|process| process.rlimits().as_deref()).unwrap_or_default();
    add(limits, context.host, builder)
}

/// Adds the limits of a process.
pub fn add(limits: &[PosixRlimit], host: &HostFeatures, builder: &mut Builder) -> Result<(), Refusal> {
    for (index, limit) in limits.iter().enumerate() {
        let pointer = format!("/process/rlimits/{index}");
        if limits[..index].iter().any(|earlier| earlier.typ() == limit.typ()) {
            return Err(Refusal::invalid(pointer, format!("{} is listed twice", limit.typ())));
        }
        let resource = number(limit.typ());
        let (mut soft, mut hard) = (limit.soft(), limit.hard());
        if soft > hard {
            return Err(Refusal::invalid(
                pointer,
                format!("the soft limit {soft} is above the hard limit {hard}"),
            ));
        }
        let ceiling = host.hard_limits.get(resource as usize).copied().unwrap_or(u64::MAX);
        if hard > ceiling && !host.holds(SYS_RESOURCE) {
            builder.warn(format!(
                "{pointer}: {} {hard} is above this process's own hard limit {ceiling}, and raising it needs \
                 CAP_SYS_RESOURCE: {ceiling} is used",
                limit.typ()
            ));
            hard = ceiling;
            soft = soft.min(ceiling);
        }
        builder.step(Stage::Confine, pointer, Op::SetLimit(Limit { resource, soft, hard }));
    }
    Ok(())
}

fn number(kind: PosixRlimitType) -> u32 {
    use PosixRlimitType::*;
    match kind {
        RlimitCpu => 0,
        RlimitFsize => 1,
        RlimitData => 2,
        RlimitStack => 3,
        RlimitCore => 4,
        RlimitRss => 5,
        RlimitNproc => 6,
        RlimitNofile => 7,
        RlimitMemlock => 8,
        RlimitAs => 9,
        RlimitLocks => 10,
        RlimitSigpending => 11,
        RlimitMsgqueue => 12,
        RlimitNice => 13,
        RlimitRtprio => 14,
        RlimitRttime => 15,
    }
}
