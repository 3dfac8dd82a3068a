//! `cofferdam image verify`.

use std::process::ExitCode;

use cofferdam_executor::request::size::show_bytes;
use cofferdam_executor::{Damaged, Executor, Finding, Verdict, VerifyOptions};

use super::find;
use crate::args::Format;
use crate::commands::{Outcome, print_json};
use crate::escape::escape_line;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave what is damaged as it is
    #[arg(long)]
    keep: bool,
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Images; all without it
    images: Vec<String>,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let store = executor.images()?;
    let mut options = VerifyOptions::default();
    for name in &args.images {
        options.images.push(find(&store, name)?.digest);
    }
    if args.keep {
        options.damaged = Damaged::Keep;
    }
    let verified = store.verify(&options).map_err(|error| Failure::plain(error.to_string()))?;
    if args.format == Format::Json {
        print_json(&verified)?;
    } else {
        for finding in &verified.findings {
            println!("{}", tell(finding));
        }
        let (layers, blobs) = (verified.layers, verified.blobs);
        println!("{layers} layers and {blobs} documents looked at, {}", show_bytes(verified.bytes));
    }
    store.settle().map_err(|error| Failure::plain(error.to_string()))?;
    Ok(if verified.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(finding: &Finding) -> String {
    let what = match &finding.verdict {
        Verdict::Discarded => "damaged, discarded: pull or import its images again".to_owned(),
        Verdict::StillThere(users) if users.is_empty() => "damaged, left as it is".to_owned(),
        Verdict::StillThere(users) => {
            format!("damaged, but in use by {}: remove those and verify again", users.join(", "))
        }
        Verdict::Missing => "missing: pull or import its images again".to_owned(),
        _ => "cannot be verified".to_owned(),
    };
    let images: Vec<_> = finding.images.iter().map(|image| image.short().to_owned()).collect();
    let line = format!("{} (images {}): {what}: {}", finding.path, images.join(", "), finding.reason);
    escape_line(&line)
}
