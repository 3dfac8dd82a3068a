//! `cofferdam-benches pull`: the same images pulled by cofferdam and its peers from one registry, in turns, beside the floor.

mod counts;
mod disk;
mod floor;
mod images;
mod memory;
mod plot;
mod pullers;
mod server;
mod targets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::launch::Record;
use crate::record;
use crate::statistics::Samples;
pub use counts::{Counts, count, once};
use floor::Rates;
use images::{Made, SHAPES};
use pullers::{Cost, Puller};
use server::Server;

/// What is asked for.
#[derive(Debug)]
pub struct Options {
    /// Pulls of each image by each puller.
    pub rounds: u32,
    /// Images or pullers; all of a kind of which none is named.
    pub only: Vec<String>,
    /// Whether the result goes to `benches/BUDGETS.md` and `benches/pull.svg`.
    pub record: Record,
    /// Whether it is an error when something takes more than it may.
    pub check: bool,
}

impl Options {
    /// Without anything said.
    pub fn usual() -> Options {
        Options { rounds: 5, only: Vec::new(), record: Record::No, check: false }
    }

    fn wants(&self, name: &str, all: &[&str]) -> bool {
        let named = self.only.iter().any(|only| all.contains(&only.as_str()));
        !named || self.only.iter().any(|only| only == name)
    }
}

/// Everything that was measured of one image.
struct Measured {
    made: Made,
    rates: Rates,
    costs: Vec<(Puller, Vec<Cost>)>,
    /// Of what only ours is asked.
    own: Vec<(Puller, Own)>,
}

/// What a program of ours takes beyond what peers are measured by.
struct Own {
    /// Of a second pull of what is there.
    warm: Duration,
    /// System calls of a pull.
    calls: u64,
}

impl Measured {
    /// The least wall and processor time.
    fn floor(&self) -> (Duration, Duration) {
        self.rates.floor(&self.made)
    }
}

/// What the stores of one round take beside the image's files, in multiples of it: blobs that some keep, and what is counted.
const ROUND_COPIES: u64 = 6;

/// Measures and prints. Needs root; podman's mounts stay in a namespace of this process.
pub fn run(options: &Options) -> Result<()> {
    hide_mounts()?;
    let made = make(options)?;
    let server = server::start(&made)?;
    let scratch = tempfile::Builder::new().prefix("cofferdam-pull-").tempdir_in("/var/tmp")?;
    let unpacked: u64 = made.iter().map(Made::unpacked_bytes).sum();
    disk::check_room(scratch.path(), unpacked * ROUND_COPIES * u64::from(options.rounds))?;
    disk::settle(scratch.path())?;
    let mut all = Vec::new();
    for image in made {
        let folder = scratch.path().join(image.shape.name);
        std::fs::create_dir(&folder)?;
        let rates = floor::measure(&image, &folder)?;
        println!("{}: {}; {}", image.shape.name, image.shape.note, rates.describe());
        all.push(measure(options, image, rates, &server, &folder)?);
    }
    let table = table(&all);
    println!("\n{table}");
    if options.record == Record::Yes {
        record::append(&table)?;
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("pull.svg");
        std::fs::write(&path, picture(&all)).with_context(|| format!("writing {}", path.display()))?;
    }
    scratch.close().context("removing what was pulled")?;
    let missed = targets::missed(&all);
    ensure!(!options.check || missed.is_empty(), "missed:\n  {}", missed.join("\n  "));
    Ok(())
}

/// podman leaves a mount behind in its folder.
fn hide_mounts() -> Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    const CLONE_NEWNS: u64 = 0x0002_0000;
    cofferdam_linux::process::unshare(CLONE_NEWNS).context("a mount namespace of its own")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("private mounts")
}

/// Made once and kept: compressing them takes longer than pulling.
fn make(options: &Options) -> Result<Vec<Made>> {
    let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    let folder = std::env::current_exe()?.with_file_name("pull-images-2");
    let wanted = SHAPES.iter().filter(|shape| options.wants(shape.name, &names));
    wanted.map(|shape| images::make(*shape, &folder)).collect()
}

/// Everybody in turns. What was pulled stays where it is until all is measured: see [`disk`].
fn measure(options: &Options, made: Made, rates: Rates, server: &Server, scratch: &Path) -> Result<Measured> {
    let names: Vec<&str> = Puller::ALL.iter().map(|puller| puller.name()).collect();
    let image = server.image(made.shape.name);
    let mut costs: Vec<(Puller, Vec<Cost>)> = Vec::new();
    for puller in Puller::ALL.into_iter().filter(|puller| options.wants(puller.name(), &names)) {
        match puller.available(made.shape.coder) {
            Ok(()) => costs.push((puller, Vec::new())),
            Err(reason) => println!("skipped: {}: {reason:#}", puller.name()),
        }
    }
    let folder_of = |puller: Puller, round: &str| {
        let folder = scratch.join(format!("{}-{round}", puller.name()));
        // What was written before must not be written back while the next one is measured.
        rustix::fs::sync();
        std::fs::create_dir(&folder).map(|()| folder)
    };
    let mut warm: Vec<(Puller, Duration)> = Vec::new();
    for round in 0..options.rounds {
        for (puller, costs) in &mut costs {
            let folder = folder_of(*puller, &round.to_string())?;
            memory::touch();
            let cost = puller.pull(&image, &folder)?;
            let (wall, cpu) = (cost.wall.as_secs_f64(), cost.cpu.as_secs_f64());
            println!("  {:15} {wall:7.3} s, {cpu:6.2} s of processors", puller.name());
            costs.push(cost);
            if puller.backend().is_some() {
                warm.push((*puller, puller.pull(&image, &folder)?.wall));
            }
        }
    }
    let mut own = Vec::new();
    for (puller, _) in costs.iter().filter(|(puller, _)| puller.backend().is_some()) {
        let times = warm.iter().filter(|(by, _)| by == puller).map(|(_, wall)| *wall).collect();
        let calls = puller.count_calls(&image, &folder_of(*puller, "traced")?)?;
        own.push((*puller, Own { warm: Samples::new(times).percentile(50), calls }));
    }
    Ok(Measured { made, rates, costs, own })
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> Duration) -> Duration {
    Samples::new(costs.iter().map(of).collect()).percentile(50)
}

fn table(all: &[Measured]) -> String {
    let mut table = String::from(
        "| pull | by | runs | p50 s | best s | of the possible speed | processors s | s a GB | registry s | peak MiB | warm ms | calls a file |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut notes = String::new();
    for measured in all {
        let note = measured.made.shape.note;
        let gigabytes = measured.made.unpacked_bytes() as f64 / 1e9;
        let mut row = |by: &str, runs: &str, [wall, best, cpu]: [Duration; 3], rest: [String; 4]| {
            let [wall, best, cpu] = [wall, best, cpu].map(|time| time.as_secs_f64());
            let share = 100.0 * measured.floor().0.as_secs_f64() / best;
            let each = cpu / gigabytes;
            let rest = rest.join(" | ");
            table += &format!(
                "| {note} | {by} | {runs} | {wall:.3} | {best:.3} | {share:.0} % | {cpu:.2} | {each:.2} | {rest} |\n"
            );
        };
        let (wall, cpu) = measured.floor();
        row("floor", "", [wall, wall, cpu], Default::default());
        for (puller, costs) in &measured.costs {
            let own = measured.own.iter().find(|(by, _)| by == puller).map(|(_, own)| own);
            let peak = costs.iter().map(|cost| cost.peak_kib).max().unwrap_or(0) / 1024;
            let peak = if peak > 0 { peak.to_string() } else { String::new() };
            let warm = own.map_or(String::new(), |own| format!("{:.1}", own.warm.as_secs_f64() * 1000.0));
            let files = measured.made.shape.all_files() as f64;
            let calls = own.map_or(String::new(), |own| format!("{:.1}", own.calls as f64 / files));
            let registry = format!("{:.2}", median(costs, |cost| cost.registry_cpu).as_secs_f64());
            let best = costs.iter().map(|cost| cost.wall).min().unwrap_or_default();
            let times = [median(costs, |cost| cost.wall), best, median(costs, |cost| cost.cpu)];
            row(puller.name(), &costs.len().to_string(), times, [registry, peak, warm, calls]);
        }
        notes += &format!("- the floor's rates, {note}: {}\n", measured.rates.describe());
    }
    format!(
        "{table}\n{notes}- of the possible speed: the best, since others use this machine's host too\n\
         - from an in-process registry on loopback, on the same processors (registry s); calls: everything that strace \
         counts of a pull, by the number of files\n"
    )
}

fn picture(all: &[Measured]) -> String {
    let groups: Vec<plot::Group> = all
        .iter()
        .map(|measured| plot::Group {
            title: measured.made.shape.note.to_owned(),
            bars: measured
                .costs
                .iter()
                .map(|(puller, costs)| (puller.name(), median(costs, |cost| cost.wall).as_secs_f64()))
                .collect(),
            floor: measured.floor().0.as_secs_f64(),
        })
        .collect();
    plot::draw(
        &groups,
        &format!("median seconds to pull and unpack; dashed: the floor; {}", record::machine()),
    )
}
