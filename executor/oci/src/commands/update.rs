//! update: the limits that the command line says, as the `resources` of a configuration.

use std::io::Read;
use std::path::Path;

use cofferdam_runtime::{Change, LinuxResources, bundle};
use serde_json::{Map, Value, json};

use super::Call;
use crate::arguments::Said;
use crate::failed::Failed;

/// Most bytes of resources that are read from standard input.
const INPUT_MAX_BYTES: u64 = 4 << 20;

/// What an option's text is.
#[derive(Clone, Copy)]
enum Figure {
    /// A number.
    Number,
    /// Bytes, with or without a unit; -1 is no limit.
    Bytes,
    /// Text as it is.
    Text,
}

/// Options that stand for a value, and where it is in the resources.
const FIGURES: [(&str, &str, &str, Figure); 16] = [
    ("blkio-weight", "blockIO", "weight", Figure::Number),
    ("cpu-period", "cpu", "period", Figure::Number),
    ("cpu-quota", "cpu", "quota", Figure::Number),
    ("cpu-burst", "cpu", "burst", Figure::Number),
    ("cpu-share", "cpu", "shares", Figure::Number),
    ("cpu-idle", "cpu", "idle", Figure::Number),
    ("cpu-rt-period", "cpu", "realtimePeriod", Figure::Number),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime", Figure::Number),
    ("cpuset-cpus", "cpu", "cpus", Figure::Text),
    ("cpuset-mems", "cpu", "mems", Figure::Text),
    ("memory", "memory", "limit", Figure::Bytes),
    ("memory-reservation", "memory", "reservation", Figure::Bytes),
    ("memory-swap", "memory", "swap", Figure::Bytes),
    ("kernel-memory", "memory", "kernel", Figure::Bytes),
    ("kernel-memory-tcp", "memory", "kernelTCP", Figure::Bytes),
    ("pids-limit", "pids", "limit", Figure::Number),
];

/// runc takes these and does nothing with them.
const WITHOUT_EFFECT: [&str; 2] = ["kernel-memory", "kernel-memory-tcp"];

/// Changes the limits of a container that runs.
pub(crate) fn update(call: &Call<'_>) -> Result<i32, Failed> {
    let (resources, ignored) = Limits::of(call.said).resources().map_err(Failed::new)?;
    call.warn(&ignored);
    let change = Change {
        resources,
        l3_cache_schema: call.said.text("l3-cache-schema"),
        mem_bw_schema: call.said.text("mem-bw-schema"),
    };
    call.warn(&call.global.runtime()?.update(&call.said.id()?, &change)?);
    Ok(0)
}

/// What is to become of the limits of the cgroup.
#[derive(Debug, Default)]
struct Limits {
    resources: Option<String>,
    options: Vec<(&'static str, String)>,
}

impl Limits {
    fn of(said: &Said) -> Self {
        let names = FIGURES.iter().map(|(name, ..)| *name);
        let options = names.filter_map(|name| said.text(name).map(|text| (name, text)));
        Self { resources: said.text("resources"), options: options.collect() }
    }

    /// The change, with options over what a file says; and what is passed over.
    fn resources(&self) -> Result<(LinuxResources, Vec<String>), String> {
        let mut resources = match self.resources.as_deref() {
            None => json!({}),
            Some("-") => read_input()?,
            Some(path) => bundle::read_json(Path::new(path)).map_err(|error| error.to_string())?,
        };
        let mut ignored = Vec::new();
        for (option, text) in self.options.iter().filter(|(_, text)| !text.is_empty()) {
            if WITHOUT_EFFECT.contains(option) {
                ignored.push(format!("--{option} has no effect: the kernel has no such limit any more"));
                continue;
            }
            let Some((_, object, field, figure)) = FIGURES.iter().find(|(name, ..)| name == option) else {
                continue;
            };
            let value = figure.read(text).ok_or_else(|| format!("invalid value for {option}: {text:?}"))?;
            let fields = resources.as_object_mut().ok_or("the resources are no JSON object")?;
            let fields = fields.entry(*object).or_insert_with(|| Value::Object(Map::new()));
            fields
                .as_object_mut()
                .ok_or_else(|| format!("{object} is no JSON object"))?
                .insert((*field).into(), value);
        }
        let resources =
            serde_json::from_value(resources).map_err(|error| format!("the resources: {error}"))?;
        Ok((resources, ignored))
    }
}

fn read_input() -> Result<Value, String> {
    let mut text = String::new();
    std::io::stdin()
        .take(INPUT_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| format!("reading resources from standard input: {error}"))?;
    bundle::parse_json(&text, Path::new("standard input")).map_err(|error| error.to_string())
}

impl Figure {
    fn read(self, text: &str) -> Option<Value> {
        match self {
            Self::Number => text.parse::<i64>().ok().map(Value::from),
            Self::Bytes => bytes(text).map(Value::from),
            Self::Text => Some(Value::from(text)),
        }
    }
}

/// `64m`, `1.5GiB`, `-1`: units are powers of 1024, as everywhere on runc's command line.
fn bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.to_ascii_lowercase();
    let letters = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(letters);
    let unit = unit.trim_start();
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << power);
    }
    let bytes = number.parse::<f64>().ok()? * (1_i64 << power) as f64;
    // Above 2^63 a conversion would only saturate.
    (bytes < 9.2e18).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        for (text, expected) in [
            ("1024", Some(1024)),
            ("64m", Some(64 << 20)),
            ("64MiB", Some(64 << 20)),
            ("2 gb", Some(2 << 30)),
            ("1.5k", Some(1536)),
            ("-1", Some(-1)),
            ("-2", None),
            ("", None),
            ("m", None),
            ("1x", None),
            ("9999999p", None),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn options_are_resources() {
        let mut change = Limits::default();
        for (option, value) in [
            ("memory", "64m"),
            ("cpu-quota", "-1"),
            ("cpuset-cpus", "0-1"),
            ("kernel-memory", "1g"),
            ("pids-limit", "7"),
            ("cpu-share", ""),
        ] {
            change.options.push((option, value.to_owned()));
        }
        let (resources, ignored) = change.resources().unwrap();
        let expected = json!({
            "memory": { "limit": 64 << 20 }, "cpu": { "quota": -1, "cpus": "0-1" }, "pids": { "limit": 7 }
        });
        assert_eq!(serde_json::to_value(resources).unwrap(), expected);
        assert_eq!(ignored.len(), 1);
        change.options.push(("cpu-period", "many".to_owned()));
        assert!(change.resources().unwrap_err().contains("cpu-period"));
    }
}
