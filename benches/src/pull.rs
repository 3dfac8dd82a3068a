//! `cofferdam-benches pull`: the same images pulled by cofferdam and its peers from one registry, in turns, beside the floor.

mod floor;
mod images;
mod plot;
mod pullers;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::launch::Record;
use crate::record;
use crate::statistics::Samples;
use images::{Made, SHAPES};
use pullers::{Cost, Puller};

/// What is asked for.
#[derive(Debug)]
pub struct Options {
    /// Pulls of each image by each puller.
    pub rounds: u32,
    /// Images or pullers; all of a kind of which none is named.
    pub only: Vec<String>,
    /// Whether the result goes to `benches/BUDGETS.md` and `benches/pull.svg`.
    pub record: Record,
}

impl Options {
    /// Without anything said.
    pub fn usual() -> Options {
        Options { rounds: 5, only: Vec::new(), record: Record::No }
    }

    fn wants(&self, name: &str, all: &[&str]) -> bool {
        let named = self.only.iter().any(|only| all.contains(&only.as_str()));
        !named || self.only.iter().any(|only| only == name)
    }
}

/// Everything that was measured of one image.
struct Measured {
    made: Made,
    floor: (Duration, Duration),
    costs: Vec<(Puller, Vec<Cost>)>,
    /// Of a second pull, by cofferdam, of what is there.
    warm: Option<Duration>,
}

/// Measures and prints. Needs root; podman's mounts stay in a namespace of this process.
pub fn run(options: &Options) -> Result<()> {
    hide_mounts()?;
    let made = make(options)?;
    let address = server::start(&made)?;
    let scratch = tempfile::Builder::new().prefix("cofferdam-pull-").tempdir_in("/var/tmp")?;
    let mut all = Vec::new();
    let mut rates = String::new();
    for image in made {
        let measured = floor::measure(&image, scratch.path())?;
        rates = measured.describe();
        println!("{}: {}; {rates}", image.shape.name, image.shape.note);
        let floor = measured.floor(&image);
        all.push(measure(options, image, floor, &address, scratch.path())?);
    }
    let table = table(&all, &rates);
    println!("\n{table}");
    if options.record == Record::Yes {
        record::append(&table)?;
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("pull.svg");
        std::fs::write(&path, picture(&all)).with_context(|| format!("writing {}", path.display()))?;
    }
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
    let folder = std::env::current_exe()?.with_file_name("pull-images-1");
    let wanted = SHAPES.iter().filter(|shape| options.wants(shape.name, &names));
    wanted.map(|shape| images::make(*shape, &folder)).collect()
}

fn measure(
    options: &Options,
    made: Made,
    floor: (Duration, Duration),
    address: &str,
    scratch: &Path,
) -> Result<Measured> {
    let names: Vec<&str> = Puller::ALL.iter().map(|puller| puller.name()).collect();
    let image = format!("{address}/bench/{}:latest", made.shape.name);
    let mut costs: Vec<(Puller, Vec<Cost>)> = Vec::new();
    for puller in Puller::ALL.into_iter().filter(|puller| options.wants(puller.name(), &names)) {
        match puller.available() {
            Ok(()) => costs.push((puller, Vec::new())),
            Err(reason) => println!("skipped: {}: {reason:#}", puller.name()),
        }
    }
    let mut warm = Vec::new();
    for round in 0..options.rounds {
        for (puller, costs) in &mut costs {
            let folder = scratch.join(format!("{}-{round}", puller.name()));
            std::fs::create_dir(&folder)?;
            let cost = puller.pull(&image, &folder)?;
            println!(
                "  {:12} {:7.3} s, {:6.2} s of processors",
                puller.name(),
                cost.wall.as_secs_f64(),
                cost.cpu.as_secs_f64()
            );
            costs.push(cost);
            if *puller == Puller::Cofferdam {
                warm.push(puller.pull(&image, &folder)?.wall);
            }
            std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
            // What is written back later must not slow whoever comes next.
            rustix::fs::sync();
        }
    }
    let warm = (!warm.is_empty()).then(|| Samples::new(warm).percentile(50));
    Ok(Measured { made, floor, costs, warm })
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> Duration) -> Duration {
    Samples::new(costs.iter().map(of).collect()).percentile(50)
}

fn table(all: &[Measured], rates: &str) -> String {
    let mut table = String::from(
        "| pull | by | runs | p50 s | p50 ÷ floor | processors s | peak MiB | warm ms |\n|---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for measured in all {
        let (floor, cpu) = measured.floor;
        let note = measured.made.shape.note;
        table += &format!(
            "| {note} | floor | | {:.3} | 1.00 | {:.2} | | |\n",
            floor.as_secs_f64(),
            cpu.as_secs_f64()
        );
        for (puller, costs) in &measured.costs {
            let wall = median(costs, |cost| cost.wall);
            let cpu = median(costs, |cost| cost.cpu);
            let peak = costs.iter().map(|cost| cost.peak_kib).max().unwrap_or(0) / 1024;
            let peak = if peak > 0 { peak.to_string() } else { String::new() };
            let own = measured.warm.filter(|_| *puller == Puller::Cofferdam);
            let warm = own.map_or(String::new(), |warm| format!("{:.1}", warm.as_secs_f64() * 1000.0));
            table += &format!(
                "| {note} | {} | {} | {:.3} | {:.2} | {:.2} | {peak} | {warm} |\n",
                puller.name(),
                costs.len(),
                wall.as_secs_f64(),
                wall.as_secs_f64() / floor.as_secs_f64(),
                cpu.as_secs_f64(),
            );
        }
    }
    table
        + &format!(
            "\n- the floor's rates: {rates}\n- from an in-process registry on loopback, on the same processors\n"
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
            floor: measured.floor.0.as_secs_f64(),
        })
        .collect();
    plot::draw(
        &groups,
        &format!("median seconds to pull and unpack; dashed: the floor; {}", record::machine()),
    )
}
