//! What a pull may take, and which of it a run missed. `BUDGETS.md` gives the reasons.

use std::time::Duration;

use super::images::Coder;
use super::{Cost, Measured, Puller, median};

/// Of the image that peers are compared by.
const COMPARED: &str = "three";
/// The longest that it may take.
const WALL: Duration = Duration::from_millis(450);
/// How many times as fast as each peer: into directories, and into EROFS files.
const FASTER: [(Puller, f64); 2] = [(Puller::Cofferdam, 4.0), (Puller::CofferdamErofs, 5.0)];
/// The peers that this is said of.
const PEERS: [Puller; 2] = [Puller::Podman, Puller::Containerd];
/// The least share of the possible speed.
const SHARE: f64 = 0.70;
/// Seconds of processors for a gigabyte, uncompressed; said of images of which the floor does not take more already, as it does
/// of one with nothing but small files.
const GZIP_SECONDS: f64 = 3.6;
const ZSTD_SECONDS: f64 = 2.8;
/// The largest resident memory at default settings.
const PEAK_KIB: u64 = 64 * 1024;
/// The longest pull of what is there.
const WARM: Duration = Duration::from_millis(15);

/// What was measured and is worse than its target, in words. What nobody measured is not missed.
pub(super) fn missed(all: &[Measured]) -> Vec<String> {
    let mut missed = Vec::new();
    for measured in all {
        let mut at_most = |by: Puller, what: &str, found: f64, limit: f64| {
            if found > limit {
                let note = measured.made.shape.note;
                missed
                    .push(format!("{note}, {}: {what} {found:.2}, at most {limit:.2} is wanted", by.name()));
            }
        };
        for (by, own) in &measured.own {
            at_most(*by, "a pull of what is there, in seconds:", seconds(own.warm), seconds(WARM));
        }
        if let Some(best) = best(measured, Puller::Cofferdam) {
            let ours = Puller::Cofferdam;
            at_most(ours, "times the floor:", best / seconds(measured.floor().0), 1.0 / SHARE);
            let costs = costs(measured, ours);
            let limit = match measured.made.shape.coder {
                Coder::Gzip => GZIP_SECONDS,
                Coder::Zstd => ZSTD_SECONDS,
            };
            let each = |cpu: Duration| seconds(cpu) * 1e9 / measured.made.unpacked_bytes() as f64;
            if each(measured.floor().1) <= limit {
                at_most(ours, "seconds a GB:", each(median(costs, |cost| cost.cpu)), limit);
            }
            let peak = costs.iter().map(|cost| cost.peak_kib).max().unwrap_or(0);
            at_most(ours, "KiB at its peak:", peak as f64, PEAK_KIB as f64);
        }
        if measured.made.shape.name == COMPARED {
            for (ours, factor) in FASTER {
                let Some(best_of_ours) = best(measured, ours) else { continue };
                at_most(ours, "seconds:", best_of_ours, seconds(WALL));
                for peer in PEERS {
                    let Some(theirs) = best(measured, peer) else { continue };
                    let what = format!("seconds, where {} takes {theirs:.2}:", peer.name());
                    at_most(ours, &what, best_of_ours, theirs / factor);
                }
            }
        }
    }
    missed
}

/// The best: the rest is the machine's.
fn best(measured: &Measured, by: Puller) -> Option<f64> {
    costs(measured, by).iter().map(|cost| seconds(cost.wall)).min_by(f64::total_cmp)
}

fn costs(measured: &Measured, by: Puller) -> &[Cost] {
    measured.costs.iter().find(|(puller, _)| *puller == by).map_or(&[], |(_, costs)| costs)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
