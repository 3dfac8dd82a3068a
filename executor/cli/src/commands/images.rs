//! `cofferdam images`, also `cofferdam image ls`.

use std::process::ExitCode;
use std::str::FromStr;

use cofferdam_executor::request::size::show_bytes;
use cofferdam_executor::request::span::show_span;
use cofferdam_executor::{Executor, Image, ImageRef, Timestamp};
use serde_json::{Value, json};

use super::image::inspect::summary;
use super::{Outcome, print_json};
use crate::failure::Failure;
use crate::table::Table;
use crate::template::{Shape, fill};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show digests of manifests too
    #[arg(long)]
    digests: bool,
    /// Ids and digests as they are
    #[arg(long)]
    no_trunc: bool,
    /// No line of titles
    #[arg(short, long)]
    noheading: bool,
    /// Taken for docker's sake: there are no hidden images
    #[arg(short, long)]
    all: bool,
    /// Only images of which this holds: reference=PATTERN, label=KEY[=VALUE] or dangling=true|false; of several, all must
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// How to print: table, json, or a template such as '{{.repository}}:{{.tag}}'
    #[arg(long, default_value = "table")]
    format: Shape,
    /// Only images of that name; without a tag, of any
    name: Option<String>,
}

/// What must hold of an image that is listed.
#[derive(Clone, Debug)]
enum Filter {
    Reference(String),
    Label(String, Option<String>),
    Dangling(bool),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        match text.split_once('=') {
            Some(("reference", pattern)) => Ok(Filter::Reference(pattern.to_owned())),
            Some(("label", label)) => Ok(match label.split_once('=') {
                Some((key, value)) => Filter::Label(key.to_owned(), Some(value.to_owned())),
                None => Filter::Label(label.to_owned(), None),
            }),
            Some(("dangling", "true")) => Ok(Filter::Dangling(true)),
            Some(("dangling", "false")) => Ok(Filter::Dangling(false)),
            _ => Err("expected reference=PATTERN, label=KEY[=VALUE] or dangling=true|false".to_owned()),
        }
    }
}

impl Filter {
    fn pattern(&self) -> Option<&str> {
        match self {
            Filter::Reference(pattern) => Some(pattern),
            _ => None,
        }
    }

    fn holds(&self, image: &Image) -> bool {
        match self {
            Filter::Dangling(wanted) => image.names.is_empty() == *wanted,
            Filter::Reference(pattern) => image.names.iter().any(|name| is_meant(pattern, name)),
            Filter::Label(key, value) => {
                let labels = image.config.config().as_ref().and_then(|config| config.labels().as_ref());
                let found = labels.and_then(|labels| labels.get(key));
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
        }
    }
}

/// Whether a pattern is that of a name, in full or as people write it, with its tag or without.
fn is_meant(pattern: &str, name: &ImageRef) -> bool {
    let without_tag = |text: String| match text.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before.to_owned(),
        _ => text,
    };
    let full = name.to_string();
    let hub = full.strip_prefix("docker.io/").unwrap_or(&full).to_owned();
    [name.familiar(), hub, full]
        .into_iter()
        .any(|text| matches(pattern, &text) || matches(pattern, &without_tag(text)))
}

/// `*` is any text, `?` any character.
fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern_at, mut text_at, mut star) = (0, 0, None);
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    while text_at < text.len() {
        match pattern.get(pattern_at) {
            Some('*') => {
                star = Some((pattern_at, text_at));
                pattern_at += 1;
            }
            Some(one) if *one == '?' || *one == text[text_at] => {
                pattern_at += 1;
                text_at += 1;
            }
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    (pattern_at, text_at) = (*at + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[pattern_at..].iter().all(|one| *one == '*')
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let mut images = executor.images()?.images().map_err(|error| Failure::plain(error.to_string()))?;
    images.retain(|image| args.filter.iter().all(|filter| filter.holds(image)));
    if let Some(name) = &args.name {
        images.retain(|image| image.names.iter().any(|own| is_meant(name, own)));
    }
    // Where names are asked for, a line is a name's, and there are no others.
    let is_shown = |name: &ImageRef| {
        let patterns = || args.filter.iter().filter_map(Filter::pattern).chain(args.name.as_deref());
        patterns().next().is_none() || patterns().any(|pattern| is_meant(pattern, name))
    };
    let mut table = Table::new(&if args.digests {
        vec!["NAME", "DIGEST", "IMAGE ID", "PLATFORM", "STORED", "SIZE"]
    } else {
        vec!["NAME", "IMAGE ID", "PLATFORM", "STORED", "SIZE"]
    });
    for image in &images {
        match &args.format {
            _ if args.quiet && args.no_trunc => println!("{}", image.id),
            _ if args.quiet => println!("{}", image.id.short()),
            Shape::Json => print_json(&summary(image))?,
            Shape::Template(pieces) => {
                for fields in named(image, &is_shown) {
                    println!("{}", crate::escape::escape(&fill(pieces, &fields)?));
                }
            }
            Shape::Table => rows(image, args, &is_shown, &mut table),
        }
    }
    if args.format == Shape::Table && !args.quiet {
        table.print(!args.noheading);
    }
    Ok(ExitCode::SUCCESS)
}

/// What a template can say of an image, once for each of its names.
fn named(image: &Image, is_shown: &dyn Fn(&ImageRef) -> bool) -> Vec<Value> {
    let stored = show_stored(image);
    let fields = |repository: String, tag: &str| {
        let mut fields = summary(image);
        fields["repository"] = json!(repository);
        fields["tag"] = json!(tag);
        fields["created_since"] = json!(stored);
        fields["size"] = json!(show_bytes(image.size_bytes));
        fields
    };
    if image.names.is_empty() {
        return vec![fields("<none>".to_owned(), "<none>")];
    }
    let shown = image.names.iter().filter(|name| is_shown(name));
    shown.map(|name| fields(name.name(), name.tag().unwrap_or("<none>"))).collect()
}

fn rows(image: &Image, args: &Args, is_shown: &dyn Fn(&ImageRef) -> bool, table: &mut Table) {
    let shown = image.names.iter().filter(|name| is_shown(name));
    let mut names: Vec<_> = shown.map(ToString::to_string).collect();
    if image.names.is_empty() {
        names.push("<none>".to_owned());
    }
    for name in names {
        let digest = args.digests.then(|| image.digest.to_string());
        let id = if args.no_trunc { image.id.to_string() } else { image.id.short().to_owned() };
        let rest = [id, show_platform(image), show_stored(image), show_bytes(image.size_bytes)];
        table.row([name].into_iter().chain(digest).chain(rest));
    }
}

fn show_platform(image: &Image) -> String {
    if image.artifact.is_some() { "artifact".to_owned() } else { image.platform.to_string() }
}

fn show_stored(image: &Image) -> String {
    let stored = Timestamp::from_unix_seconds(i64::try_from(image.stored_at).unwrap_or_default());
    format!("{} ago", show_span(Timestamp::now().since(stored)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_meant_in_full_or_short_with_or_without_tag() {
        let name = ImageRef::parse("docker.io/library/busybox:1.36").unwrap();
        for pattern in [
            "busybox",
            "busybox:1.36",
            "library/busybox",
            "docker.io/library/busybox",
            "busy*",
            "*/busybox:1.*",
            "b?sybox",
        ] {
            assert!(is_meant(pattern, &name), "{pattern}");
        }
        for pattern in ["busy", "busybox:1.3", "box", "?", "docker.io/busybox"] {
            assert!(!is_meant(pattern, &name), "{pattern}");
        }
    }

    #[test]
    fn filters_are_known_or_refused() {
        for text in ["reference=a*", "label=a", "label=a=b", "dangling=true"] {
            text.parse::<Filter>().unwrap();
        }
        for text in ["", "nosuch=1", "dangling=maybe", "reference"] {
            text.parse::<Filter>().unwrap_err();
        }
    }
}
